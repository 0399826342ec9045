"""The TensorRT backend whole, with the real PyCUDA, on stand-ins for the CUDA driver and TensorRT: no GPU is needed.

The stand-in driver defers whatever may be deferred, poisons memory, counts what lives, notes what is wrong by itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from build_engine.bundle_writer import write_manifest
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import ENGINE, load_bundle
from tests.stand_ins.build import FOLDER, ROOT, SOURCES
from tests.stand_ins.places import MODULES, stand_in_environment

SIZE = 32
COUNT = 50
BACKEND = ROOT / "edge" / "backends" / "tensorrt.py"
MakeBundle = Callable[..., Path]


class Run(NamedTuple):
    logits: NDArray[np.float32]
    cam: NDArray[np.float32]
    gpu_ms: NDArray[np.float64]
    facts: dict[str, Any]
    error: str
    log: str
    driver: dict[str, Any]
    """The stand-in driver's report of the process that held the backend."""

    def assert_clean(self) -> None:
        """Nothing lives any more, nothing was used wrongly, one thread held the context."""
        assert self.driver["violations"] == []
        assert {kind: count for kind, count in self.driver["live"].items() if count} == {}
        assert self.driver["threads"] <= 1


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, np.random.default_rng(11).integers(0, 256, (COUNT, 1, SIZE, SIZE), dtype=np.uint8))
    return path


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of engines for the tests that are not about building them."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def run(tmp_path: Path, images: Path, warm_cache: Path) -> Callable[..., Run]:
    """Runs the 50 images of `images` through the backend in a process of its own, under settings of the stand-ins."""

    def go(
        bundle: Path, *, package: Path = ROOT, cache: str | None = None, blocked: bool = False, **settings: str
    ) -> Run:
        report = tmp_path / "report"
        shutil.rmtree(report, ignore_errors=True)
        report.mkdir()
        environment = stand_in_environment(report, tmp_path / cache if cache else warm_cache, **settings)
        first = [str(package)]
        if blocked:
            (tmp_path / "blocked" / "cuda").mkdir(parents=True)
            (tmp_path / "blocked" / "cuda" / "__init__.py").write_text("raise ImportError('no cuda-bindings here')")
            first.append(str(tmp_path / "blocked"))
        environment["PYTHONPATH"] = ":".join([*first, environment["PYTHONPATH"]])
        output = tmp_path / "output.npz"
        output.unlink(missing_ok=True)
        command = [sys.executable, "-W", "error", SOURCES / "run_backend.py", bundle, images, output]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        with np.load(output) as found:
            arrays = found["logits"], found["cam"], found["gpu_ms"]
            facts, error = json.loads(str(found["facts"])), str(found["error"])
        reports = [json.loads(path.read_text()) for path in report.glob("*.json")]
        return Run(*arrays, facts, error, done.stderr, reports[0] if reports else {})

    return go


