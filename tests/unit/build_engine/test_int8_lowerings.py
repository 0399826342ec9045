"""An int8 `MDConv` is one unit in every lowering: its groups have one scale before them and one behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from build_engine.lowering import KINDS, lower
from calibration.graph import attributes, consumers, initializers, producers
from calibration.insertion import insert
from calibration.placement import Placement
from tests.native.plugin_interpreter import PluginInterpreter
from tests.unit.build_engine.random_networks import run
from tests.unit.build_engine.small_models import single

CODES = "last.quantized"
X_SCALE, Y_SCALE = np.float32(0.021), np.float32(0.047)

every_activation = pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish"])
every_stride = pytest.mark.parametrize("stride", [1, 2])
every_split = pytest.mark.parametrize(
    ("kernel_sizes", "splits"),
    [
        ((3, 5), (4, 4)),
        ((3, 5), (7, 2)),
        ((5, 3), (1, 6)),
        ((3, 5, 7), (2, 5, 4)),
        ((3, 5, 7), (9, 1, 1)),
        ((5,), (6,)),
    ],
    ids=str,
)


def quantized(
    kernel_sizes: tuple[int, ...], splits: tuple[int, ...], stride: int, activation: str, exact: bool = False
) -> onnx.ModelProto:
    """A Q/DQ model of one `MDConv` ``md``, whose int8 codes are the tensor `CODES`.

    `exact`: all scales are powers of two, and the bias is of whole steps, so that float32 rounds no sum.
    """
    model, _, _ = single(kernel_sizes, splits, stride, activation)
    graph = model.graph
    x_scale, y_scale = X_SCALE, Y_SCALE
    if exact:
        x_scale, y_scale = np.float32(2**-6), np.float32(2**-4)
        step = 2.0**-6
        constants = initializers(graph)
        values = numpy_helper.to_array(constants["W"])
        codes = np.rint(values / np.abs(values).max(axis=(1, 2, 3), keepdims=True) * 127)
        bias = np.rint(numpy_helper.to_array(constants["B"]) / (x_scale * step)) * x_scale * step
        constants["W"].CopyFrom(numpy_helper.from_array((codes * step).astype(np.float32), "W"))
        constants["B"].CopyFrom(numpy_helper.from_array(bias.astype(np.float32), "B"))
    graph.node[0].output[0] = "last"
    graph.node.append(helper.make_node("Relu", ["last"], ["Y"], name="reader"))
    graph.value_info.append(helper.make_tensor_value_info("last", TensorProto.FLOAT, ["N", sum(splits), None, None]))
    return insert(model, Placement(("md",), (("reader", 0),)), {"X": x_scale, "last": y_scale})


def images(channels: int, height: int = 13, width: int = 10) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.random.default_rng(8).normal(0, 0.8, (2, channels, height, width))
    return values.astype(np.float32)


def codes_of(model: onnx.ModelProto, kind: str, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """The int8 codes that lowering `kind` puts out, as wide integers: the plugin's by NumPy, in int32 sums."""
    lowered = lower(model, kind)
    lowered.graph.output.append(helper.make_tensor_value_info(CODES, TensorProto.INT8, None))
    codes = PluginInterpreter(lowered).run(x)[CODES] if kind == "plugin" else run(lowered, x, CODES)[0]
    assert codes.dtype == np.int8 and codes.std() > 10
    return codes.astype(np.int64)


def scale(graph: onnx.GraphProto, node: onnx.NodeProto) -> NDArray[Any]:
    """The scale of a Q or DQ node whose zero point is 0."""
    constants = initializers(graph)
    assert not numpy_helper.to_array(constants[node.input[2]]).any()
    return numpy_helper.to_array(constants[node.input[1]])


@every_activation
@every_stride
@every_split
def test_all_groups_have_the_scales_of_the_unit(
    kernel_sizes: tuple[int, ...], splits: tuple[int, ...], stride: int, activation: str
) -> None:
    """Of X and Y one each, the numbers that calibration found; of W one a channel, the groups' one after another."""
    model = quantized(kernel_sizes, splits, stride, activation)
    found: dict[str, list[NDArray[Any]]] = {}
    for kind in ("padded", "split"):
        graph = lower(model, kind).graph
        made_by, read_by = producers(graph), consumers(graph)
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert len(convolutions) == (len(kernel_sizes) if kind == "split" else 1)
        before = [made_by[node.input[0]] for node in convolutions]
        (source,) = {node.name for node in graph.node if node.op_type == "QuantizeLinear" and "X" in node.input}
        assert {reader.op_type for reader in read_by[source]} == {
            "Split" if len(convolutions) > 1 else before[0].op_type
        }
        assert {node.op_type for node in before} == {"DequantizeLinear"}
        assert {scale(graph, node).item() for node in before} == {X_SCALE.item()}
        (behind,) = read_by["last"]
        assert behind.op_type == "QuantizeLinear" and scale(graph, behind) == Y_SCALE
        for node in convolutions:  # from there to Y nothing is rounded
            (reader,) = read_by[node.output[0]]
            assert reader.op_type != "QuantizeLinear" or len(convolutions) == 1
        found[kind] = [np.concatenate([scale(graph, made_by[node.input[1]]) for node in convolutions])]
        found[kind] += [np.concatenate([numpy_helper.to_array(initializers(graph)[n.input[2]]) for n in convolutions])]
    graph = lower(model, "plugin").graph
    (node,) = (node for node in graph.node if node.op_type == "MDConv")
    facts = attributes(node)
    assert (np.float32(facts["x_scale"]), np.float32(facts["y_scale"])) == (X_SCALE, Y_SCALE)
    assert producers(graph)[node.input[0]].op_type == "QuantizeLinear" and list(node.output) == [CODES]
    constants = initializers(graph)
    found["plugin"] = [numpy_helper.to_array(constants[name]) for name in (node.input[3], node.input[2])]
    for kind in KINDS:
        for values, expected in zip(found[kind], found["padded"]):
            np.testing.assert_array_equal(values, expected)
            assert len(np.unique(values)) == sum(splits)


@every_activation
@every_stride
@every_split
def test_lowerings_give_the_same_codes_bit_for_bit(
    kernel_sizes: tuple[int, ...], splits: tuple[int, ...], stride: int, activation: str
) -> None:
    """With scales under which float32 is exact, all that is left to differ is a group's scale, weight or place."""
    model = quantized(kernel_sizes, splits, stride, activation, exact=True)
    x = images(sum(splits))
    padded = codes_of(model, "padded", x)
    np.testing.assert_array_equal(codes_of(model, "split", x), padded)
    plugin = codes_of(model, "plugin", x)
    if activation == "hardswish":  # its sixth is rounded in another order
        assert np.abs(plugin - padded).max() <= 1 and (plugin != padded).mean() < 0.01
    else:
        np.testing.assert_array_equal(plugin, padded)


@every_activation
@every_stride
@every_split
def test_lowerings_differ_by_rounding_of_a_tie_at_most(
    kernel_sizes: tuple[int, ...], splits: tuple[int, ...], stride: int, activation: str
) -> None:
    """With any scales the float32 sums of Q/DQ are rounded in the kernel's order: a code may tip to its neighbour."""
    model = quantized(kernel_sizes, splits, stride, activation)
    x = images(sum(splits), 20, 17)
    padded = codes_of(model, "padded", x)
    for kind in ("split", "plugin"):
        difference = np.abs(codes_of(model, kind, x) - padded)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
