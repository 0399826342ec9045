"""The form that ONNX Runtime's integer kernels take: the codes are those of the plugin's arithmetic, in NumPy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from build_engine.integer_form import integer_form
from build_engine.lowering import lower
from calibration.graph import initializers
from calibration.insertion import insert
from calibration.placement import activations, place
from calibration.whole_biases import make_biases_whole
from edge.backends.onnxruntime import RECENT, has_vnni, is_recent, open_session
from mdconv.networks import stages
from tests.native.plugin_interpreter import PluginInterpreter
from tests.system.quantized import portable
from tests.unit.build_engine.random_networks import random_images, run
from tests.unit.build_engine.test_int8_lowerings import (
    CODES,
    every_activation,
    every_split,
    every_stride,
    images,
    quantized,
)

pytestmark = pytest.mark.skipif(not is_recent(), reason=f"the backend runs no such form before ONNX Runtime {RECENT}")


def types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def formed(model: onnx.ModelProto) -> onnx.ModelProto:
    form = integer_form(model)
    assert form is not None
    return form


def codes_of(form: onnx.ModelProto, tensor: str, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """The int8 codes that the uint8 ones of `tensor` stand for."""
    (reader,) = (node for node in form.graph.node if node.op_type == "DequantizeLinear" and node.input[0] == tensor)
    zero = numpy_helper.to_array(initializers(form.graph)[reader.input[2]])
    shown = onnx.ModelProto()
    shown.CopyFrom(form)
    shown.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.UINT8, None))
    (codes,) = run(shown, x, tensor)
    if has_vnni():  # as `run` does it where there is none; here the backend does it so
        session = open_session(shown.SerializeToString(), 1, wide_sums=True)
        np.testing.assert_array_equal(session.run([tensor], {session.get_inputs()[0].name: x})[0], codes)
    return np.asarray(codes.astype(np.int64) - zero.astype(np.int64))


def plugins_codes(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.int64]:
    lowered = lower(model, "plugin")
    lowered.graph.output.append(helper.make_tensor_value_info(CODES, TensorProto.INT8, None))
    codes = PluginInterpreter(lowered).run(x)[CODES].astype(np.int64)
    assert codes.std() > 10
    return codes


@pytest.mark.parametrize("kind", ["padded", "split"])
@every_activation
@every_stride
@every_split
def test_the_codes_are_the_plugins_bit_for_bit(
    kernel_sizes: tuple[int, ...], splits: tuple[int, ...], stride: int, activation: str, kind: str
) -> None:
    """With scales under which float32 is exact; the smaller kernels, the margins and the bounds are all there."""
    model = quantized(kernel_sizes, splits, stride, activation, exact=True)
    form = formed(lower(model, kind)) if activation != "hardswish" else integer_form(lower(model, kind))
    if form is None:  # nothing bounds a hardswish to codes
        assert activation == "hardswish"
        return
    assert types(form)["QLinearConv"] == (len(kernel_sizes) if kind == "split" else 1)
    assert types(form)["Conv"] == 0
    x = images(sum(splits))
    np.testing.assert_array_equal(codes_of(form, CODES, x), plugins_codes(model, x))


@pytest.mark.parametrize("kind", ["padded", "split"])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@every_split
def test_with_any_scales_a_tie_is_all_that_differs(
    kernel_sizes: tuple[int, ...], splits: tuple[int, ...], activation: str, kind: str
) -> None:
    model = quantized(kernel_sizes, splits, 1, activation)
    make_biases_whole(model)
    x = images(sum(splits), 20, 17)
    difference = np.abs(codes_of(formed(lower(model, kind)), CODES, x) - plugins_codes(model, x))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


RESIDUAL = """
    <ir_version: 9, opset_import: ["" : 19]>
    g (float[N, I, H, W] x) => (float[N, O, H, W] y)
    <float xs = {0.02}, float ss = {0.03}, float ys = {0.05}, int8 zero = {0}>
    {
        xq = QuantizeLinear(x, xs, zero)
        xd = DequantizeLinear(xq, xs, zero)
        v = DequantizeLinear<axis = 0>(v_codes, v_scale, v_zeros)
        s = Conv(xd, v, v_bias)
        sq = QuantizeLinear(s, ss, zero)
        sd = DequantizeLinear(sq, ss, zero)
        w = DequantizeLinear<axis = 0>(w_codes, w_scale, w_zeros)
        c = Conv(sd, w, w_bias)
        a = Add(sd, c)
        yq = QuantizeLinear(a, ys, zero)
        y = DequantizeLinear(yq, ys, zero)
    }"""


def residual(inputs: int = 5, channels: int = 7) -> onnx.ModelProto:
    """A convolution v that is rounded, and one, w, that is added to it first."""
    rng = np.random.default_rng(inputs)
    model = onnx.parser.parse_model(RESIDUAL)
    for name, read in (("v", inputs), ("w", channels)):
        values = {
            "codes": rng.integers(-127, 128, (channels, read, 1, 1)).astype(np.int8),
            "scale": (rng.uniform(0.005, 0.02, channels) / np.sqrt(read)).astype(np.float32),
            "zeros": np.zeros(channels, np.int8),
            "bias": rng.normal(0, 0.5, channels).astype(np.float32),
        }
        model.graph.initializer.extend(numpy_helper.from_array(each, f"{name}_{what}") for what, each in values.items())
    for position, node in enumerate(model.graph.node):
        node.name = f"node{position}"
    return model


@pytest.mark.parametrize(("inputs", "channels"), [(5, 7), (16, 16), (24, 24), (144, 24), (58, 116), (1, 33)])
def test_a_residual_addition_reads_the_sum_in_float32(inputs: int, channels: int) -> None:
    """Against NumPy, in integers and in float64: the addition is not rounded before it is done."""
    model = residual(inputs, channels)
    make_biases_whole(model)
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(model.graph).items()}
    form = formed(model)
    found_types = types(form)
    assert (found_types["QLinearConv"], found_types["MatMulIntegerToFloat"], found_types["Conv"]) == (1, 1, 0)
    x = np.random.default_rng(1).normal(0, 1.2, (2, inputs, 17, 13)).astype(np.float32)

    def rounded(value: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
        return np.clip(np.rint(value / constants[scale].astype(np.float64)), -128, 127)

    def convolved(codes: NDArray[np.float64], scale: str, name: str) -> NDArray[np.float64]:
        sums = np.einsum("nchw,oc->nohw", codes, constants[f"{name}_codes"][:, :, 0, 0].astype(np.float64))
        step = constants[scale] * constants[f"{name}_scale"].astype(np.float64)
        return np.asarray(sums * step.reshape(1, -1, 1, 1) + constants[f"{name}_bias"].reshape(1, -1, 1, 1))

    skip = rounded(convolved(rounded(x.astype(np.float64), "xs"), "xs", "v"), "ss")
    expected = rounded(skip * constants["ss"] + convolved(skip, "ss", "w"), "ys")
    found = codes_of(form, "yq", x)
    assert (found != expected).mean() < 1e-3  # ties, in float32
    assert expected.std() > 10


def test_what_has_no_such_form_stays_as_it_is() -> None:
    model = residual()  # its biases are no whole steps
    form = formed(model)
    assert types(form)["QLinearConv"] == 0 and types(form)["MatMulIntegerToFloat"] == 1
    x = np.random.default_rng(1).normal(0, 1.5, (1, 5, 9, 7)).astype(np.float32)
    np.testing.assert_allclose(run(form, x, "y")[0], run(model, x, "y")[0], atol=0.051)
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in ("xq", "sq"))
    assert integer_form(shown) is None, "tensors that others read keep their codes"


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_largest_sums_do_not_saturate(kernel: int, depthwise: bool) -> None:
    """On no processor: neither where products are summed in 16 bits, nor where that is worked around."""
    channels = 64
    weight = np.full((channels, 1 if depthwise else channels, kernel, kernel), 127, np.int8)
    weight[::2] *= -1
    count = weight[0].size
    scale = np.float32(count)  # the largest sum is 127 codes
    constants = {
        **{"codes": weight, "bias": np.zeros(channels, np.float32), "scale": np.ones(channels, np.float32)},
        **{"zeros": np.zeros(channels, np.int8), "zero": np.int8(0), "one": np.float32(1), "ys": scale * 127},
    }
    margin = kernel // 2
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["xd", "w", "bias"], ["c"], group=channels if depthwise else 1, pads=[margin] * 4),
        helper.make_node("QuantizeLinear", ["c", "ys", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "zero"], ["y"]),
    ]
    for position, node in enumerate(nodes):
        node.name = f"node{position}"
    graph = helper.make_graph(
        nodes,
        "largest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    form = formed(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
    x = np.full((1, channels, 8, 8), 127, np.float32)
    inside = slice(margin, 8 - margin)
    found = codes_of(form, "yq", x)[:, :, inside, inside]
    np.testing.assert_array_equal(found, np.where(np.arange(channels) % 2, 127, -127).reshape(1, -1, 1, 1) + 0 * found)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mobilenet_v2", "padded"),
        ("mobilenet_v2", "split"),
        ("mobilenet_v3", "padded"),  # hardswish, squeeze and excite
        ("shufflenet_v2", "split"),  # concatenations, rounded or not
        ("densenet121", "padded"),  # concatenations in front of batch norm
    ],
)
def test_a_network_says_what_its_qdq_graph_says(name: str, kind: str) -> None:
    """Scales are powers of two, so that float32 rounds no sum: a single other code would spread through all layers."""
    model = portable(name, tuple(stages(name)))
    placement = place(model.graph)
    quantized = insert(model, placement, dict.fromkeys(activations(model.graph, placement), np.float32(2**-4)))
    for tensor in quantized.graph.initializer:
        if tensor.name.endswith(".weight.scale"):
            power = np.exp2(np.rint(np.log2(numpy_helper.to_array(tensor))))
            tensor.CopyFrom(numpy_helper.from_array(power.astype(np.float32), tensor.name))
    make_biases_whole(quantized)
    lowered = lower(quantized, kind)
    form = formed(lowered)
    onnx.checker.check_model(form)
    assert types(form)["QLinearConv"] + types(form)["MatMulIntegerToFloat"] > types(lowered)["Conv"] / 4
    given = random_images(2, 64)[:1]
    expected, found = run(lowered, given, "logits")[0], run(form, given, "logits")[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
