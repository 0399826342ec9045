"""The MD-Conv op in ONNX: its function body, and the ways to rewrite its nodes into standard ONNX.

Three lowerings of one op, equal in value: ``padded`` (one depthwise convolution whose smaller kernels are zero-padded
to the largest), ``split`` (one depthwise convolution a kernel size) and ``plugin`` (the node stays, a TensorRT plugin
runs it). The portable model keeps its `MDConv` nodes and carries the padded form as a model-local function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from build_engine.plugin_lowering import PIN, PluginForm, fuse_activations, plugin_forms
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
from edge.errors import UsageError

OPSET = 19
"""Of the standard operators: TensorRT 10.3 parses up to 20, ONNX Runtime 1.23 up to 23; 19 is the first whose
QuantizeLinear takes float16."""

KINDS = ("padded", "split", "plugin")
ACTIVATIONS = ("none", "relu", "relu6", "hardswish")
_BOUNDS = {"relu6": (0.0, 6.0)}
_BODY_ATTRIBUTES = {
    "group": onnx.AttributeProto.INT,
    "pads": onnx.AttributeProto.INTS,
    "strides": onnx.AttributeProto.INTS,
}


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
        **PIN,
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
            bound = numpy_helper.from_array(np.float32(value))
            nodes.append(helper.make_node("Constant", [], [f"{name}.float32"], value=bound))
            nodes.append(helper.make_node("CastLike", [f"{name}.float32", "X"], [name]))  # float32 or float16
        nodes.append(helper.make_node("Clip", [result, "low", "high"], ["Y"], name="activation"))
    elif activation != "none":
        nodes.append(_plain_activation(activation, result, "Y", "activation"))
    names = ["kernel_sizes", "channel_splits", "stride", "activation", *_BODY_ATTRIBUTES, *PIN]
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
        add_constant(graph, f"{kind}.{end}.{np.dtype(dtype)}", np.array(value, dtype))
        for end, value in zip(("low", "high"), _BOUNDS[kind])
    ]
    return helper.make_node("Clip", [source, *bounds], [target], name=name)


def _plain_activation(kind: str, source: str, target: str, name: str) -> onnx.NodeProto:
    return helper.make_node({"relu": "Relu", "hardswish": "HardSwish"}[kind], [source], [target], name=name)


def lower(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """A copy of `model` without functions, its `MDConv` nodes rewritten. Quantized weights stay quantized.

    ``padded`` and ``split`` leave standard ONNX. ``plugin`` leaves the nodes for the TensorRT plugin: an activation
    behind one is fused into it, Q/DQ around it are absorbed (X, W and Y are then int8), and the opset import of the
    op's domain stays; a node that the plugin cannot have (see `kept_padded`) becomes padded.

    Raises `UsageError` for an unknown kind, or for ``plugin`` if the plugin can have no node.
    """
    if kind not in KINDS:
        raise UsageError(f"lowering {kind!r} is none of {', '.join(KINDS)}")
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    graph = lowered.graph
    taken = _take(graph) if kind == "plugin" else {}
    nodes: list[onnx.NodeProto] = []
    made_by = producers(graph)
    for node in graph.node:
        if node.op_type != MDCONV:
            nodes.append(node)
        elif node.name in taken:
            nodes.append(taken[node.name].node)
        elif kind == "split":
            nodes += _split(graph, node, made_by)
        else:
            nodes += _padded(graph, node)
    nodes = _without_absorbed(nodes, taken)
    replace_nodes(graph, _without_unread(nodes, {output.name for output in graph.output}))
    drop_unused_constants(graph)
    _describe_taken(graph, taken)
    del lowered.functions[:]
    kept = [entry for entry in model.opset_import if taken or entry.domain != MDCONV_DOMAIN]
    del lowered.opset_import[:]
    lowered.opset_import.extend(kept)
    return lowered


def kept_padded(model: onnx.ModelProto) -> dict[str, str]:
    """Which `MDConv` nodes of `model` lowering ``plugin`` leaves to a padded convolution, and why, by name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    fuse_activations(copy.graph)
    return plugin_forms(copy.graph).refused


def _take(graph: onnx.GraphProto) -> dict[str, PluginForm]:
    """Fuse activations in `graph`; returns the nodes that the plugin can have, by name. Raises `UsageError` if none."""
    fuse_activations(graph)
    forms = plugin_forms(graph)
    if not forms.taken:
        why = "; ".join(f"{name}: {reason}" for name, reason in forms.refused.items()) or "the network has no MDConv"
        raise UsageError(f"lowering 'plugin' has nothing to do ({why}): use --lowering auto, padded or split")
    return forms.taken


def _without_absorbed(nodes: list[onnx.NodeProto], taken: dict[str, PluginForm]) -> list[onnx.NodeProto]:
    """Drop the QuantizeLinear nodes whose work `taken` does, and let their readers read it there."""
    replaced = {name: form.node.output[0] for form in taken.values() for name in form.absorbed}
    left = [node for node in nodes if node.op_type == MDCONV or node.output[0] not in replaced]
    for node in left:
        for position, name in enumerate(node.input):
            node.input[position] = replaced.get(name, name)
    return left


def _describe_taken(graph: onnx.GraphProto, taken: dict[str, PluginForm]) -> None:
    """Declare types and shapes of what `taken` put out, which nothing can infer, and forget tensors that are gone."""
    known = {value.name: value for value in graph.value_info}
    for form in taken.values():
        if form.absorbed and form.before in known:
            value = graph.value_info.add()
            value.CopyFrom(known[form.before])
            value.name = form.node.output[0]
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    made_by = producers(graph)
    values = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.value_info if v.name in made_by]
    del graph.value_info[:]
    graph.value_info.extend(values)


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
