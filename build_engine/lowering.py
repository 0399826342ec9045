"""The MD-Conv op in ONNX: its function body, and the ways to rewrite its nodes into standard ONNX.

Three lowerings of one op, equal in value: ``padded`` (one depthwise convolution whose smaller kernels are zero-padded
to the largest), ``split`` (one depthwise convolution a kernel size) and ``plugin`` (the node stays, a TensorRT plugin
runs it). The portable model keeps its `MDConv` nodes and carries the padded form as a model-local function.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph import (
    MDCONV,
    MDCONV_DOMAIN,
    add_constant,
    attributes,
    drop_unused_constants,
    initializers,
    producers,
    replace_nodes,
)
from edge.errors import MachineError, UsageError

OPSET = 19
"""Of the standard operators: TensorRT 10.3 parses up to 20, ONNX Runtime 1.23 up to 23; 19 is the first whose
QuantizeLinear takes float16."""

KINDS = ("padded", "split", "plugin")
ACTIVATIONS = ("none", "relu", "relu6", "hardswish")
_BOUNDS = {"relu6": (0.0, 6.0)}
_PIN = {"plugin_version": "1", "plugin_namespace": MDCONV_DOMAIN}
_BODY_ATTRIBUTES = {
    "group": onnx.AttributeProto.INT,
    "pads": onnx.AttributeProto.INTS,
    "strides": onnx.AttributeProto.INTS,
}
_PLUGIN_MISSING = (
    "lowering 'plugin' needs the MD-Conv TensorRT plugin (libmdconv_plugin.so), which this version does not have: "
    "use --lowering auto, padded or split"
)


class Choice(NamedTuple):
    """A lowering and why it was taken."""

    kind: str
    reason: str


def choose(kind: str, backend: str) -> Choice:
    """The lowering to build with: `kind` itself, or for ``auto`` a choice with its reason.

    Raises `UsageError` for an unknown kind, `MachineError` for ``plugin``.
    """
    if kind == "auto":
        return Choice(
            "padded",
            f"lowerings were not timed on the target with {backend}; padded is one stock convolution a layer, where "
            "split adds a split and a concatenation",
        )
    if kind not in KINDS:
        raise UsageError(f"lowering {kind!r} is none of auto, {', '.join(KINDS)}")
    if kind == "plugin":
        raise MachineError(_PLUGIN_MISSING)
    return Choice(kind, "asked for")


def mdconv_node(
    name: str,
    inputs: tuple[str, str, str],
    output: str,
    *,
    kernel_sizes: tuple[int, ...],
    channel_splits: tuple[int, ...],
    stride: int,
    activation: str,
) -> onnx.NodeProto:
    """An `MDConv` node from X (N, C, H, W), W (C, 1, K, K) and B (C,) to Y (N, C, ceil(H / stride), ceil(W / stride)).

    Beside the op's own attributes it carries `group`, `pads` and `strides`, which the function body refers to (ONNX
    functions cannot compute an attribute), and the two by which TensorRT looks a plugin up.
    """
    margin = max(kernel_sizes) // 2
    return helper.make_node(
        MDCONV,
        list(inputs),
        [output],
        name=name,
        domain=MDCONV_DOMAIN,
        kernel_sizes=list(kernel_sizes),
        channel_splits=list(channel_splits),
        stride=stride,
        activation=activation,
        group=sum(channel_splits),
        pads=[margin] * 4,
        strides=[stride] * 2,
        **_PIN,
    )


def mdconv_function(activation: str) -> onnx.FunctionProto:
    """The function that defines `MDConv` with this activation: the padded lowering.

    One model has one such function. ONNX's `overload` could tell several apart, but ONNX Runtime 1.23 and the parser of
    TensorRT-RTX 1.7 ignore it and run the wrong one without a word.
    """
    result = "Y" if activation == "none" else "convolved"
    convolution = helper.make_node("Conv", ["X", "W", "B"], [result], name="convolution")
    for name, kind in _BODY_ATTRIBUTES.items():
        convolution.attribute.add(name=name, ref_attr_name=name, type=kind)
    nodes = [convolution]
    if activation in _BOUNDS:
        for name, value in zip(("low", "high"), _BOUNDS[activation]):
            nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.float32(value))))
        nodes.append(helper.make_node("Clip", [result, "low", "high"], ["Y"], name="activation"))
    elif activation != "none":
        nodes.append(_plain_activation(activation, result, "Y", "activation"))
    names = ["kernel_sizes", "channel_splits", "stride", "activation", *_BODY_ATTRIBUTES, *_PIN]
    return helper.make_function(
        MDCONV_DOMAIN, MDCONV, ["X", "W", "B"], ["Y"], nodes, [helper.make_opsetid("", OPSET)], names
    )


def activation_node(
    graph: onnx.GraphProto, kind: str, source: str, target: str, name: str, dtype: Any = np.float32
) -> onnx.NodeProto:
    """The standard node of an activation, from tensor `source` to tensor `target`; adds the constants that it reads."""
    if kind not in _BOUNDS:
        return _plain_activation(kind, source, target, name)
    bounds = [
        add_constant(graph, f"{kind}.{end}", np.array(value, dtype))
        for end, value in zip(("low", "high"), _BOUNDS[kind])
    ]
    return helper.make_node("Clip", [source, *bounds], [target], name=name)


def _plain_activation(kind: str, source: str, target: str, name: str) -> onnx.NodeProto:
    return helper.make_node({"relu": "Relu", "hardswish": "HardSwish"}[kind], [source], [target], name=name)


def lower(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """A copy of `model` whose `MDConv` nodes are standard ONNX, without functions. Quantized weights stay quantized.

    Raises `MachineError` for ``plugin``, `UsageError` for an unknown kind.
    """
    choose(kind, "")
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    made_by = producers(model.graph)
    for node in model.graph.node:
        if node.op_type != MDCONV:
            nodes.append(node)
        elif kind == "padded":
            nodes += _padded(lowered.graph, node)
        else:
            nodes += _split(lowered.graph, node, made_by)
    replace_nodes(lowered.graph, _without_unread(nodes, {output.name for output in model.graph.output}))
    drop_unused_constants(lowered.graph)
    del lowered.functions[:]
    standard = [entry for entry in model.opset_import if entry.domain != MDCONV_DOMAIN]
    del lowered.opset_import[:]
    lowered.opset_import.extend(standard)
    return lowered


def _padded(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    facts = attributes(node)
    x, weight, bias = node.input
    return _convolution(graph, node.name, (x, weight, bias), node.output[0], facts, max(facts["kernel_sizes"]))


def _convolution(
    graph: onnx.GraphProto, name: str, inputs: tuple[str, str, str], output: str, facts: dict[str, Any], size: int
) -> list[onnx.NodeProto]:
    """One depthwise convolution of `size` with bias, and the activation of an `MDConv` with attributes `facts`."""
    bias = numpy_helper.to_array(initializers(graph)[inputs[2]])
    activation = facts["activation"]
    result = output if activation == "none" else f"{name}.convolved"
    convolution = helper.make_node(
        "Conv",
        list(inputs),
        [result],
        name=name,
        kernel_shape=[size] * 2,
        group=len(bias),
        pads=[size // 2] * 4,
        strides=[facts["stride"]] * 2,
    )
    if activation == "none":
        return [convolution]
    return [convolution, activation_node(graph, activation, result, output, f"{name}.{activation}", bias.dtype)]


def _split(graph: onnx.GraphProto, node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Split, one convolution and activation a kernel size, Concat.

    A quantized input is split while it is int8, so that each convolution still has its own DequantizeLinear in front.
    """
    facts = attributes(node)
    sizes, splits = facts["kernel_sizes"], facts["channel_splits"]
    if len(sizes) == 1:
        return _padded(graph, node)
    x, weight, bias = node.input
    dequantize = made_by.get(x)
    quantized = dequantize is not None and dequantize.op_type == "DequantizeLinear"
    source = dequantize.input[0] if dequantize is not None and quantized else x
    pieces = [f"{node.name}.{size}x{size}" for size in sizes]
    parts = [f"{piece}.input" for piece in pieces]
    lengths = add_constant(graph, f"{node.name}.splits", np.array(splits, np.int64))
    nodes = [helper.make_node("Split", [source, lengths], parts, name=f"{node.name}.split", axis=1)]
    ends = np.cumsum(splits)
    for piece, part, size, start, end in zip(pieces, parts, sizes, ends - splits, ends):
        group = slice(int(start), int(end))
        if dequantize is not None and quantized:
            nodes.append(_like(dequantize, [part, *dequantize.input[1:]], f"{part}.dequantized"))
            part = f"{part}.dequantized"
        weight_nodes, part_weight = _group_weight(graph, weight, made_by, piece, group, size)
        part_bias = add_constant(graph, f"{piece}.bias", _constant(graph, bias)[group])
        nodes += weight_nodes
        nodes += _convolution(graph, piece, (part, part_weight, part_bias), f"{piece}.output", facts, size)
    outputs = [f"{piece}.output" for piece in pieces]
    return [*nodes, helper.make_node("Concat", outputs, [node.output[0]], name=f"{node.name}.concat", axis=1)]


