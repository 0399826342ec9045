from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from build_engine.export import to_onnx
from build_engine.lowering import lower
from build_engine.precision import to_float16
from calibration.graph import attributes, initializers, producers
from calibration.insertion import insert
from calibration.placement import Placement
from edge.errors import UsageError
from mdconv.checkpoint import Checkpoint
from mdconv.layers import mdconv_reference
from tests.unit.build_engine.random_networks import random_checkpoint, random_images, run
from tests.unit.build_engine.small_models import single

CLIPS = {"none": (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}


def reference(
    x: NDArray[Any], kernels: list[NDArray[Any]], bias: NDArray[Any], stride: int, activation: str
) -> NDArray[Any]:
    groups = [torch.from_numpy(kernel).double() for kernel in kernels]
    y = mdconv_reference(torch.from_numpy(x).double(), groups, stride).numpy() + bias[:, None, None]
    if activation == "hardswish":
        return y * np.clip(y + 3, 0, 6) / 6
    return np.clip(y, *CLIPS[activation])


@pytest.mark.parametrize("kind", ["function", "padded", "split"])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish"])
@pytest.mark.parametrize(
    ("kernel_sizes", "splits", "stride", "height", "width"),
    [
        ((3, 5), (4, 4), 1, 9, 7),
        ((3, 5), (5, 3), 2, 8, 11),
        ((5, 3), (1, 6), 2, 7, 7),
        ((1, 3, 7), (2, 2, 3), 1, 5, 10),
        ((5,), (6,), 2, 6, 5),
    ],
)
def test_equals_the_reference(
    kind: str,
    activation: str,
    kernel_sizes: tuple[int, ...],
    splits: tuple[int, ...],
    stride: int,
    height: int,
    width: int,
) -> None:
    model, kernels, bias = single(kernel_sizes, splits, stride, activation)
    x = np.random.default_rng(1).normal(size=(2, sum(splits), height, width)).astype(np.float32)
    if kind != "function":
        model = lower(model, kind)
        onnx.checker.check_model(model, full_check=True)
    (y,) = run(model, x)
    np.testing.assert_allclose(y, reference(x, kernels, bias, stride, activation), atol=2e-5)


@pytest.mark.parametrize("stages", [(), ("layer5",), ("layer0", "layer3")])
def test_whole_network(stages: tuple[str, ...]) -> None:
    model = to_onnx(random_checkpoint(md_stages=stages), batch=2)
    images = random_images(2, 64)
    expected = run(model, images)
    for kind, tolerance in (("padded", 0.0), ("split", 1e-4)):
        lowered = lower(model, kind)
        onnx.checker.check_model(lowered, full_check=True)
        assert not lowered.functions
        assert {node.domain for node in lowered.graph.node} == {""}
        assert [entry.domain for entry in lowered.opset_import] == [""]
        for found, wanted in zip(run(lowered, images), expected):
            assert np.abs(found - wanted).max() <= tolerance


def test_leaves_its_argument_alone(checkpoint: Checkpoint) -> None:
    model = to_onnx(checkpoint)
    before = model.SerializeToString(deterministic=True)
    for kind in ("padded", "split"):
        lower(model, kind)
    assert model.SerializeToString(deterministic=True) == before


def test_split_keeps_weights_quantized() -> None:
    model, _, _ = single((3, 5), (5, 3), 1, "relu6")
    quantized = insert(model, Placement(("md",), ()), {"X": np.float32(0.02)})
    x = np.random.default_rng(1).normal(size=(1, 8, 9, 9)).astype(np.float32)
    lowered = lower(quantized, "split")
    onnx.checker.check_model(lowered, full_check=True)
    np.testing.assert_allclose(run(lowered, x)[0], run(quantized, x)[0], atol=1e-5)

    made_by, constants = producers(lowered.graph), initializers(lowered.graph)
    split = next(node for node in lowered.graph.node if node.op_type == "Split")
    assert made_by[split.input[0]].op_type == "QuantizeLinear"
    whole = numpy_helper.to_array(initializers(quantized.graph)["W.quantized"])
    convolutions = [node for node in lowered.graph.node if node.op_type == "Conv"]
    for node, size, group in zip(convolutions, (3, 5), (slice(0, 5), slice(5, 8))):
        assert attributes(node)["group"] == group.stop - group.start
        data, weight = (made_by[name] for name in node.input[:2])
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert attributes(weight)["axis"] == 0
        inner = slice((5 - size) // 2, (5 + size) // 2)
        codes = numpy_helper.to_array(constants[weight.input[0]])
        np.testing.assert_array_equal(codes, whole[group, :, inner, inner])
        scales = numpy_helper.to_array(constants[weight.input[1]])
        np.testing.assert_array_equal(scales, numpy_helper.to_array(initializers(quantized.graph)["W.scale"])[group])


def test_split_activation_stays_behind_its_convolution() -> None:
    lowered = lower(single((3, 5), (4, 4), 1, "relu6")[0], "split")
    types = [node.op_type for node in lowered.graph.node]
    assert types == ["Split", "Conv", "Clip", "Conv", "Clip", "Concat"]
    assert all(
        (a, b) in {("Conv", "Clip"), ("Clip", "Conv"), ("Split", "Conv"), ("Clip", "Concat")}
        for a, b in pairwise(types)
    )


@pytest.mark.parametrize("kind", ["padded", "split"])
def test_float16(checkpoint: Checkpoint, kind: str) -> None:
    model, images = to_float16(to_onnx(checkpoint)), random_images(1, 64)
    lowered = lower(model, kind)
    onnx.checker.check_model(lowered, full_check=True)
    for found, wanted in zip(run(lowered, images), run(model, images)):
        np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


def test_unknown_kind(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="'fused' is none of"):
        lower(to_onnx(checkpoint), "fused")


@pytest.mark.parametrize("kind", ["function", "padded", "split"])
@pytest.mark.parametrize("half", [False, True])
def test_tensorrt_rtx_builds(tmp_path: Path, checkpoint: Checkpoint, kind: str, half: bool) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from edge.engine_from_onnx import build_engine

    model = to_onnx(checkpoint, batch=2)
    model = to_float16(model) if half else model
    onnx.save(model if kind == "function" else lower(model, kind), tmp_path / "model.onnx")
    facts = build_engine(
        tmp_path / "model.onnx", tmp_path / "engine", target="tensorrt-rtx", batch=2, compute_capabilities=["86"]
    )
    computed_in = {
        layer["Inputs"][0]["Datatype"]
        for layer in facts["layers"]
        if layer["LayerType"] == "correlation"
        if layer["Inputs"]
    }
    assert computed_in == {"Half" if half else "Float"}
