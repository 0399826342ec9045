"""What a graph costs: single layers counted by hand, whole networks by other counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pytorchcv.model_provider import get_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published_latencies import SIDE, network, with_batch
from build_engine.graph_cost import KernelCost, kernel_costs
from build_engine.lowering import lower
from edge.errors import UsageError
from tests.unit.build_engine.small_models import fix_shapes, single

FLOAT = TensorProto.FLOAT


def graph_of(
    nodes: list[onnx.NodeProto],
    shape: Sequence[int | str],
    outputs: Mapping[str, Sequence[int | str]],
    constants: dict[str, NDArray[Any]],
    dtype: int = FLOAT,
) -> onnx.ModelProto:
    """A model from ``X`` of `shape` to `outputs`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("X", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, size) for name, size in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def zeros(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.zeros(shape, dtype)


def conv(source: str, target: str, weight: str = "W", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], name=target, **attributes)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), name=output.split()[0], **attributes)


def quantized(name: str, target: str) -> list[onnx.NodeProto]:
    return [
        node("QuantizeLinear", f"{name} s z", f"{target}.q"),
        node("DequantizeLinear", f"{target}.q s z", target),
    ]


SCALE = {"s": np.float32(1), "z": np.int8(0)}
SCALE_BYTES = 5


def test_a_strided_convolution_with_bias_and_activation_is_one_kernel() -> None:
    """(1, 3, 7, 9) by 3x3 at stride 2 to (1, 8, 4, 5): 160 outputs of 27 products each."""
    nodes = [helper.make_node("Conv", ["X", "W", "B"], ["C"], name="c", strides=[2, 2], pads=[1] * 4)]
    nodes.append(node("Relu", "C", "Y"))
    model = graph_of(nodes, [1, 3, 7, 9], {"Y": [1, 8, 4, 5]}, {"W": zeros(8, 3, 3, 3), "B": zeros(8)})
    expected = KernelCost("c", "conv 3x3", "float32", "tensor", 4 * 189, 4 * (216 + 8), 4 * 160, 2 * 160 * 27)
    assert kernel_costs(model) == [expected]


@pytest.mark.parametrize(("height", "width", "stride"), [(7, 9, 1), (7, 9, 2), (1, 5, 2), (10, 3, 3)])
def test_a_depthwise_convolution_in_float16(height: int, width: int, stride: int) -> None:
    rows, columns = -(-height // stride), -(-width // stride)
    made = conv("X", "Y", group=6, strides=[stride] * 2, pads=[2] * 4)
    weight = {"W": zeros(6, 1, 5, 5, dtype=np.float16)}
    model = graph_of([made], [2, 6, height, width], {"Y": [2, 6, rows, columns]}, weight, TensorProto.FLOAT16)
    (cost,) = kernel_costs(model)
    assert cost[1:4] == ("depthwise 5x5", "float16", "cuda")
    outputs = 2 * 6 * rows * columns
    assert cost[4:] == (2 * 12 * height * width, 2 * 150, 2 * outputs, 2 * outputs * 25)


def test_a_group_of_several_channels_is_for_tensor_cores_and_a_gemm_counts_its_inner_length() -> None:
    grouped = graph_of([conv("X", "Y", group=3)], [1, 6, 4, 4], {"Y": [1, 9, 2, 2]}, {"W": zeros(9, 2, 3, 3)})
    (cost,) = kernel_costs(grouped)
    assert (cost.unit, cost.operations) == ("tensor", 2 * 36 * 18)
    for turned, shape, weight in ((0, [3, 10], (10, 7)), (1, [10, 3], (7, 10))):
        made = helper.make_node("Gemm", ["X", "W", "B"], ["Y"], name="g", transA=turned, transB=turned)
        (cost,) = kernel_costs(graph_of([made], shape, {"Y": [3, 7]}, {"W": zeros(*weight), "B": zeros(7)}))
        assert cost == KernelCost("g", "gemm", "float32", "tensor", 4 * 30, 4 * 77, 4 * 21, 2 * 21 * 10)


def mdconv(kind: str, size: int, stride: int) -> list[KernelCost]:
    """5 channels 3x3 and 3 channels 5x5 of a (1, 8, size, size + 2) input, relu6, float32."""
    model, _, _ = single((3, 5), (5, 3), stride, "relu6")
    fix_shapes(model, size, size + 2, stride)
    return kernel_costs(lower(model, kind))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [5, 8])
