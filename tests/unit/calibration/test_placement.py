"""Where an int8 graph rounds: each rule on a graph of a few nodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.graph import attributes, consumers
from calibration.insertion import insert
from calibration.placement import Placement, activations, place
from calibration.quantize import quantize

CHANNELS = 8


def model_of(nodes: str, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """image (1, 1, 8, 8) uint8 -> x (1, 8, 8, 8) -> `nodes`, of which each is named after its first output.

    Weights ``w...`` are 8x8 1x1 convolutions, ``half`` and ``half2`` 4x4, ``md...`` those of an `MDConv` with a 5x5
    kernel; ``factor`` and ``bias`` have one value a channel.
    """
    rng = np.random.default_rng(4)
    text = f"""
        <ir_version: 9, opset_import: ["" : 19, "mdconv" : 1]>
        g (uint8[1, 1, 8, 8] image) => ({", ".join(f"float {name}" for name in outputs)}) {{
            gray = Cast<to = 1>(image)
            x = Conv(gray, stem)
            {nodes}
        }}"""
    model = onnx.parser.parse_model(text)
    shapes: dict[str, tuple[int, ...]] = {"stem": (CHANNELS, 1, 1, 1), "half": (4, 4, 1, 1), "half2": (4, 4, 1, 1)}
    shapes |= {"factor": (CHANNELS, 1, 1), "bias": (CHANNELS,), "md": (CHANNELS, 1, 5, 5), "md2": (CHANNELS, 1, 5, 5)}
    for node in model.graph.node:
        node.name = node.output[0]
    read = {name for node in model.graph.node for name in node.input}
    for name in sorted(name for name in read if name in shapes or name.startswith("w")):
        values = rng.normal(0, 0.4, shapes.get(name, (CHANNELS, CHANNELS, 1, 1))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for name in read & {"low", "high", "level"}:
        model.graph.initializer.append(numpy_helper.from_array(np.array(6 * (name == "high"), np.float32), name))
    constants = {"apart": [0, 2, 4, -1], "together": [0, 8, 8, 8], "halves": [4, 4]}
    for name in read & constants.keys():
        model.graph.initializer.append(numpy_helper.from_array(np.array(constants[name], np.int64), name))
    return model


class Images:
    """Four noisy ones."""

    digest = "-"
    images = np.random.default_rng(6).integers(0, 256, (4, 1, 1, 8, 8), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return iter(self.images)


def placed(nodes: str) -> Placement:
    return place(model_of(nodes).graph)


def quantized_inputs(model: onnx.ModelProto) -> dict[str, list[str]]:
    """What each node of `model` reads once the pairs are in, by the node's name."""
    return {node.name: list(node.input) for node in quantized_graph(model).node}


def quantized_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    placement = place(model.graph)
    scales = dict.fromkeys(activations(model.graph, placement), np.float32(0.1))
    return insert(model, placement, scales).graph


def md(x: str, weight: str = "md", activation: str = "relu6") -> str:
    """An `MDConv` of `x`, as text."""
    facts = "kernel_sizes = [3, 5], channel_splits = [4, 4], group = 8, pads = [2, 2, 2, 2], strides = [1, 1]"
    return f'mdconv.MDConv<{facts}, stride = 1, activation = "{activation}">({x}, {weight}, bias)'


