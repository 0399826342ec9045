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

from calibration.graph import consumers
from calibration.placement import Placement, activations, place
from calibration.quantize import insert, quantize

CHANNELS = 8


def model_of(nodes: str, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """image (1, 1, 8, 8) uint8 -> x (1, 8, 8, 8) -> `nodes`, of which each is named after its first output.

    Weights ``w...`` are 8x8 1x1 convolutions, ``half`` and ``half2`` 4x4; ``factor`` has one value a channel.
    """
    rng = np.random.default_rng(4)
    text = f"""
        <ir_version: 9, opset_import: ["" : 19]>
        g (uint8[1, 1, 8, 8] image) => ({", ".join(f"float {name}" for name in outputs)}) {{
            gray = Cast<to = 1>(image)
            x = Conv(gray, stem)
            {nodes}
        }}"""
    model = onnx.parser.parse_model(text)
    shapes = {"stem": (CHANNELS, 1, 1, 1), "factor": (CHANNELS, 1, 1), "half": (4, 4, 1, 1), "half2": (4, 4, 1, 1)}
    for node in model.graph.node:
        node.name = node.output[0]
    read = {name for node in model.graph.node for name in node.input}
    for name in sorted(name for name in read if name in shapes or name.startswith("w")):
        values = rng.normal(0, 0.4, shapes.get(name, (CHANNELS, CHANNELS, 1, 1))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
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
    quantized = insert(model, placement, dict.fromkeys(activations(model.graph, placement), np.float32(0.1)))
    inputs = {node.name: list(node.input) for node in quantized.graph.node}
    assert inputs["mean"] == ["a.dequantized"]
    assert inputs["product"][position] == "a.dequantized" and inputs["product"][1 - position] == "gate"
    assert [node.op_type for node in consumers(quantized.graph)["a"]] == ["QuantizeLinear"], "it leaves as int8 alone"
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
