"""The plugin lowering: an `MDConv` as the TensorRT plugin takes it, or why the plugin cannot have it.

TensorRT cannot fuse Q/DQ into a plugin, so a quantized node reads and writes int8 itself: the DequantizeLinear before
it and the QuantizeLinear behind it go, and their scales become part of the node.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph import MDCONV, MDCONV_DOMAIN, attributes, consumers, initializers, producers, replace_nodes

PIN = {"plugin_version": "1", "plugin_namespace": MDCONV_DOMAIN}
"""The attributes by which TensorRT looks a plugin up."""

KERNEL_SIZES = (3, 5, 7)
MOST_GROUPS = 8
_OWN_ATTRIBUTES = ("kernel_sizes", "channel_splits", "stride", "activation")


class PluginForm(NamedTuple):
    """An `MDConv` for the plugin, and what it makes superfluous."""

    node: onnx.NodeProto
    """float: X, W, B to Y. Quantized: X, W int8, B, w_scale (C,) float32 to Y int8; attributes x_scale, y_scale."""
    absorbed: tuple[str, ...]
    """Outputs of the QuantizeLinear nodes that go; all equal the node's own output."""
    before: str
    """What the output was called before; of the same shape."""


class PluginForms(NamedTuple):
    """Of a graph's `MDConv` nodes, by name."""

    taken: dict[str, PluginForm]
    refused: dict[str, str]
    """Why."""


class _RefusedError(Exception):
    """The plugin cannot have a node; the text says why."""


def fuse_activations(graph: onnx.GraphProto) -> None:
    """Make the activation behind an `MDConv` that has none part of it, where nothing else reads what lies between."""
    read_by, outputs = consumers(graph), {output.name for output in graph.output}
    fused = set()
    for node in graph.node:
        readers = read_by.get(node.output[0], [])
        if node.op_type != MDCONV or len(readers) != 1 or node.output[0] in outputs:
            continue
        kind = _activation(graph, readers[0])
        for attribute in node.attribute:
            if kind and attribute.name == "activation" and attribute.s == b"none":
                attribute.s = kind.encode()
                fused.add(readers[0].output[0])
                node.output[0] = readers[0].output[0]
    replace_nodes(graph, [node for node in graph.node if node.op_type == MDCONV or node.output[0] not in fused])


def _activation(graph: onnx.GraphProto, node: onnx.NodeProto) -> str | None:
    """Which of the op's activations a standard node is, if any."""
    if node.op_type == "Clip":
        constants = initializers(graph)
        bounds = [numpy_helper.to_array(constants[name]).item() for name in node.input[1:] if name in constants]
        return "relu6" if bounds == [0.0, 6.0] else None
    return {"Relu": "relu", "HardSwish": "hardswish"}.get(node.op_type)


def plugin_forms(graph: onnx.GraphProto) -> PluginForms:
    """Each `MDConv` of `graph` as the plugin takes it, or why it cannot."""
    forms = PluginForms({}, {})
    writer = _Writer(graph)
    for node in graph.node:
        if node.op_type == MDCONV:
            try:
                forms.taken[node.name] = writer.form(node)
            except _RefusedError as refused:
                forms.refused[node.name] = str(refused)
    return forms


class _Writer:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.made_by, self.read_by = producers(graph), consumers(graph)
        self.constants = initializers(graph)
        self.outputs = {output.name for output in graph.output}

    def form(self, node: onnx.NodeProto) -> PluginForm:
        """Raises `_RefusedError`."""
        facts = attributes(node)
        if unknown := sorted(set(facts["kernel_sizes"]) - {*KERNEL_SIZES}):
            raise _RefusedError(f"kernel size {', '.join(map(str, unknown))}: the plugin has 3, 5 and 7")
        if len(facts["kernel_sizes"]) > MOST_GROUPS:
            raise _RefusedError(f"{len(facts['kernel_sizes'])} groups: the plugin takes {MOST_GROUPS} at most")
        own = {name: facts[name] for name in _OWN_ATTRIBUTES} | PIN
        x, weight = (self._dequantize(name) for name in node.input[:2])
        before = node.output[0]
        if x is None and weight is None:
            return PluginForm(_mdconv(node.name, [*node.input], before, own), (), before)
        if x is None or weight is None:
            raise _RefusedError(f"its {'input is' if x is None else 'weights are'} not quantized, but the other is")
        x_scale = self._scale(x, "its input")
        w_scale = self._scale(weight, "its weight", axis=0)
        y_scale, quantized = self._output(before)
        inputs = [x.input[0], weight.input[0], node.input[2], weight.input[1]]
        scales = {"x_scale": float(x_scale), "y_scale": float(y_scale)}
        if len(w_scale) != sum(facts["channel_splits"]):
            raise _RefusedError(f"its weights have {len(w_scale)} scales, not one a channel")
        return PluginForm(_mdconv(node.name, inputs, quantized[0], own | scales), quantized, before)

    def _dequantize(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that makes tensor `name`, if one does."""
        node = self.made_by.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _output(self, name: str) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """The one scale with which tensor `name` is quantized for all its readers, and the quantized tensors."""
        readers = self.read_by.get(name, [])
        others = [reader.name for reader in readers if reader.op_type != "QuantizeLinear"]
        quantized = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        if not quantized:
            raise _RefusedError("its output is not quantized")
        if others or {name, *(reader.output[0] for reader in quantized)} & self.outputs:
            raise _RefusedError(f"its output is also read unquantized ({', '.join(others) or 'as a network output'})")
        scales = [self._scale(reader, "its output") for reader in quantized]
        if len({scale.item() for scale in scales}) > 1:
            raise _RefusedError(f"its output is quantized with {len(scales)} different scales")
        return scales[0], tuple(reader.output[0] for reader in quantized)

    def _scale(self, node: onnx.NodeProto, what: str, axis: int | None = None) -> NDArray[np.float32]:
        """The scale of a Q or DQ node: one value, or with `axis` one a slice. Its zero point must be int8 zeros."""
        values = [numpy_helper.to_array(self.constants[name]) for name in node.input[1:] if name in self.constants]
        if len(values) != 2:
            raise _RefusedError(f"{what} has no constant scale and zero point")
        scale, zero_point = values
        if zero_point.dtype != np.int8 or zero_point.any() or scale.dtype != np.float32:
            raise _RefusedError(f"{what} is not quantized to symmetric int8")
        if scale.ndim != (0 if axis is None else 1) or (axis is not None and attributes(node).get("axis", 1) != axis):
            raise _RefusedError(f"{what} has scales {scale.shape}, expected one{' a channel' if axis == 0 else ''}")
        return scale


def _mdconv(name: str, inputs: list[str], output: str, facts: dict[str, Any]) -> onnx.NodeProto:
    return helper.make_node(MDCONV, inputs, [output], name=name, domain=MDCONV_DOMAIN, **facts)
