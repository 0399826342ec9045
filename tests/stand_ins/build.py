"""Build what the device tests need where there is no GPU: ``python tests/stand_ins/build.py``.

Into ``.cache/stand_ins/<python tag>/``, each part once, again only when its recipe or sources change:

- ``driver/libcuda.so.1``: a stand-in for the CUDA driver, on host memory (cuda_driver.cpp)
- ``pycuda/``: the real PyCUDA and NVIDIA's cuda-bindings, built against NVIDIA's public headers
- ``tensorrt_headers/``: NVIDIA's C++ headers of TensorRT, to compile the plugin against
- ``bindings/<version>/``: the real Python bindings of TensorRT, with empty libraries in the place of NVIDIA's own

Needs a C and a C++ compiler and a package index; neither CUDA nor a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
ROOT = SOURCES.parents[1]
FOLDER = ROOT / ".cache" / "stand_ins" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"

HEADERS = ("nvidia-cuda-runtime==13.5.37", "nvidia-cuda-profiler-api==13.5.25")
TENSORRT_HEADERS = "kernel-lens==2.0.1"
"""Carries NvInfer*.h of TensorRT 10.14 (Apache-2.0). Its own dependencies, torch and triton, are not needed."""
PYCUDA = "pycuda==2026.1"
CUDA_BINDINGS = "cuda-bindings>=13.4,<13.6"

_PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
BINDINGS = {"10.3.0": (3, 12), "10.13.3.9": (3, 13), "11.4.0.106": (3, 13)}
"""TensorRT releases whose bindings we check against, with the newest Python that each was built for."""

_STUBBED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


def available_bindings() -> dict[str, Path]:
    """Version → folder of the TensorRT bindings that exist for this machine and Python."""
    published = platform.machine() == "x86_64"
    return {
        version: FOLDER / "bindings" / version
        for version, newest in BINDINGS.items()
        if published and sys.version_info[:2] <= newest
    }


def main() -> None:
    """Build what is missing or out of date. Exit status 1 with one line if a step fails."""
    parts: dict[str, Callable[[Path], None]] = {"headers": _headers, "driver": _driver, "pycuda": _pycuda}
    parts["tensorrt_headers"] = lambda target: _install(target, "--no-deps", TENSORRT_HEADERS)
    for version in available_bindings():
        parts[f"bindings/{version}"] = _bindings
    recipe = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.c*")))).hexdigest()
    recipes = {
        "headers": [*HEADERS],
        "driver": [*HEADERS, recipe],
        "tensorrt_headers": [TENSORRT_HEADERS],
        "pycuda": [*HEADERS, PYCUDA, CUDA_BINDINGS],
    }
    built = [name for name, make in parts.items() if _once(name, make, recipes.get(name, [*_STUBBED]))]
    for version in BINDINGS.keys() - available_bindings().keys():
        print(f"stand-ins: no bindings of TensorRT {version} are published for {sysconfig.get_platform()}, {_PYTHON}")
    print(f"stand-ins: {', '.join(built) if built else 'nothing to build'}; ready in {FOLDER.relative_to(ROOT)}")


def _once(name: str, make: Callable[[Path], None], recipe: list[str]) -> bool:
    """Make the folder `name` unless a finished one of the same recipe is there; a broken-off one never counts."""
    target = FOLDER / name
    stamp = target / "recipe.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == recipe:
        return False
    print(f"stand-ins: building {name} ...", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    make(target)
    stamp.write_text(json.dumps(recipe))
    return True


def _headers(target: Path) -> None:
    _install(target, "--no-deps", *HEADERS)


def _driver(target: Path) -> None:
    objects = [target / "unsupported.o", target / "driver.o"]
    _run(_compiler("CC", "cc"), "-O1", "-fPIC", "-c", SOURCES / "cuda_unsupported.c", "-o", objects[0])
    include = f"-I{_include()}"
    _run(
        _compiler("CXX", "c++"), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", include,
        "-c", SOURCES / "cuda_driver.cpp", "-o", objects[1],
    )  # fmt: skip
    library = target / "libcuda.so.1"
    _run(_compiler("CXX", "c++"), "-shared", "-Wl,-soname,libcuda.so.1", *objects, "-o", library, "-ldl")
    (target / "libcuda.so").symlink_to(library.name)


def _pycuda(target: Path) -> None:
    """PyCUDA from its source, without the parts that need NVIDIA's other libraries."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-binary", "pycuda", "--dest", scratch, PYCUDA,
        )  # fmt: skip
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            archive.extractall(scratch, filter="data")
        source = next(path for path in Path(scratch).iterdir() if path.is_dir())
        site = {
            "CUDA_ROOT": None,
            "CUDA_ENABLE_GL": False,
            "CUDA_ENABLE_CURAND": False,
            "CUDA_INC_DIR": [str(_include())],
            "CUDADRV_LIB_DIR": [str(FOLDER / "driver")],
            "CUDADRV_LIBNAME": ["cuda"],
            "CUDART_LIBNAME": [],
            "CXXFLAGS": ["-O0", "-g0", "-w"],  # -w: the warnings are PyCUDA's and Boost's, not ours
        }
        (source / "siteconf.py").write_text("".join(f"{name} = {value!r}\n" for name, value in site.items()))
        _install(target, str(source), CUDA_BINDINGS)


def _bindings(target: Path) -> None:
    version = target.name
    _install(target, "--no-deps", f"tensorrt_cu12_bindings=={version}")
    libraries = target / "tensorrt_libs"
    libraries.mkdir()
    source = target / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _STUBBED))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        soname = f"lib{name}.so.{version.split('.')[0]}"
        _run(_compiler("CC", "cc"), "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", libraries / soname, source)


def _include() -> Path:
    return next((FOLDER / "headers").glob("nvidia/*/include"))


def _compiler(variable: str, default: str) -> str:
    return os.environ.get(variable, default)


def _install(target: Path, *what: str) -> None:
    _run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        "--target", target, *what,
    )  # fmt: skip


def _run(*command: object) -> None:
    """Run a step; its output is shown only if it fails, and then the script ends with status 1."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        sys.exit(f"stand-ins: {words[0]} is missing: install a C++ compiler (apt install build-essential)")
    if done.returncode != 0:
        print(done.stdout[-4000:], file=sys.stderr)
        sys.exit(f"stand-ins: {' '.join(words[:6])} ... ended with {done.returncode}: see above")


if __name__ == "__main__":
    main()
