"""An INT8 bundle for Triton: run as Triton's ONNX Runtime backend would, it gives what the bundle gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import load_bundle
from edge.results import probabilities
from tests.system.conftest import run_make

LEVELS = {
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""What onnxruntime_backend (src/onnxruntime.cc, ModelState) makes of ``optimization.graph.level``."""


def run_as_triton(model: Path, level: int, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return probabilities(np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images]))


def test_triton_would_give_what_an_int8_bundle_gives(int8_bundle: Path, tmp_path: Path) -> None:
    done = run_make("--bundle", int8_bundle, "--triton-repository", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "synthetic phantoms" in done.stderr
    model = Path(done.stdout.strip())
    config = text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())
    assert "synthetic phantoms" in config.parameters["notice"].string_value
    bundle = load_bundle(int8_bundle)
    with np.load(int8_bundle / "golden.npz") as golden, OnnxRuntimeBackend(bundle) as backend:
        images, float32 = golden["images"], probabilities(golden["logits"])
        ours = probabilities(backend.infer(images).logits)
    theirs = run_as_triton(model / "1" / "model.onnx", config.optimization.graph.level, images)
    assert np.abs(theirs - float32).max() <= bundle.manifest["golden"]["max_probability_difference"]
    assert np.abs(theirs - ours).max() < 0.01
    assert np.abs(theirs - ours).mean() < 1e-3


def test_a_build_goes_into_the_repository_too(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    done = run_make(
        *("--fp32", "--backend", "onnxruntime", "--lowering", "padded", "--no-gate", "--calibration-images", "16"),
        *("--input-size", "64", "--batch", "4", "--output", tmp_path / "bundle", "--triton-repository", repository),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "bundle")
    (model,) = repository.iterdir()
    assert str(model) in done.stderr
    config = text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())
    assert config.max_batch_size == 4 and list(config.dynamic_batching.preferred_batch_size) == [4]
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (cam,) = [output for output in config.output if output.name == "cam"]
    images = np.zeros((4, *config.input[0].dims), np.uint8)
    assert session.run(["cam"], {"image": images})[0].shape == (4, *cam.dims)


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_float32_gives_the_same_at_any_level(level: int, fp32_bundle: Path) -> None:
    """So only INT8 asks Triton for one."""
    with np.load(fp32_bundle / "golden.npz") as golden:
        found = run_as_triton(fp32_bundle / "model.onnx", level, golden["images"])
        np.testing.assert_allclose(found, probabilities(golden["logits"]), atol=1e-4)
