"""The plugin lowering: what the plugin's nodes look like, what becomes of the others, and that nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from build_engine.export import to_onnx
from build_engine.lowering import OPSET, kept_padded, lower, mdconv_function
from build_engine.precision import to_float16
from calibration.graph import add_constant, attributes, consumers, initializers, producers
from calibration.insertion import insert, scale_of
from calibration.placement import Placement, activations, place
from calibration.quantize import observe
from edge.errors import UsageError
from mdconv.checkpoint import Checkpoint
from tests.native.plugin_interpreter import PluginInterpreter
from tests.unit.build_engine.random_networks import random_checkpoint, random_images, run
from tests.unit.build_engine.small_models import chain

OWN = {"kernel_sizes", "channel_splits", "stride", "activation", "plugin_version", "plugin_namespace"}


class FewImages(list[Any]):
    digest = "-"


def quantized_network(**config: Any) -> onnx.ModelProto:
    """A random network with ranges from random images."""
    model = to_onnx(random_checkpoint(**config))
    placement = place(model.graph)
    histograms = observe(model, activations(model.graph, placement), FewImages(np.split(random_images(4, 64), 4)))
    scales = {name: scale_of(max(-histogram.low, histogram.high)) for name, histogram in histograms.items()}
    return insert(model, placement, scales)


def quantized_chain(*kinds: str, **changes: Any) -> onnx.ModelProto:
    """A chain whose last tensor is quantized too, then read by a Relu."""
    model = chain(*kinds, **changes)
    model.graph.node[-1].output[0] = "last"
    model.graph.node.append(helper.make_node("Relu", ["last"], ["Y"], name="reader"))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("last", 1, ["N", 8, None, None]))
    names = ["X", *(f"T{i}" for i in range(1, len(kinds))), "last"]
    placement = Placement(tuple(f"md{i}" for i in range(len(kinds))), (("reader", 0),))
    return insert(model, placement, {name: np.float32(0.03 + 0.01 * i) for i, name in enumerate(names)})


def run_chain(model: onnx.ModelProto) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Y of `model` in ONNX Runtime, and of its plugin lowering."""
    x = np.random.default_rng(5).normal(size=(2, 8, 9, 7)).astype(np.float32)
    return run(model, x, "Y")[0], PluginInterpreter(lower(model, "plugin")).run(x)["Y"]


