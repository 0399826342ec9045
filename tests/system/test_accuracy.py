"""The demo bundles on real radiographs and on phantoms, against independent references."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import data_store
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from build_engine.lowering import lower
from edge import results
from edge.backends.onnxruntime import OnnxRuntimeBackend, model_to_run, open_session, own_model
from edge.bundle import load_bundle
from edge.preprocess import Preprocess, decode, load_image
from mdconv.checkpoint import load_checkpoint
from mdconv.data.phantom import render
from mdconv.networks import normalise
from mdconv.weights import DEMO_CHECKPOINT
from tests.native.plugin_interpreter import PluginInterpreter

REAL = Path(data_store.__file__).parent / "data"


def classify(bundle: Path, *files: Path) -> list[dict[str, Any]]:
    """Real radiographs too, which the guard of a network that was trained on phantoms refuses, rightly."""
    command = [sys.executable, "-m", "edge", "classify", *files, "--bundle", bundle, "--json", "--no-guard"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def probabilities(result: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([finding["probability"] for finding in result["findings"].values()])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_real_radiograph_gives_one_result_in_every_format(
    precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(f"{precision}_bundle")
    raw = REAL / "RG1_UNCR.dcm"
    png = tmp_path / "chest.png"
    cv2.imwrite(str(png), decode(raw, Preprocess(448)))

    uncompressed, jpeg2000, picture = map(probabilities, classify(bundle, raw, REAL / "RG1_J2KR.dcm", png))
    assert len(uncompressed) == 14
    np.testing.assert_allclose(jpeg2000, uncompressed, atol=1e-6, rtol=0)
    np.testing.assert_allclose(picture, uncompressed, atol=0.02, rtol=0)


def test_cam_equals_grad_cam_by_autograd(fp32_bundle: Path) -> None:
    """Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1 and 2) of the features: positive part, largest value 1."""
    network: Any = load_checkpoint(DEMO_CHECKPOINT).model
    with OnnxRuntimeBackend(load_bundle(fp32_bundle)) as backend:
        for seed in (2_100_000, 2_100_001):
            image = render(seed, 448).image[None, None]
            cam = backend.infer(image).cam
            assert cam is not None
            features = network.features(normalise(torch.from_numpy(image))).detach().requires_grad_()
            logits = network.classifier(features.mean(dim=(2, 3)))
            for label in range(logits.shape[1]):
                (gradient,) = torch.autograd.grad(logits[0, label], features, retain_graph=True)
                weights = gradient.mean(dim=(2, 3), keepdim=True)
                expected = torch.relu((weights * features).sum(dim=1))[0].detach().numpy()
                found = np.maximum(cam[0, label], 0)
                assert expected.max() > 0 or found.max() == 0
                scale = max(found.max(), np.finfo(np.float32).tiny), max(expected.max(), np.finfo(np.float32).tiny)
                np.testing.assert_allclose(found / scale[0], expected / scale[1], atol=1e-4, rtol=0)


def test_cam_mean_and_bias_are_the_logits(fp32_bundle: Path) -> None:
    bias = load_checkpoint(DEMO_CHECKPOINT).model.get_parameter("classifier.bias").detach().numpy()
    with OnnxRuntimeBackend(load_bundle(fp32_bundle)) as backend:
        outputs = backend.infer(render(2_100_002, 448).image[None, None])
    assert outputs.cam is not None
    np.testing.assert_allclose(outputs.cam.mean(axis=(2, 3)) + bias, outputs.logits, atol=1e-4)


def as_it_stands(model: onnx.ModelProto) -> Any:
    """A session in which ONNX Runtime optimizes nothing."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_int8_results_are_the_graphs_own_on_every_cpu(int8_bundle: Path) -> None:
    """Without optimizations ONNX Runtime computes Q/DQ in float32: nothing saturates there, and no bias is rounded.

    Its float32 sums tip some ties, and what reads such a code some more: by the last layer it is every tenth code. So
    this is coarse; the next test is not.
    """
    bundle = load_bundle(int8_bundle)
    plain = as_it_stands(onnx.load(bundle.model_path))
    images = np.stack([render(2_000_000 + i, 448).image for i in range(12)])[:, None]
    expected = np.concatenate([plain.run(["logits"], {"image": image[None]})[0] for image in images])
    with OnnxRuntimeBackend(bundle) as backend:
        found = backend.infer(images).logits
    difference = np.abs(results.probabilities(found) - results.probabilities(expected))
    assert difference.mean() <= 1e-3 and difference.max() <= 0.02


def test_int8_codes_in_integers_are_the_graphs_own(int8_bundle: Path) -> None:
    """All of them, and the logits. The graph is given the codes that the form computed, so no tie counts twice."""
    bundle = load_bundle(int8_bundle)
    graph, form = onnx.load(model_to_run(bundle)), onnx.load(own_model(bundle))
    rounded = [node for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    zeros = zero_points(form)
    image = {"image": render(2_000_000, 448).image[None, None]}

    for node in rounded:
        form.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None))
        graph.graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.INT8, None))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
        graph.graph.node.remove(node)
    names = ["logits", *(node.output[0] for node in rounded)]
    found = dict(zip(names, open_session(form.SerializeToString(), 1).run(names, image)))
    codes = {name: (found[name].astype(np.int16) - zeros[name]).astype(np.int8) for name in names[1:]}
    names = ["logits", *(node.input[0] for node in rounded)]
    exact = dict(zip(names, as_it_stands(graph).run(names, image | codes)))

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for node in rounded:
        unrounded = np.clip(exact[node.input[0]] / constants[node.input[1]], -128, 127)
        assert codes[node.output[0]].std() > 1, node.name
        assert np.abs(codes[node.output[0]] - unrounded).max() <= 0.5 + 1e-4, node.name
    np.testing.assert_allclose(found["logits"], exact["logits"], atol=1e-5, rtol=0)
    assert len(rounded) > 50


def zero_points(form: onnx.ModelProto) -> dict[str, int]:
    """Of the tensors of codes in `form`, by those who read them."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in form.graph.initializer}
    source: dict[str, str] = {}
    found: dict[str, int] = {}
    for node in form.graph.node:
        if node.op_type in ("Transpose", "Split"):
            source.update(dict.fromkeys(node.output, node.input[0]))
        place = {"QLinearConv": 2, "DequantizeLinear": 2, "MatMulIntegerToFloat": 4}.get(node.op_type)
        if place is not None and node.input[0] not in constants:
            found[source.get(node.input[0], node.input[0])] = int(constants[node.input[place]])
    return found


def test_int8_plugin_graph_says_what_the_qdq_graph_says(int8_bundle: Path) -> None:
    """The plugin's own arithmetic in NumPy against the graph in ONNX Runtime, on 200 phantoms and a real radiograph."""
    bundle = load_bundle(int8_bundle)
    plugin = PluginInterpreter(lower(onnx.load(bundle.model_path), "plugin"))
    images = [render(2_000_000 + i, 448).image for i in range(200)]
    images.append(load_image(REAL / "RG1_UNCR.dcm", Preprocess(448)))
    session = open_session(model_to_run(bundle), 0)
    expected = results.probabilities(
        np.concatenate([session.run(["logits"], {"image": i[None, None]})[0] for i in images])
    )
    found = results.probabilities(np.concatenate([plugin.run(image[None, None])["logits"] for image in images]))
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert np.abs(found - expected).mean() <= 1e-4
    assert len(set(expected.argmax(axis=1))) > 3
