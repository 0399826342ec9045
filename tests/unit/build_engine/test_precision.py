from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper, shape_inference

from build_engine.export import to_onnx
from build_engine.precision import leave_in_float16, to_float16
from build_engine.weights import random_weights
from calibration.graph import CONVOLUTIONS, initializers
from calibration.insertion import insert
from calibration.placement import activations, place
from edge.errors import UsageError
from mdconv.checkpoint import Checkpoint
from mdconv.networks import normalise, stages
from tests.unit.build_engine.random_networks import random_checkpoint, random_images, run


@pytest.mark.parametrize("size", [64, 45])
@pytest.mark.parametrize("stages", [(), ("layer5",), ("layer0", "layer2")])
def test_close_to_float32(size: int, stages: tuple[str, ...]) -> None:
    """As close as PyTorch in float16, which rounds as often: the network itself says how much that changes."""
    checkpoint = random_checkpoint(size, md_stages=stages)
    model = to_onnx(checkpoint, batch=2)
    half = to_float16(model)
    onnx.checker.check_model(half, full_check=True)
    images = random_images(2, size)
    (wanted,) = run(model, images, "logits")
    for found in run(half, images):
        assert found.dtype == np.float32
    with torch.inference_mode():
        pixels = normalise(torch.from_numpy(images)).half()
        peer = checkpoint.model.half()(pixels).float().numpy()
    (found,) = run(half, images, "logits")
    own, peers = (np.sqrt(np.mean((one - wanted) ** 2)) for one in (found, peer))
    assert 0 < own < 1.5 * peers


def test_types(checkpoint: Checkpoint) -> None:
    half = to_float16(to_onnx(checkpoint))
    types = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in half.graph.output}
    for node in half.graph.node:
        if node.op_type in CONVOLUTIONS:
            assert types[node.output[0]] == TensorProto.FLOAT16
            assert {initializers(half.graph)[name].data_type for name in node.input[1:]} == {TensorProto.FLOAT16}
    assert types["normalised"] == types["classifier.mean"] == types["cam"] == types["logits"] == TensorProto.FLOAT
    assert [node.name for node in half.graph.node if node.op_type == "Cast"] == [
        "normalise.cast",
        "normalised.to_float16",
        "cam.to_float32",
    ]
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    shape_inference.infer_shapes(half, check_type=True, strict_mode=True)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3", "shufflenet_v2"])
@pytest.mark.parametrize("every", [2, 5])
def test_layers_left_in_an_int8_model_are_float16_and_no_others(name: str, every: int) -> None:
    """Whatever lies beside a layer that is left; with all left, values are float32's but for rounding."""
    model = to_onnx(random_weights(name, {"md_stages": stages(name)}), 1, 64)
    placement = place(model.graph)
    layers = [*placement.weighted, *(layer for layer, _ in placement.skips)]
    left = layers[1::every]
    scales = dict.fromkeys(activations(model.graph, placement), np.float32(0.1))
    quantized = insert(model, placement.without(left), scales)
    mixed = leave_in_float16(quantized, left)
    onnx.checker.check_model(mixed, full_check=True)
    values = [*mixed.graph.value_info, *mixed.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    for node in mixed.graph.node:
        if node.name in left:
            assert {types.get(tensor, TensorProto.FLOAT16) for tensor in (*node.input, *node.output)} == {
                TensorProto.FLOAT16
            }
        elif node.op_type in CONVOLUTIONS:
            assert types[node.input[0]] == types[node.output[0]] == TensorProto.FLOAT
    assert {output.type.tensor_type.elem_type for output in mixed.graph.output} == {TensorProto.FLOAT}
    if not placement.whole:  # which are rounded for all that read them
        everything = leave_in_float16(insert(model, placement.without(layers), scales), layers)
        images = random_images(1, 64)
        (wanted,), (found,) = (run(each, images, "logits") for each in (model, everything))
        assert 0 < np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()


def test_argument_is_left_alone(checkpoint: Checkpoint) -> None:
    model = to_onnx(checkpoint)
    before = model.SerializeToString(deterministic=True)
    to_float16(model)
    assert model.SerializeToString(deterministic=True) == before


def test_weight_beyond_the_range_is_named(checkpoint: Checkpoint) -> None:
    model = to_onnx(checkpoint)
    tensor = initializers(model.graph)["head.weight"]
    values = numpy_helper.to_array(tensor).copy()
    values[0] = 7e4
    tensor.CopyFrom(numpy_helper.from_array(values, "head.weight"))
    with pytest.raises(UsageError, match=r"head\.weight reaches 7e\+04"):
        to_float16(model)


def test_quantized_model_is_refused(checkpoint: Checkpoint) -> None:
    model = to_onnx(checkpoint)
    placement = place(model.graph)
    scales = dict.fromkeys(activations(model.graph, placement), np.float32(0.1))
    with pytest.raises(UsageError, match="the model is quantized"):
        to_float16(insert(model, placement, scales))
