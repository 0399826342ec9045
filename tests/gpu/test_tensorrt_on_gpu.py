"""The TensorRT backend on a real GPU with NVIDIA's own runtime. Skipped, never passed, where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.backends.tensorrt import open_tensorrt, probe_platform
from edge.bundle import load_bundle
from edge.engine_from_onnx import build_engine
from edge.errors import MachineError
from edge.plugin_library import find_plugin
from edge.results import probabilities
from edge.selftest import golden_inputs
from tests.native.plugin_interpreter import PluginInterpreter
from tests.system.conftest import build


def why_not() -> str:
    """What a run on the GPU lacks here; empty if nothing."""
    try:
        probe_platform()
    except MachineError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    missing = why_not()
    if missing:
        pytest.skip(f"needs a GPU with TensorRT and PyCUDA: {missing}")
    monkeypatch.setenv("MDCONV_EDGE_CACHE", str(tmp_path / "cache"))
    yield


@pytest.mark.parametrize("batch", [1, 4])
def test_results_are_those_of_onnx_runtime(make_bundle: Callable[..., Path], batch: int) -> None:
    bundle = load_bundle(make_bundle(size=64, batch=batch))
    images = np.random.default_rng(2).integers(0, 256, (50, 1, 64, 64), dtype=np.uint8)
    origins = []
    for _ in range(2):
        with open_tensorrt(bundle) as backend, OnnxRuntimeBackend(bundle) as reference:
            origins.append(backend.facts["engine"])
            for start in range(0, len(images), batch):
                found, wanted = (b.infer(images[start : start + batch]) for b in (backend, reference))
                np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=1e-4)
                assert found.cam is not None and wanted.cam is not None
                np.testing.assert_allclose(found.cam, wanted.cam, rtol=0, atol=1e-3)
                assert found.gpu_ms is not None and found.gpu_ms > 0
    assert origins == ["built here", "cache"]


def test_the_inspector_tells_the_layers(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(size=64, batch=1))
    cache = tmp_path / "timing.cache"
    facts = [
        build_engine(bundle.model_path, tmp_path / "e.engine", target="tensorrt", timing_cache=cache) for _ in range(2)
    ]
    assert [fact["timing_cache"] for fact in facts] == ["started", "read"]
    assert facts[0]["layers_source"] == "inspector"
    assert all({"Name", "LayerType"} <= layer.keys() for layer in facts[0]["layers"])


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_the_plugins_engine_says_what_the_op_is_defined_to_say(precision: str, tmp_path: Path) -> None:
    try:
        library = find_plugin()
    except MachineError as error:
        pytest.skip(str(error))
    options = ("--backend", "tensorrt", "--lowering", "plugin", "--input-size", "128", "--no-gate")
    bundle = load_bundle(build(tmp_path / "bundle", f"--{precision}", *options))
    interpreter = PluginInterpreter(onnx.load(bundle.directory / bundle.manifest["lowering"]["builder_model"]))
    images, _ = golden_inputs(bundle)
    with open_tensorrt(bundle) as backend:
        assert (backend.facts["engine"], backend.facts["plugin"]["sha256"]) == ("bundle", library.sha256)
        found = np.concatenate([backend.infer(image[None]).logits for image in images])
    expected = np.concatenate([interpreter.run(image[None])["logits"] for image in images])
    tolerance = {"int8": 0.005, "fp16": 0.002, "fp32": 1e-4}[precision]
    assert np.abs(probabilities(found) - probabilities(expected)).mean() <= tolerance


def test_auto_times_every_lowering_on_the_gpu(tmp_path: Path) -> None:
    manifest = load_bundle(build(tmp_path / "bundle", "--fp16", "--backend", "tensorrt", "--no-gate")).manifest
    rows = manifest["lowering"]["comparison"]
    assert [row["kind"] for row in rows] == ["padded", "split", "plugin"]
    assert all(row["median_ms"] > 0 for row in rows[:2])
    assert manifest["lowering"]["timed_on"]["device"] == manifest["platform"]["device"]