def assert_alike(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Equal but for a few elements, behind codes that were rounded the other way."""
    difference = np.abs(found - expected)
    assert np.quantile(difference, 0.95) <= 1e-4
    assert difference.max() <= 0.2
    assert expected.std() > 0.5


def nodes_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


@pytest.mark.parametrize("half", [False, True])
def test_float_nodes_stay_as_they_are_but_for_the_functions_attributes(checkpoint: Checkpoint, half: bool) -> None:
    model = to_float16(to_onnx(checkpoint)) if half else to_onnx(checkpoint)
    before = model.SerializeToString(deterministic=True)
    lowered = lower(model, "plugin")
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(lowered, full_check=True)
    assert kept_padded(model) == {}
    assert not lowered.functions
    assert {entry.domain: entry.version for entry in lowered.opset_import} == {"": OPSET, "mdconv": 1}
    found = [node for node in lowered.graph.node if node.op_type == "MDConv"]
    assert [node.name for node in found] == [f"layer5.{i}.depthwise" for i in range(3)]
    for node in found:
        given = nodes_of(model)[node.name]
        assert node.domain == "mdconv"
        assert (list(node.input), list(node.output)) == (list(given.input), list(given.output))
        assert attributes(node) == {name: value for name, value in attributes(given).items() if name in OWN}
        assert set(attributes(node)) == OWN


@pytest.mark.parametrize(
    ("precision", "stages", "tolerance"),
    [
        ("fp32", ("layer5",), 1e-5),
        ("fp32", ("layer0", "layer2", "layer6"), 1e-5),
        ("fp16", ("layer5",), 0.001),
        ("fp16", ("layer0", "layer2", "layer6"), 0.01),
    ],
)
def test_whole_network(precision: str, stages: tuple[str, ...], tolerance: float) -> None:
    config: dict[str, Any] = {"md_stages": stages, "kernel_sizes": (3, 5, 7), "ratios": (2, 1, 1)}
    model = to_onnx(random_checkpoint(**config))
    model = to_float16(model) if precision == "fp16" else model
    image = random_images(1, 64)
    lowered = lower(model, "plugin")
    found = PluginInterpreter(lowered).run(image)
    assert sum(node.op_type == "MDConv" for node in lowered.graph.node) >= 3
    for name, expected in zip(("logits", "cam"), run(model, image, "logits", "cam")):
        assert np.abs(found[name] - expected).mean() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("stages", [("layer5",), ("layer0", "layer2", "layer6")])
def test_each_int8_node_of_a_whole_network(stages: tuple[str, ...]) -> None:
    """Each is given what the Q/DQ graph has there, so that its codes differ by their own rounding alone.

    End to end, random weights blow up the few codes that are rounded the other way; trained weights are compared so in
    tests/system/test_accuracy.py.
    """
    model = quantized_network(md_stages=stages, kernel_sizes=(3, 5, 7), ratios=(2, 1, 1))
    lowered = lower(model, "plugin")
    nodes = [node for node in lowered.graph.node if node.op_type == "MDConv"]
    assert len(nodes) >= 3
    names = list(dict.fromkeys(name for node in nodes for name in (node.input[0], node.output[0])))
    for graph in (model.graph, lowered.graph):
        graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None) for name in names)
    image = random_images(1, 64)
    expected = dict(zip(names, run(model, image, *names)))
    found = PluginInterpreter(lowered).run(image, {node.input[0]: expected[node.input[0]] for node in nodes})
    for node in nodes:
        codes = expected[node.output[0]].astype(int)
        difference = np.abs(codes - found[node.output[0]])
        assert codes.std() > 10
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_int8_nodes_take_the_scales_of_the_pairs_around_them() -> None:
    model = quantized_network()
    assert kept_padded(model) == {}
    lowered = lower(model, "plugin")
    onnx.checker.check_model(lowered, full_check=True)
    made_by, read_by = producers(lowered.graph), consumers(lowered.graph)
    given_by, given_readers = producers(model.graph), consumers(model.graph)
    given, found = initializers(model.graph), initializers(lowered.graph)
    names = [node.name for node in model.graph.node if node.op_type == "MDConv"]
    assert len(names) == 3
    for name in names:
        before, node = nodes_of(model)[name], nodes_of(lowered)[name]
        pair, weight = given_by[before.input[0]], given_by[before.input[1]]
        (quantize,) = given_readers[before.output[0]]
        facts = attributes(node)
        assert set(facts) == OWN | {"x_scale", "y_scale"}
        assert np.float32(facts["x_scale"]) == numpy_helper.to_array(given[pair.input[1]])
        assert np.float32(facts["y_scale"]) == numpy_helper.to_array(given[quantize.input[1]])
        assert list(node.input) == [pair.input[0], weight.input[0], before.input[2], weight.input[1]]
        codes, bias, scales = (numpy_helper.to_array(found[name]) for name in node.input[1:])
        assert (codes.dtype, bias.dtype, scales.dtype) == (np.int8, np.float32, np.float32)
        np.testing.assert_array_equal(codes, numpy_helper.to_array(given[weight.input[0]]))
        assert scales.shape == bias.shape == codes.shape[:1]
        # No pair around it: a Q before, a DQ behind.
        assert made_by[node.input[0]].op_type == "QuantizeLinear"
        assert {reader.op_type for reader in read_by[node.output[0]]} == {"DequantizeLinear"}
        assert [reader.name for reader in read_by[node.input[0]]] == [name]
    types = {value.name: value.type.tensor_type.elem_type for value in lowered.graph.value_info}
    assert all(types[nodes_of(lowered)[name].output[0]] == onnx.TensorProto.INT8 for name in names)
    assert set(types) <= set(made_by)


@pytest.mark.parametrize("kind", ["none", "relu", "relu6", "hardswish"])
def test_int8_codes_differ_from_the_pairs_by_rounding_at_most(kind: str) -> None:
    """In the Q/DQ graph the same sum is made in float32: a code may tip to its neighbour, rarely."""
    model = quantized_chain(kind)
    lowered = lower(model, "plugin")
    for graph in (model.graph, lowered.graph):
        graph.output.append(helper.make_tensor_value_info("last.quantized", onnx.TensorProto.INT8, None))
    x = np.random.default_rng(5).normal(size=(2, 8, 19, 23)).astype(np.float32)
    (expected,) = run(model, x, "last.quantized")
    difference = np.abs(expected.astype(int) - PluginInterpreter(lowered).run(x)["last.quantized"])
    assert expected.std() > 10
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize(
    ("op_type", "bounds", "kind"), [("Relu", (), "relu"), ("HardSwish", (), "hardswish"), ("Clip", (0, 6), "relu6")]
)
@pytest.mark.parametrize("quantized", [False, True])
def test_an_activation_behind_a_node_becomes_part_of_it(
    op_type: str, bounds: tuple[float, ...], kind: str, quantized: bool
) -> None:
    model = with_activation(op_type, bounds, quantized)
    lowered = lower(model, "plugin")
    assert [attributes(node)["activation"] for node in lowered.graph.node if node.op_type == "MDConv"] == [kind, "none"]
    assert op_type not in [node.op_type for node in lowered.graph.node if node.name == "behind"]
    assert_alike(*run_chain(model))


@pytest.mark.parametrize("spoilt", ["bounds", "two readers", "network output", "there is one"])
def test_an_activation_stays_where_it_cannot_be_fused(spoilt: str) -> None:
    model = with_activation("Clip", (-1, 6) if spoilt == "bounds" else (0, 6), quantized=False)
    first = nodes_of(model)["md0"].output[0]
    if spoilt == "two readers":
        model.graph.node.append(helper.make_node("Relu", [first], ["Z"], name="other"))
        model.graph.output.append(helper.make_tensor_value_info("Z", onnx.TensorProto.FLOAT, ["N", 8, None, None]))
    elif spoilt == "network output":
        model.graph.output.append(helper.make_tensor_value_info(first, onnx.TensorProto.FLOAT, ["N", 8, None, None]))
    elif spoilt == "there is one":
        set_activation(model, "relu")
    lowered = lower(model, "plugin")
    assert nodes_of(lowered)["behind"].op_type == "Clip"
    assert_alike(*run_chain(model))


def with_activation(op_type: str, bounds: tuple[float, ...], quantized: bool) -> onnx.ModelProto:
    """Two `MDConv` without activation, and the node ``behind`` between them."""
    model = quantized_chain("none", "none") if quantized else chain("none", "none")
    graph = model.graph
    first = nodes_of(model)["md0"]
    target, first.output[0] = first.output[0], "between"
    limits = [add_constant(graph, f"limit{i}", np.float32(value)) for i, value in enumerate(bounds)]
    node = helper.make_node(op_type, ["between", *limits], [target], name="behind")
    position = [node.name for node in graph.node].index("md0") + 1
    graph.node.insert(position, node)
    graph.value_info.append(helper.make_tensor_value_info("between", onnx.TensorProto.FLOAT, ["N", 8, None, None]))
    return model


def set_activation(model: onnx.ModelProto, kind: str) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "activation":
                attribute.s = kind.encode()
    del model.functions[:]
    model.functions.append(mdconv_function(kind))


def test_a_shared_input_keeps_its_dequantization_for_the_other_reader() -> None:
    model = quantized_chain("relu6", "relu6")
    model.graph.node.append(helper.make_node("Relu", ["T1.dequantized"], ["Z"], name="other"))
    model.graph.output.append(helper.make_tensor_value_info("Z", onnx.TensorProto.FLOAT, ["N", 8, None, None]))
    assert kept_padded(model) == {}
    lowered = lower(model, "plugin")
    nodes = nodes_of(lowered)
    assert nodes["md1"].input[0] == nodes["md0"].output[0] == "T1.quantized"
    assert nodes["T1.dequantized"].op_type == "DequantizeLinear"
    assert [node.name for node in consumers(lowered.graph)["T1.quantized"]] == ["T1.dequantized", "md1"]
    x = np.random.default_rng(5).normal(size=(1, 8, 9, 7)).astype(np.float32)
    found = PluginInterpreter(lowered).run(x)
    for name, expected in zip(("Y", "Z"), run(model, x, "Y", "Z")):
        assert_alike(found[name], expected)


def test_several_readers_of_one_scale_share_the_int8_output() -> None:
    model = quantized_chain("relu6")
    add_pair(model, "last", np.float32(0.04), "Z")
    assert kept_padded(model) == {}
    lowered = lower(model, "plugin")
    assert [node.op_type for node in lowered.graph.node].count("QuantizeLinear") == 1  # that of X
    x = np.random.default_rng(5).normal(size=(1, 8, 9, 7)).astype(np.float32)
    found = PluginInterpreter(lowered).run(x)
    for name, expected in zip(("Y", "Z"), run(model, x, "Y", "Z")):
        assert_alike(found[name], expected)


def add_pair(model: onnx.ModelProto, source: str, scale: np.float32, output: str) -> None:
    """Another Q/DQ pair behind `source`, to the new network output `output`."""
    constants = [
        add_constant(model.graph, f"{output}.scale", np.asarray(scale)),
        add_constant(model.graph, f"{output}.zero", np.array(0, np.int8)),
    ]
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [source, *constants], [f"{output}.q"], name=f"{output}.q"),
            helper.make_node("DequantizeLinear", [f"{output}.q", *constants], [output], name=f"{output}.dq"),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N", 8, None, None]))


def refused_models() -> dict[str, tuple[onnx.ModelProto, str]]:
    """Chains whose second `MDConv` the plugin cannot have, and a part of the reason."""
    models = {
        "kernel size": (chain("relu6", "relu6", kernel_sizes=((3, 5), (1, 3))), "kernel size 1"),
        "groups": (nine_groups(), "9 groups"),
        "not quantized": (chain_without_last_pair(), "its output is not quantized"),
    }
    for name, (scale, reason) in {"scales": (0.08, "2 different scales"), "float": (None, "also read unquant")}.items():
        model = quantized_chain("relu6", "relu6")
        if scale is None:
            model.graph.node.append(helper.make_node("Abs", ["last"], ["Z"], name="float reader"))
            model.graph.output.append(helper.make_tensor_value_info("Z", 1, ["N", 8, None, None]))
        else:
            add_pair(model, "last", np.float32(scale), "Z")
        models[name] = model, reason
    model = quantized_chain("relu6", "relu6")
    model.graph.output.append(helper.make_tensor_value_info("last", 1, ["N", 8, None, None]))
    models["output"] = model, "as a network output"
    model = quantized_chain("relu6", "relu6")
    initializers(model.graph)["zero_point"].CopyFrom(numpy_helper.from_array(np.array(0, np.uint8), "zero_point"))
    models["asymmetric"] = model, "symmetric int8"
    return models


def nine_groups() -> onnx.ModelProto:
    model = chain("relu6", "relu6")
    for attribute in nodes_of(model)["md1"].attribute:
        if attribute.name == "kernel_sizes":
            attribute.ints[:] = [5] * 9
    return model


def chain_without_last_pair() -> onnx.ModelProto:
    model = chain("relu6", "relu6")
    scales = {name: np.float32(0.04) for name in ("X", "T1")}
    return insert(model, Placement(("md0", "md1"), ()), scales)


@pytest.mark.parametrize("case", [name for name in refused_models() if name != "asymmetric"])
def test_a_node_that_the_plugin_cannot_have_becomes_padded(case: str) -> None:
    model, reason = refused_models()[case]
    refused = kept_padded(model)
    assert list(refused) == ["md1"]
    assert reason in refused["md1"]
    lowered = lower(model, "plugin")
    assert [node.name for node in lowered.graph.node if node.op_type == "MDConv"] == ["md0"]
    assert nodes_of(lowered)["md1"].op_type == "Conv"
    assert_alike(*run_chain(model))
    # What stays padded is as in the padded lowering.
    padded = nodes_of(lower(model, "padded"))["md1"]
    assert nodes_of(lowered)["md1"].attribute == padded.attribute


def test_asymmetric_ranges_are_refused() -> None:
    model, reason = refused_models()["asymmetric"]
    refused = kept_padded(model)
    assert set(refused) == {"md0", "md1"}
    assert all(reason in text for text in refused.values())


def test_nothing_to_take_is_an_error_that_says_why() -> None:
    with pytest.raises(UsageError, match="the network has no MDConv"):
        lower(to_onnx(random_checkpoint(md_stages=())), "plugin")
    with pytest.raises(UsageError, match=r"md0: kernel size 1: the plugin has 3, 5 and 7"):
        lower(chain("relu6", kernel_sizes=((1, 3),)), "plugin")