def _group_weight(
    graph: onnx.GraphProto, weight: str, made_by: dict[str, onnx.NodeProto], piece: str, group: slice, size: int
) -> tuple[list[onnx.NodeProto], str]:
    """The (C_g, 1, k, k) weight of one group, cut out of the padded (C, 1, K, K) one, behind its own dequantization."""
    dequantize = made_by.get(weight)
    values = _constant(graph, dequantize.input[0] if dequantize is not None else weight)
    margin = (values.shape[-1] - size) // 2
    inner = slice(margin, margin + size)
    cut = add_constant(graph, f"{piece}.weight", values[group, :, inner, inner])
    if dequantize is None:
        return [], cut
    inputs = [cut]
    for name, end in zip(dequantize.input[1:], ("scale", "zero_point")):
        inputs.append(add_constant(graph, f"{cut}.{end}", _constant(graph, name)[group]))
    return [_like(dequantize, inputs, f"{cut}.dequantized")], f"{cut}.dequantized"


def _constant(graph: onnx.GraphProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(initializers(graph)[name])


def _like(node: onnx.NodeProto, inputs: list[str], output: str) -> onnx.NodeProto:
    """A node of the same op and attributes as `node`, between other tensors; named after its output."""
    return helper.make_node(node.op_type, inputs, [output], name=output, **attributes(node))


def _without_unread(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Drop nodes whose results nobody reads: the dequantizations that a split replaced."""
    read = outputs | {name for node in nodes for name in node.input}
    return [node for node in nodes if read & set(node.output)]