def test_the_lowerings_of_mdconv(size: int, stride: int) -> None:
    positions, outputs = size * (size + 2), -(-size // stride) * -(-(size + 2) // stride)
    bounds = 8  # relu6's two, float32
    (padded,) = mdconv("padded", size, stride)
    assert padded[1:] == (
        *("depthwise 5x5", "float32", "cuda", 32 * positions, 4 * (200 + 8) + bounds, 32 * outputs),
        2 * 8 * outputs * 25,
    )
    (plugin,) = mdconv("plugin", size, stride)
    products = 5 * outputs * 9 + 3 * outputs * 25
    assert plugin[1:] == ("MDConv 3x3 5x5", "float32", "cuda", 32 * positions, 832, 32 * outputs, 2 * products)
    cut, three, five, joined = mdconv("split", size, stride)
    assert (cut.kind, cut.read, cut.written, cut.operations) == ("split", 32 * positions, 32 * positions, 0)
    assert (three.kind, three.read, three.written) == ("depthwise 3x3", 20 * positions, 20 * outputs)
    assert (five.kind, five.read, five.written) == ("depthwise 5x5", 12 * positions, 12 * outputs)
    assert three.weights + five.weights == 4 * (5 * 9 + 3 * 25 + 8) + 2 * bounds
    assert three.operations + five.operations == 2 * products
    assert (joined.kind, joined.read, joined.written) == ("concat", 32 * outputs, 32 * outputs)


def test_a_residual_sum_is_part_of_the_convolution_before_it() -> None:
    """Even where the skip is itself a convolution that comes later in the file."""
    nodes = [conv("X", "a"), conv("a", "b"), conv("X", "skip"), node("Add", "b skip", "sum"), node("Relu", "sum", "Y")]
    nodes.append(conv("Y", "Z"))
    model = graph_of(nodes, [1, 4, 3, 5], {"Z": [1, 4, 3, 5]}, {"W": zeros(4, 4, 1, 1)})
    costs = {cost.name: cost for cost in kernel_costs(model)}
    assert {name: (cost.read, cost.written) for name, cost in costs.items()} == {
        "a": (240, 240),
        "b": (240, 240),
        "skip": (480, 240),
        "Z": (240, 240),
    }


def test_what_is_read_before_an_activation_keeps_it_from_being_fused() -> None:
    nodes = [conv("X", "C"), node("Relu", "C", "R"), conv("C", "Y"), conv("R", "Z")]
    model = graph_of(nodes, [1, 4, 3, 5], {"Y": [1, 4, 3, 5], "Z": [1, 4, 3, 5]}, {"W": zeros(4, 4, 1, 1)})
    assert [cost.kind for cost in kernel_costs(model)] == ["conv 1x1", "pointwise", "conv 1x1", "conv 1x1"]


def test_swish_is_fused_and_a_gate_is_not() -> None:
    nodes = [conv("X", "C"), node("Sigmoid", "C", "S"), node("Mul", "C S", "swish")]
    nodes += [node("GlobalAveragePool", "swish", "mean"), conv("mean", "gate"), node("Mul", "swish gate", "Y")]
    model = graph_of(nodes, [1, 4, 3, 5], {"Y": [1, 4, 3, 5]}, {"W": zeros(4, 4, 1, 1)})
    costs = kernel_costs(model)
    assert [cost.kind for cost in costs] == ["conv 1x1", "reduction", "conv 1x1", "pointwise"]
    assert [(cost.read, cost.written) for cost in costs] == [(240, 240), (240, 16), (16, 16), (256, 240)]


def test_between_int8_layers_a_value_is_one_byte() -> None:
    nodes = [*quantized("X", "x"), node("DequantizeLinear", "W s z", "w"), conv("x", "C", "w"), node("Relu", "C", "R")]
    nodes += [*quantized("R", "r"), conv("r", "Y", "w")]
    model = graph_of(nodes, [1, 4, 3, 5], {"Y": [1, 4, 3, 5]}, {"W": zeros(4, 4, 1, 1, dtype=np.int8), **SCALE})
    assert kernel_costs(model) == [
        KernelCost("x.q", "quantize", "float32", "cuda", 240, SCALE_BYTES, 60, 60),
        KernelCost("C", "conv 1x1", "int8", "tensor", 60, 16 + SCALE_BYTES, 60, 2 * 60 * 4),
        KernelCost("Y", "conv 1x1", "int8", "tensor", 60, 16, 240, 2 * 60 * 4),
    ]


def test_concatenations_move_int8_where_rounding_follows() -> None:
    nodes = [conv("X", "a"), conv("X", "b"), node("Concat", "a b", "both", axis=1), *quantized("both", "r")]
    nodes += [node("DequantizeLinear", "V s z", "v"), conv("r", "Y", "v")]
    weights = {"W": zeros(4, 4, 1, 1), "V": zeros(2, 8, 1, 1, dtype=np.int8)}
    costs = kernel_costs(graph_of(nodes, [1, 4, 3, 5], {"Y": [1, 2, 3, 5]}, {**weights, **SCALE}))
    assert [(cost.read, cost.written) for cost in costs] == [(240, 60), (240, 60), (120, 120), (120, 120)]


def test_the_batch_of_a_symbolic_axis() -> None:
    model = graph_of([conv("X", "Y")], ["N", 4, 3, 5], {"Y": ["N", 4, 3, 5]}, {"W": zeros(4, 4, 1, 1)})
    one, five = (kernel_costs(model, batch)[0] for batch in (1, 5))
    assert (five.read, five.weights, five.written) == (5 * one.read, one.weights, 5 * one.written)
    assert five.operations == 5 * one.operations == 2400


@pytest.mark.parametrize(
    ("nodes", "shape", "expected"),
    [
        ([node("Einsum", "X W", "Y", equation="ab,bc->ac")], [3, 4], "Einsum has no modelled cost"),
        ([conv("X", "Y")], [1, 4, "H", "W"], "the shape of tensor 'Y' is not known"),
        ([node("Cast", "X", "C", to=TensorProto.INT32), node("Cast", "C", "Y", to=FLOAT)], [3, 4], "'C' is int32"),
        ([node("Constant", "", "C", value_float=1.0), node("Add", "X C", "Y")], [3, 4], "constant 'C' is no tensor"),
    ],
)
def test_what_has_no_cost_is_refused(nodes: list[onnx.NodeProto], shape: list[int | str], expected: str) -> None:
    model = graph_of(nodes, shape, {}, {"W": zeros(4, 4, 1, 1)})
    model.graph.output.append(helper.make_empty_tensor_value_info("Y"))
    with pytest.raises(UsageError, match=expected):
        kernel_costs(model)


@pytest.mark.parametrize("name", ["mobilenetv2_w1", "mixnet_s"])
def test_operations_against_pytorch_s_counter(name: str) -> None:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        get_model(name).eval()(torch.zeros(1, 3, SIDE, SIDE))
    costs = kernel_costs(network(name, 1000))
    products = [cost for cost in costs if cost.kind.startswith(("conv", "depthwise"))]
    # The head of MixNet is a linear layer there and a convolution here, of the same products.
    assert sum(cost.operations for cost in products) == counter.get_total_flops()


def test_bytes_against_what_the_layers_of_pytorch_read_and_wrote() -> None:
    """MobileNet-v2: each convolution's input, output, weight and bias; a sum reads one more; and the mean."""
    seen: list[tuple[Any, Tensor, Tensor]] = []
    peer = get_model("mobilenetv2_w1").eval()
    for layer in peer.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append((layer, inputs[0], output)))
    with torch.inference_mode():
        peer(torch.zeros(1, 3, SIDE, SIDE))
    values = sum(x.numel() + y.numel() + layer.weight.numel() for layer, x, y in seen)
    biases = sum(y.shape[1] for _, _, y in seen[:-1])  # of batch norm; the head has none
    blocks = [(56, 24, 1), (28, 32, 2), (14, 64, 3), (14, 96, 2), (7, 160, 2)]  # with a sum: side, channels, how many
    sums = sum(side**2 * channels * count for side, channels, count in blocks)
    mean = 7 * 7 * 1280 + 1280
    costs = kernel_costs(network("mobilenetv2_w1", 1000))
    bounds = 8 * len(costs)  # at most: the two of each ReLU6
    assert 0 <= sum(cost.bytes for cost in costs) - 4 * (values + biases + sums + mean) <= bounds


def test_a_batch_reads_its_weights_once() -> None:
    model = network("resnet18", 3)
    one, four = (kernel_costs(with_batch(model, batch)) for batch in (1, 4))
    assert [cost.weights for cost in one] == [cost.weights for cost in four]
    assert [4 * cost.read for cost in one] == [cost.read for cost in four]
    assert [4 * cost.operations for cost in one] == [cost.operations for cost in four]
