"""The demo's INT8 bundle in OpenVINO: it computes what the Q/DQ graph says, and in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.backends import open_backend
from edge.backends.onnxruntime import model_to_run
from edge.bundle import load_bundle
from edge.results import probabilities
from edge.selftest import self_test
from mdconv.data.phantom import render

openvino = pytest.importorskip("edge.backends.openvino", reason="OpenVINO is not installed, which is for x86").openvino

PHANTOMS = 24


def test_its_answers_are_those_of_onnx_runtime(int8_bundle: Path) -> None:
    bundle = load_bundle(int8_bundle)
    images = np.stack([render(5_000_000 + i, bundle.input_size).image for i in range(PHANTOMS)])[:, np.newaxis]
    found = {}
    for name in ("openvino", "onnxruntime"):
        with open_backend(bundle, name) as backend:
            self_test(bundle, backend)
            found[name] = [backend.infer(images[i : i + 1]) for i in range(PHANTOMS)]
    logits, maps = (
        {
            name: np.concatenate([outputs for one in answers if (outputs := getattr(one, field)) is not None])
            for name, answers in found.items()
        }
        for field in ("logits", "cam")
    )
    difference = np.abs(probabilities(logits["openvino"]) - probabilities(logits["onnxruntime"]))
    assert difference.mean() < 1e-3
    assert difference.max() < 0.05
    assert np.corrcoef(maps["openvino"].ravel(), maps["onnxruntime"].ravel())[0, 1] > 0.999


def test_its_convolutions_run_in_int8(int8_bundle: Path) -> None:
    bundle = load_bundle(int8_bundle)
    core = openvino.Core()
    model = core.read_model(model_to_run(bundle))
    model.reshape([1, 1, bundle.input_size, bundle.input_size])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    precisions = [
        info["runtimePrecision"].astype(str) for info in layers if info["layerType"].astype(str) == "Convolution"
    ]
    assert len(precisions) >= 53  # more where a mixed-kernel layer is split
    assert sum(precision not in ("i8", "u8") for precision in precisions) <= 1  # the head's maps
