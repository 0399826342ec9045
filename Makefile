# Two commands: `make demo` and `make test`. Both make and use .venv/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := out/demo

# On a Jetson TensorRT comes with JetPack, as a system package that the environment must see.
JETSON := $(wildcard /etc/nv_tegra_release)

comma  := ,
EXTRAS := build,serve,train,bench,test,$(if $(JETSON),jetson,openvino,rtx,cluster)

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak lint stand-ins plugin clean

help:
	@echo "make demo   set up, build an INT8 bundle, stream images through edge-infer, write a latency report"
	@echo "make test   set up, run the linters and all tests"
	@echo "make soak   set up, run what the daemon must stand: kills, a full disk, overload, damage, a long load; about an hour"
	@echo "make lint   set up, run the linters only"
	@echo "make plugin build the CUDA plugin for TensorRT (needs nvcc, cmake and TensorRT's headers)"
	@echo "make clean  remove .venv, .cache, build, edge/lib and out"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	    || { echo "make: $(PYTHON) is $$($(PYTHON) -V), expected Python 3.10 to 3.13: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(if $(JETSON),--system-site-packages) $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup
	@rm -rf $(DEMO)
	$(BIN)/python -m mdconv.data.phantom --output $(DEMO)/phantoms --count 48 --seed 4000000 --size 1024
	@mkdir $(DEMO)/inbox && mv $(DEMO)/phantoms/*.png $(DEMO)/inbox
	$(BIN)/python build_engine/make.py --int8 --output $(DEMO)/bundle
	$(BIN)/edge-infer serve --bundle $(DEMO)/bundle --watch $(DEMO)/inbox --state $(DEMO)/state --drain
	$(BIN)/edge-infer report --state $(DEMO)/state --report $(DEMO)/report
	@echo "make demo: built $(DEMO)/bundle, streamed 48 synthetic phantoms through edge-infer; the latency report is $(DEMO)/report/report.html"

# Each core runs tests of its own, in one thread; more than four processes would take the memory of a small Jetson.
test: setup
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint stand-ins
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal
	@echo "make test: linters, type check and all tests passed"

soak: setup
	@test -f out/soak/bundle/manifest.json || $(BIN)/python build_engine/make.py --int8 --output out/soak/bundle
	$(BIN)/python -m benchmarks.soak out/soak/bundle
	@echo "make soak: the daemon stood all of it"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint jetson.Dockerfile
	$(BIN)/clang-format --dry-run --Werror $$(find plugin -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

stand-ins: setup
	$(BIN)/python tests/stand_ins/build.py

# CUDAARCHS="87;110" make plugin builds for other GPUs than those that plugin/CMakeLists.txt chooses.
plugin:
	@command -v cmake >/dev/null || { echo "make plugin: cmake is missing: apt-get install cmake"; exit 3; }
	@cmake -S plugin -B build/plugin $(if $(CUDAARCHS),-DCMAKE_CUDA_ARCHITECTURES="$(CUDAARCHS)",-UCMAKE_CUDA_ARCHITECTURES) \
	    -DPython3_EXECUTABLE="$(or $(wildcard $(abspath $(BIN)/python)),$(shell command -v $(PYTHON)))"
	@MAKEFLAGS= cmake --build build/plugin --parallel
	@cmake --install build/plugin --prefix edge/lib
	@rm -f edge/lib/not_built.txt
	@echo "make plugin: built edge/lib/libmdconv_plugin.so, which engines of --lowering plugin load"

clean:
	rm -rf $(VENV) .cache build edge/lib out
