"""The TensorRT backend on a real GPU with NVIDIA's own runtime. Skipped, never passed, where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.backends.tensorrt import open_tensorrt, probe_platform
from edge.bundle import load_bundle
from edge.engine_from_onnx import build_engine
from edge.errors import MachineError


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