ACTIVATIONS = ["Relu(a)", "HardSwish(a)", "Clip(a, low, high)", "LeakyRelu(a)"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_stands_between_a_convolution_and_its_activation(activation: str) -> None:
    model = model_of(f"a = Conv(x, w1)\n bent = {activation}\n b = Conv(bent, w2)\n y = Conv(b, w3)")
    assert activations(model.graph, place(model.graph)) == ["gray", "x", "bent"]
    graph = quantized_graph(model)
    assert [node.name for node in consumers(graph)["a"]] == ["bent"]
    inputs = quantized_inputs(model)
    assert inputs["bent"][0] == "a" and inputs["b"] == ["bent.dequantized", "w2.dequantized"]


def test_a_convolution_reads_one_scale_of_x_and_one_a_channel_of_w_and_a_float_bias() -> None:
    graph = quantized_graph(model_of("a = Conv(x, w1, bias)\n y = Conv(a, w2)"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    assert list(nodes["a"].input) == ["x.dequantized", "w1.dequantized", "bias"]
    assert constants["bias"].dtype == np.float32
    assert [node.op_type for node in graph.node if "bias" in node.input] == ["Conv"]
    x, weight = nodes["x.quantized"], nodes["w1.dequantized"]
    assert constants[x.input[1]].shape == constants[x.input[2]].shape == ()
    assert constants[weight.input[0]].dtype == np.int8 and "w1" not in constants
    assert constants[weight.input[1]].shape == constants[weight.input[2]].shape == (CHANNELS,)
    assert attributes(weight)["axis"] == 0
    zeros = {node.input[2] for node in graph.node if "Linear" in node.op_type}
    assert all(constants[name].dtype == np.int8 and not constants[name].any() for name in zeros)


def test_normalisation_and_the_last_convolution_stay_float() -> None:
    model = model_of(
        """
        centred = Sub(gray, level)
        scaled = Mul(centred, level)
        a = Conv(scaled, stem)
        y = Conv(a, w1, bias)"""
    )
    graph = model.graph
    del graph.node[1]  # the convolution of gray values
    assert place(graph) == Placement(("a",), ())
    inputs = quantized_inputs(model)
    assert inputs["centred"] == ["gray", "level"] and inputs["scaled"] == ["centred", "level"]
    assert inputs["a"] == ["scaled.dequantized", "stem.dequantized"]
    assert inputs["y"] == ["a", "w1", "bias"]


def test_several_readers_of_a_tensor_share_one_pair() -> None:
    model = model_of(
        "a = Relu(x)\n b = Conv(a, w1)\n c = Conv(a, w2)\n s = Add(a, b)\n t = Add(s, c)\n y = Conv(t, w3)"
    )
    placement = place(model.graph)
    assert placement == Placement(("x", "b", "c"), (("s", 0), ("t", 0)))
    assert activations(model.graph, placement) == ["gray", "a", "s"]
    graph = quantized_graph(model)
    assert [node.name for node in consumers(graph)["a"]] == ["a.quantized"]
    assert [node.name for node in consumers(graph)["a.dequantized"]] == ["b", "c", "s"]


@pytest.mark.parametrize(
    ("addition", "skips"),
    [
        ("Add(a, b)", [("s", 0)]),
        ("Add(b, a)", [("s", 1)]),
        ("Add(a, c)", []),  # neither comes straight from a convolution
        ("Add(b, d)", [("s", 0)]),  # both do: the first is the skip
        ("Add(d, b)", [("s", 0)]),
    ],
)
def test_an_addition_has_a_pair_on_the_skip_alone(addition: str, skips: list[tuple[str, int]]) -> None:
    model = model_of(
        f"""
        a = Relu(x)
        b = Conv(a, w1)
        before = Conv(a, w2)
        c = Relu(before)
        d = Conv(c, w3)
        s = {addition}
        y = Conv(s, w4)"""
    )
    assert place(model.graph).skips == tuple(skips)
    given = next(list(node.input) for node in model.graph.node if node.name == "s")
    rounded = [position for _, position in skips]
    assert quantized_inputs(model)["s"] == [
        f"{name}.dequantized" if position in rounded else name for position, name in enumerate(given)
    ]


@pytest.mark.parametrize("other", ["z = Relu(b)", "z = Conv(b, w4)"])
def test_an_addition_of_a_convolution_that_others_read_too_stays_float(other: str) -> None:
    nodes = f"a = Relu(x)\n b = Conv(a, w1)\n s = Add(a, b)\n {other}\n t = Conv(z, w2)\n y = Conv(s, w3)"
    assert placed(nodes).skips == ()


def test_an_addition_of_a_convolution_that_is_an_output_stays_float() -> None:
    nodes = "a = Relu(x)\n b = Conv(a, w1)\n s = Add(a, b)\n y = Conv(s, w3)"
    assert place(model_of(nodes).graph).skips == (("s", 0),)
    assert place(model_of(nodes, ("y", "b")).graph).skips == ()


@pytest.mark.parametrize(
    "nodes",
    [
        "b = Conv(x, w1)\n s = Add(b, factor)\n y = Conv(s, w2)",  # of a constant
        "b = Conv(x, w1)\n s = Add(factor, b)\n y = Conv(s, w2)",
        "b = Conv(x, w1)\n v = GlobalAveragePool(x)\n s = Add(v, b)\n y = Conv(s, w2)",  # of a vector
        "v = GlobalAveragePool(x)\n b = Conv(v, w1)\n s = Add(v, b)\n y = Conv(s, w2)",  # of vectors alone
        "a = Relu(x)\n b = Conv(a, w1)\n s = Add(a, b)\n y = Relu(s)",  # with the convolution that stays float
    ],
)
def test_what_is_no_residual_addition_of_a_quantized_convolution_stays_float(nodes: str) -> None:
    model = model_of(nodes)
    assert place(model.graph).skips == ()
    given = {node.name: list(node.input) for node in model.graph.node}
    assert quantized_inputs(model)["s"] == given["s"]


def test_a_gate_of_a_constant_has_no_pair() -> None:
    model = model_of("v = GlobalAveragePool(x)\n scaled = Mul(v, factor)\n s = Mul(factor, scaled)\n y = Conv(s, w1)")
    assert place(model.graph) == Placement(("x",), ())
    assert quantized_inputs(model)["s"] == ["factor", "scaled"]


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "hardswish"])
def test_an_mdconv_is_rounded_as_one_unit(activation: str) -> None:
    """One pair for both groups before it, one behind it and its activation, one scale a channel of all groups."""
    model = model_of(f"a = Conv(x, w1)\n m = {md('a', activation=activation)}\n b = Conv(m, w2)\n y = Conv(b, w3)")
    placement = place(model.graph)
    assert placement == Placement(("x", "a", "m", "b"), ())
    assert activations(model.graph, placement) == ["gray", "x", "a", "m"]
    graph = quantized_graph(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert quantized_inputs(model)["m"] == ["a.dequantized", "md.dequantized", "bias"]
    assert [node.op_type for node in consumers(graph)["m"]] == ["QuantizeLinear"]
    assert constants["a.scale"].shape == constants["m.scale"].shape == ()
    assert constants["md.scale"].shape == (CHANNELS,)


def test_an_mdconv_of_the_head_and_the_last_one_stay_float() -> None:
    nodes = f"a = Conv(x, w1)\n v = GlobalAveragePool(a)\n m = {md('v')}\n y = {md('m', 'md2', 'none')}"
    assert placed(nodes) == Placement(("x", "a"), ())


@pytest.mark.parametrize(("product", "position"), [("Mul(a, gate)", 0), ("Mul(gate, a)", 1)])
def test_squeeze_and_excite_reads_its_channels_through_one_pair(product: str, position: int) -> None:
    model = model_of(
        f"""
        b = Conv(x, w1)
        a = HardSwish(b)
        mean = GlobalAveragePool(a)
        squeezed = Conv(mean, w2)
        bent = Relu(squeezed)
        expanded = Conv(bent, w3)
        gate = HardSigmoid(expanded)
        product = {product}
        project = Conv(product, w4)
        y = Conv(project, w5)"""
    )
    placement = place(model.graph)
    assert placement == Placement(("x", "b", "project"), (("product", position),), ("a",))
    inputs = quantized_inputs(model)
    assert inputs["mean"] == ["a.dequantized"]
    assert inputs["product"][position] == "a.dequantized" and inputs["product"][1 - position] == "gate"
    assert [node.op_type for node in consumers(quantized_graph(model))["a"]] == ["QuantizeLinear"], (
        "it leaves as int8 alone"
    )
    assert inputs["squeezed"] == ["mean", "w2"] and inputs["expanded"] == ["bent", "w3"], "vectors stay float32"
    assert inputs["project"] == ["product.dequantized", "w4.dequantized"]


CHAIN = """
    first, second = Split<axis = 1>(x, halves)
    a = Conv(first, half)
    joined = Concat<axis = 1>(a, second)
    grouped = Reshape(joined, apart)
    mixed = Transpose<perm = [0, 2, 1, 3]>(grouped)
    shuffled = Reshape(mixed, together)
    kept, changed = Split<axis = 1>(shuffled, halves)
    b = Conv(changed, half2)
    again = Concat<axis = 1>(kept, b)
    largest = MaxPool<kernel_shape = [2, 2]>(again)
    c = Conv(largest, w1)
    y = Conv(c, w2)"""


def test_concatenations_that_are_only_moved_have_pairs_of_one_scale() -> None:
    placement = placed(CHAIN)
    assert placement.weighted == ("x", "a", "b", "c") and placement.skips == ()
    assert placement.whole == ("joined", "again")
    assert placement.tied == (("joined", "changed", "again", "largest"),)


def test_what_passes_through_tied_concatenations_is_rounded_once() -> None:
    model = model_of(CHAIN)
    quantized, record = quantize(model, Images(), "minmax")
    group = record["placement"]["tied"][0]
    assert len({record["tensors"][name]["scale"] for name in group}) == 1
    largest = max(max(-record["tensors"][name]["low"], record["tensors"][name]["high"]) for name in group)
    assert record["tensors"]["joined"]["scale"] == pytest.approx(largest / 127)
    names = ["kept", "again.quantized", "again.dequantized"]
    quantized.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"])
    kept, codes, again = session.run(names, {"image": Images.images[0]})
    assert codes.dtype == np.int8 and len(np.unique(codes)) > 50
    np.testing.assert_array_equal(again[:, :4], kept)


@pytest.mark.parametrize(
    "reader",
    [
        "scaled = Mul(joined, factor)\n bent = Relu(scaled)\n z = Conv(bent, w1)",  # a densely connected block
        "bent = Relu(joined)\n z = Conv(bent, w1)",
        "v = Conv(joined, w1)\n bent = Relu(joined)\n z = Add(v, bent)",  # its values are also read otherwise
    ],
)
def test_other_concatenations_stay_float(reader: str) -> None:
    placement = placed(
        f"""
        a = Conv(x, w3)
        joined = Concat<axis = 0>(a, x)
        {reader}
        y = Conv(z, w2)"""
    )
    assert placement.tied == () and placement.whole == ()


def test_a_concatenation_that_is_an_output_stays_float() -> None:
    nodes = "a = Conv(x, w1)\n joined = Concat<axis = 0>(a, x)\n z = Conv(joined, w2)\n y = Conv(z, w3)"
    assert place(model_of(nodes).graph).whole == ("joined",)
    assert place(model_of(nodes, ("y", "joined")).graph).whole == ()


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_a_pool_is_followed_by_a_pair(pool: str) -> None:
    model = model_of(f"a = Relu(x)\n p = {pool}<kernel_shape = [2, 2]>(a)\n b = Conv(p, w1)\n y = Conv(b, w2)")
    placement = place(model.graph)
    assert activations(model.graph, placement) == ["gray", "p"]
    assert placement.tied == ()
    inputs = quantized_inputs(model)
    assert inputs["p"] == ["a"], "it has none itself"
    assert inputs["b"][0] == "p.dequantized"


def test_a_hidden_layer_of_the_head_stays_float() -> None:
    placement = placed(
        """
        a = Conv(x, w1)
        mean = GlobalAveragePool(a)
        hidden = Conv(mean, w2)
        bent = HardSwish(hidden)
        y = Conv(bent, w3)"""
    )
    assert placement == Placement(("x", "a"), ())


def test_what_calibration_json_says() -> None:
    _, record = quantize(model_of("a = Relu(x)\n b = Conv(a, w1)\n s = Add(a, b)\n y = Conv(s, w2)"), Images())
    assert record["placement"] == {
        "weighted": {"x": "gray", "b": "a"},
        "skips": [["s", 0, "a"]],
        "whole": [],
        "tied": [],
    }