def reference(bundle: Path, images: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and class activation maps of ONNX Runtime."""
    with OnnxRuntimeBackend(load_bundle(bundle), threads=1) as backend:
        outputs = backend.infer(np.load(images))
    assert outputs.cam is not None
    return outputs.logits, outputs.cam


def assert_equal_to_reference(ran: Run, bundle: Path, images: Path) -> None:
    logits, cam = reference(bundle, images)
    assert ran.error == ""
    assert ran.logits.shape == logits.shape
    np.testing.assert_allclose(ran.logits, logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ran.cam, cam, rtol=0, atol=1e-5)


@pytest.mark.parametrize("integrated", ["0", "1"], ids=["discrete", "integrated"])
@pytest.mark.parametrize("batch", [1, 4])
def test_results_are_those_of_onnx_runtime_and_nothing_leaks(
    make_bundle: MakeBundle, run: Callable[..., Run], images: Path, batch: int, integrated: str
) -> None:
    bundle = make_bundle(size=SIZE, batch=batch)
    ran = run(bundle, STAND_IN_INTEGRATED=integrated)
    assert_equal_to_reference(ran, bundle, images)
    ran.assert_clean()
    assert np.isfinite(ran.gpu_ms).all() and (ran.gpu_ms >= 0).all()
    copies = [name for name in ran.driver["calls"] if name.startswith("cuMemcpy")]
    assert bool(copies) == (integrated == "0")
    assert ran.facts["memory"].startswith("mapped" if integrated == "1" else "page-locked")
    assert ran.facts["cuda_graph"] == ("used" if batch == 1 else "not used: the number of images varies")
    assert ran.driver["calls"].get("cuGraphLaunch", 0) == (COUNT if batch == 1 else 0)
    assert ran.driver["calls"]["cuMemHostAlloc"] == 3  # once each, for good


def test_without_cuda_bindings_there_is_no_graph_and_the_facts_say_so(
    make_bundle: MakeBundle, run: Callable[..., Run], images: Path
) -> None:
    bundle = make_bundle(size=SIZE, batch=1)
    ran = run(bundle, blocked=True)
    assert_equal_to_reference(ran, bundle, images)
    ran.assert_clean()
    assert "no cuda-bindings here" in ran.facts["cuda_graph"]


@pytest.mark.parametrize("step", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_a_graph_that_cannot_be_captured_is_done_without(
    make_bundle: MakeBundle, run: Callable[..., Run], images: Path, step: str
) -> None:
    bundle = make_bundle(size=SIZE, batch=1)
    ran = run(bundle, STAND_IN_FAIL=f"{step}:1:901")
    assert ran.facts["cuda_graph"].startswith("not used: ")
    if step != "cuStreamEndCapture":  # there the stand-in leaves the stream capturing, as no driver does
        assert_equal_to_reference(ran, bundle, images)
        ran.assert_clean()


@pytest.mark.parametrize(
    ("failure", "batch", "came"),
    [
        ("cuCtxCreate_v4:1:2", 1, 0),
        ("cuMemHostAlloc:1:2", 1, 0),
        ("cuMemHostAlloc:3:2", 1, 0),
        ("cuMemAlloc_v2:3+:2", 1, 0),
        ("cuStreamCreate:1:2", 1, 0),
        ("cuEventCreate:2:2", 1, 0),
        ("cuEventRecord:3:700", 1, 0),
        ("cuGraphLaunch:3:700", 1, 2),
        ("cuStreamSynchronize:4:700", 1, 2),
        ("cuEventElapsedTime_v2:4:700", 1, 2),
        ("cuEventRecord:5:700", 4, 1),
        ("cuMemcpyHtoDAsync_v2:3:700", 4, 1),
        ("cuMemcpyDtoHAsync_v2:6:700", 4, 1),
    ],
)
def test_a_failure_of_the_driver_is_one_line_and_never_a_result(
    make_bundle: MakeBundle,
    run: Callable[..., Run],
    images: Path,
    failure: str,
    batch: int,
    came: int,
) -> None:
    bundle = make_bundle(size=SIZE, batch=batch)
    ran = run(bundle, STAND_IN_FAIL=failure)
    assert re.fullmatch(
        r"(CUDA cannot (open the GPU|run an inference) \(.*\)|cuGraphLaunch failed with \w+): run `edge-infer doctor`",
        ran.error,
    )
    assert len(ran.logits) == came
    np.testing.assert_allclose(ran.logits, reference(bundle, images)[0][:came], rtol=0, atol=1e-5)
    ran.assert_clean()


def test_an_enqueue_that_tensorrt_refuses_is_an_error(make_bundle: MakeBundle, run: Callable[..., Run]) -> None:
    ran = run(make_bundle(size=SIZE), STAND_IN_ENQUEUE="refused")
    assert "failed to enqueue" in ran.error and len(ran.logits) == 0
    ran.assert_clean()


# ---- which engine runs


def test_an_engine_is_built_once_and_kept(make_bundle: MakeBundle, run: Callable[..., Run], images: Path) -> None:
    bundle = make_bundle(size=SIZE)
    first, second = run(bundle, cache="own"), run(bundle, cache="own")
    assert (first.facts["engine"], second.facts["engine"]) == ("built here", "cache")
    assert "it is built here, once" in first.log and "built here" not in second.log
    assert_equal_to_reference(second, bundle, images)
    assert run(make_bundle("other", size=SIZE, batch=2), cache="own").facts["engine"] == "built here"
    assert run(bundle, cache="own", STAND_IN_VERSION="10.13.3.9").facts["engine"] == "built here"


@pytest.mark.parametrize("damage", ["flip", "cut", "no json", "gone"])
def test_a_damaged_kept_engine_is_built_anew(
    make_bundle: MakeBundle, run: Callable[..., Run], images: Path, tmp_path: Path, damage: str
) -> None:
    bundle = make_bundle(size=SIZE)
    run(bundle, cache="own")
    engine = next((tmp_path / "own" / "engines").glob("*.engine"))
    content = engine.read_bytes()
    if damage == "flip":
        engine.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        engine.write_bytes(content[: len(content) // 2])
    elif damage == "no json":
        engine.with_suffix(".json").write_text("{")
    else:
        engine.unlink()
    ran = run(bundle, cache="own")
    assert ran.facts["engine"] == "built here" and "built anew" in ran.log
    assert_equal_to_reference(ran, bundle, images)
    assert run(bundle, cache="own").facts["engine"] == "cache"


@pytest.mark.parametrize(
    ("found", "told"),
    [(None, "read"), (b"another GPU's", "damaged or of another device or version, started anew"), (b"", "started")],
    ids=["as it was left", "foreign", "empty"],
)
def test_a_second_build_takes_the_timings_of_the_first(
    make_bundle: MakeBundle, run: Callable[..., Run], images: Path, tmp_path: Path, found: bytes | None, told: str
) -> None:
    bundle, folder = make_bundle(size=SIZE), tmp_path / "own" / "engines"
    assert "(timing cache: started)" in run(bundle, cache="own").log
    (timing,), (engine,) = folder.glob("*.timing"), folder.glob("*.engine")
    left = timing.read_bytes()
    assert left  # the stand-in takes this content and no other
    if found is not None:
        timing.write_bytes(found)
    engine.unlink()
    ran = run(bundle, cache="own")
    assert ran.facts["engine"] == "built here"
    assert f"(timing cache: {told})" in ran.log
    assert json.loads(engine.with_suffix(".json").read_text())["timing_cache"] == told
    assert timing.read_bytes() == left
    assert_equal_to_reference(ran, bundle, images)
    # Another bundle has another engine, and the timings of the same machine.
    assert "(timing cache: read)" in run(make_bundle("other", size=SIZE, batch=2), cache="own").log


@pytest.mark.parametrize(
    ("difference", "origin"), [({}, "bundle"), ({"sm": "110"}, "built here"), ({"tensorrt": "10.4.0"}, "built here")]
)
def test_the_bundles_engine_runs_where_it_fits(
    make_bundle: MakeBundle,
    run: Callable[..., Run],
    images: Path,
    tmp_path: Path,
    difference: dict[str, str],
    origin: str,
) -> None:
    bundle = make_bundle(size=SIZE)
    facts = run(bundle, cache="another").facts
    shutil.copy(next((tmp_path / "another" / "engines").glob("*.engine")), bundle / ENGINE)
    platform = {name: facts[name] for name in ("tensorrt", "cuda", "sm", "device", "l4t")}
    manifest = json.loads((bundle / "manifest.json").read_text())
    write_manifest(bundle, {**manifest, "backend": "tensorrt", "platform": {**platform, **difference}})
    ran = run(bundle, cache="own")
    assert ran.facts["engine"] == origin
    assert ("was built for" in ran.log) == bool(difference)
    assert_equal_to_reference(ran, bundle, images)


def test_a_bundles_engine_that_tensorrt_refuses_is_built_anew(
    make_bundle: MakeBundle, run: Callable[..., Run], images: Path
) -> None:
    bundle = make_bundle(size=SIZE)
    (bundle / ENGINE).write_bytes(b"no plan")
    manifest = json.loads((bundle / "manifest.json").read_text())
    platform = {"tensorrt": "10.3.0", "sm": "87", "device": "stand-in GPU", "l4t": None}
    write_manifest(bundle, {**manifest, "backend": "tensorrt", "platform": platform})
    ran = run(bundle, cache="own")
    assert ran.facts["engine"] == "built here" and "does not take the engine (bundle)" in ran.log
    assert_equal_to_reference(ran, bundle, images)
    ran.assert_clean()


@pytest.mark.parametrize("how", ["killed", "out of memory"])
def test_a_builder_out_of_memory_is_one_line(
    make_bundle: MakeBundle, run: Callable[..., Run], tmp_path: Path, how: str
) -> None:
    ran = run(make_bundle(size=SIZE), cache="own", STAND_IN_BUILD=how)
    assert "free memory" in ran.error and "\n" not in ran.error
    ran.assert_clean()
    assert [path.suffix for path in (tmp_path / "own" / "engines").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_one_line(
    make_bundle: MakeBundle, run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    ran = run(make_bundle(size=SIZE), cache="file/cache")
    assert "MDCONV_EDGE_CACHE" in ran.error and "\n" not in ran.error


# ---- what may be missing


@pytest.mark.parametrize(
    ("path", "settings", "said"),
    [
        ([], {}, "tensorrt does not import here"),
        ([MODULES], {}, "PyCUDA does not import"),
        ([MODULES, FOLDER / "pycuda"], {"STAND_IN_DEVICES": "0"}, "GPU"),
        (
            [MODULES, FOLDER / "pycuda"],
            {"STAND_IN_VERSION": "8.6.2"},
            "TensorRT 8.6.2 is too old, expected 10.3 or later",
        ),
    ],
)
def test_what_is_missing_is_named(
    make_bundle: MakeBundle, tmp_path: Path, path: list[Path], settings: dict[str, str], said: str
) -> None:
    environment = stand_in_environment(tmp_path, tmp_path / "cache", **settings)
    environment["PYTHONPATH"] = ":".join(map(str, [*path, ROOT]))
    script = """
        import sys
        from pathlib import Path
        from edge.backends import open_backend
        from edge.bundle import load_bundle
        from edge.errors import MachineError
        try:
            open_backend(load_bundle(Path(sys.argv[1])), "tensorrt")
        except MachineError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), make_bundle(size=SIZE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert said in done.stdout and done.stdout.count("\n") == 1


def test_another_thread_is_turned_away(make_bundle: MakeBundle, tmp_path: Path) -> None:
    script = """
        import sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        import numpy as np
        from edge.backends.tensorrt import open_tensorrt
        from edge.bundle import load_bundle
        image = np.zeros((1, 1, 32, 32), np.uint8)
        with open_tensorrt(load_bundle(Path(sys.argv[1]))) as backend, ThreadPoolExecutor(1) as other:
            print(other.submit(backend.infer, image).exception())
            print(other.submit(backend.close).exception())
            print(backend.infer(image).logits.shape)
            for wrong in (image[:0], image[:, :, 1:], image.astype(np.float32), np.repeat(image, 5, 0)):
                try:
                    backend.infer(wrong)
                except ValueError:
                    print("refused")
        backend.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), make_bundle(size=SIZE)]
    environment = stand_in_environment(tmp_path, tmp_path / "cache")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    belongs = "a TensorRT backend belongs to the thread that opened it: open one there"
    assert done.stdout.splitlines() == [belongs, belongs, "(1, 14)", *["refused"] * 4]


# ---- mutation: the tests above would notice


class Mutant(NamedTuple):
    pattern: str
    replacement: str
    settings: Mapping[str, str] = MappingProxyType({})
    """Of the stand-ins, in the run that must notice."""


FAILING_COPY = {"STAND_IN_FAIL": "cuMemcpyDtoHAsync_v2:6:700"}
MUTANTS = {
    "no wait for the results": Mutant(r"(_stop\.record\(self\._stream\)\n +)self\._stream\.synchronize\(\)", r"\1pass"),
    "no wait, nor a time": Mutant(
        r"self\._stream\.synchronize\(\)\n( +)return float\(.*\)", r"return 0.0", {"STAND_IN_INTEGRATED": "1"}
    ),
    "no wait before freeing": Mutant(
        r"(with suppress\(self\._driver\.Error\):\n +)self\._stream\.synchronize\(\)", r"\1pass", FAILING_COPY
    ),
    "no copy in": Mutant(r"self\._input\.to_device\(rows\)", "pass"),
    "no copy out": Mutant(r"buffer\.to_host\(rows\)", "pass"),
    "results are the buffers themselves": Mutant(r"\[:count\]\.copy\(\)", "[:count]"),
    "a buffer is not freed": Mutant(r"self\._made\.callback\(self\._buffers\[name\]\.free\)", "pass"),
    "the context is not destroyed": Mutant(r"self\._made\.callback\(self\._cuda_context\.detach\)", "pass"),
    "the engine outlives its CUDA context": Mutant(
        r'self\._made\.callback\(self\._forget, "_engine", "_runtime"\)', "pass"
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_noticed(
    make_bundle: MakeBundle, run: Callable[..., Run], images: Path, tmp_path: Path, name: str
) -> None:
    """Take one statement out of the backend: results, violations or what lives at the end must tell."""
    mutant = MUTANTS[name]
    shutil.copytree(ROOT / "edge", tmp_path / "mutant" / "edge", ignore=shutil.ignore_patterns("__pycache__"))
    changed, count = re.subn(mutant.pattern, mutant.replacement, BACKEND.read_text())
    assert count == 1
    (tmp_path / "mutant" / "edge" / "backends" / "tensorrt.py").write_text(changed)
    bundle = make_bundle(size=SIZE)

    def check(package: Path) -> None:
        ran = run(bundle, package=package, **mutant.settings)
        if mutant.settings == FAILING_COPY:
            assert "CUDA cannot run an inference" in ran.error
        else:
            assert_equal_to_reference(ran, bundle, images)
        ran.assert_clean()

    check(ROOT)
    with pytest.raises(AssertionError):
        check(tmp_path / "mutant")


def test_every_synchronize_has_its_mutant() -> None:
    sources = [BACKEND, *BACKEND.parent.glob("cuda_*.py")]
    assert sum(source.read_text().count("synchronize()") for source in sources) == 2
    assert sum(r"synchronize\(\)" in mutant.pattern for mutant in MUTANTS.values()) >= 2
