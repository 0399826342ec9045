"""An int8 model in the operators that ONNX Runtime's CPU kernels compute in integers, for its backend alone.

ONNX Runtime takes a quantized convolution for one of its own only if the bias is an int32 and if nothing lies between
it and its rounding. In a graph that TensorRT and OpenVINO fuse the bias is float32, and ReLU6 or a residual addition
lies there: so it would compute nearly all of it in float32, and convert before and behind. `integer_form` writes out
what is meant:

- A convolution whose result is rounded is a `QLinearConv`. Codes of activations are uint8, which x86 multiplies with
  int8 weights: the int8 code plus 128, or the code itself where an activation leaves none below 0.
- An activation before the rounding that only bounds it (ReLU, ReLU6) bounds the codes behind it: rounding keeps order,
  so both are the same.
- A convolution of 1x1 whose result stays float32, for a residual addition, is a `MatMulIntegerToFloat` over channels.

Nothing is rounded that was not: sums are exact, as TensorRT's are, and biases are of whole steps of them already
(`calibration.whole_biases`). A convolution whose bias is not, and all else that has no such form, stays as it was.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph import (
    add_constant,
    attributes,
    consumers,
    drop_unused_constants,
    initializers,
    producers,
    replace_nodes,
)
from calibration.whole_biases import LARGEST

CONTRIB = "com.microsoft"
"""Operators of ONNX Runtime's own."""

_TIE = 1e-3
"""In codes of the result, how far an int32 bias may lie from the float32 one: by what float32 rounds off."""


class _Codes(NamedTuple):
    """How a rounded tensor is written: the code of value v is ``rint(v / scale) + zero``, within `low` and `high`."""

    zero: int
    low: int = 0
    high: int = 255


class _Rounded(NamedTuple):
    """The rounding behind a convolution."""

    quantize: onnx.NodeProto
    bounds: tuple[float, float]
    """Of the activation on the way."""
    on_the_way: tuple[str, ...]
    """The nodes between convolution and rounding, by name."""
    part: str | None
    """The tensor that a concatenation on the way reads, if there is one."""
    concatenation: str | None


class _Layer(NamedTuple):
    """A quantized convolution that becomes another operator."""

    node: onnx.NodeProto
    source: str
    """The rounded tensor that it reads."""
    weight: onnx.NodeProto
    """What it is dequantized by."""
    rounded: _Rounded | None
    """None: the result stays float32."""
    bias: NDArray[np.int32] | None
    """In steps of the integer sum, where the result is rounded."""


def integer_form(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy of a lowered int8 `model` in such operators; None if no convolution has such a form."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    rewriter = _Rewriter(graph)
    if not rewriter.layers:
        return None
    replace_nodes(graph, rewriter.nodes())
    drop_unused_constants(graph)
    del graph.value_info[:]  # types of codes are others now
    copy.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return copy


class _Rewriter:
    """Finds the layers of `graph`, then writes its nodes anew."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.made_by, self.read_by = producers(graph), consumers(graph)
        self.outputs = {output.name for output in graph.output}
        self.constants = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(graph).items()}
        self.recoded = self._recoded()
        found = (self._layer(node) for node in graph.node if node.op_type == "Conv")
        self.layers = {layer.node.name: layer for layer in found if layer is not None}
        self._leave_mixed_concatenations()
        rounded = [layer.rounded for layer in self.layers.values() if layer.rounded is not None]
        self.gone = {name for each in rounded for name in (*each.on_the_way, each.quantize.name)}
        self.joined = {each.concatenation: each.quantize.output[0] for each in rounded if each.concatenation}
        self.codes = self._choose_codes()

    def _recoded(self) -> set[str]:
        """Rounded tensors whose every reader takes other codes, too: they can be uint8."""
        found: set[str] = set()
        for node in reversed(self.graph.node):
            if node.op_type not in ("QuantizeLinear", "Split"):
                continue
            for name in node.output:
                readers = self.read_by.get(name, [])
                if name not in self.outputs and all(
                    reader.op_type == "DequantizeLinear"
                    or (reader.op_type == "Split" and found.issuperset(reader.output))
                    for reader in readers
                ):
                    found.add(name)
        return found

    def _layer(self, node: onnx.NodeProto) -> _Layer | None:
        x, weight = (self.made_by.get(name) for name in node.input[:2])
        if x is None or weight is None or {x.op_type, weight.op_type} != {"DequantizeLinear"}:
            return None
        codes = self.constants.get(weight.input[0])
        if codes is None or x.input[0] not in self.recoded or len(node.input) < 3:
            return None
        rounded = self._rounding(node)
        if rounded is None or rounded.quantize.output[0] not in self.recoded:
            pointwise = codes.shape[2:] == (1, 1) and self._is_plain(node)
            return _Layer(node, x.input[0], weight, None, None) if pointwise else None
        bias, y_scale = self.constants[node.input[2]], self.constants[rounded.quantize.input[1]]
        step = self.constants[x.input[1]].astype(np.float64) * self.constants[weight.input[1]]
        whole = np.rint(bias / step)
        if np.abs(whole).max() > LARGEST or (np.abs(whole * step - bias) > _TIE * y_scale).any():
            return None
        return _Layer(node, x.input[0], weight, rounded, whole.astype(np.int32))

    @staticmethod
    def _is_plain(node: onnx.NodeProto) -> bool:
        """Whether a convolution of 1x1 is a product of matrices: no groups, strides or margins."""
        facts = attributes(node)
        return facts.get("group", 1) == 1 and {*facts.get("strides", [1])} == {1} and not any(facts.get("pads", []))

    def _rounding(self, node: onnx.NodeProto) -> _Rounded | None:
        """The rounding behind convolution `node`, if nothing but bounds and one concatenation lie between."""
        low, high = -np.inf, np.inf
        way: list[str] = []
        part = concatenation = None
        while True:
            result = node.output[0]
            readers = self.read_by.get(result, [])
            if len(readers) != 1 or result in self.outputs:
                return None
            (node,) = readers
            if node.op_type == "QuantizeLinear":
                return _Rounded(node, (low, high), tuple(way), part, concatenation)
            if node.op_type == "Relu":
                low = max(low, 0.0)
            elif node.op_type == "Clip":
                lower, upper = (float(self.constants[name]) for name in node.input[1:3])
                low, high = max(low, lower), min(high, upper)
            elif node.op_type == "Concat" and part is None:
                part, concatenation = result, node.name
            else:
                return None
            way.append(node.name)

    def _leave_mixed_concatenations(self) -> None:
        """A concatenation is of codes if all its parts are, with one bound; else what it joins stays as it was."""
        for node in self.graph.node:
            if node.op_type != "Concat":
                continue
            parts = {
                name: layer.rounded.bounds
                for name, layer in self.layers.items()
                if layer.rounded and layer.rounded.concatenation == node.name
            }
            if len(parts) != len(node.input) or len({*parts.values()}) != 1:
                self.layers = {name: layer for name, layer in self.layers.items() if name not in parts}

    def _choose_codes(self) -> dict[str, _Codes]:
        """How each tensor of `recoded` is written, and each that a `Split` makes of one."""
        bounds = {
            layer.rounded.quantize.output[0]: layer.rounded.bounds for layer in self.layers.values() if layer.rounded
        }
        found: dict[str, _Codes] = {}
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear" and node.output[0] in self.recoded:
                scale = self.constants[node.input[1]]
                found[node.output[0]] = _codes(bounds.get(node.output[0], (-np.inf, np.inf)), scale)
            elif node.op_type == "Split" and node.input[0] in found:
                found.update(dict.fromkeys(node.output, found[node.input[0]]))
        return found

    def nodes(self) -> list[onnx.NodeProto]:
        """The graph's nodes, written anew."""
        written: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if node.name in self.layers:
                layer = self.layers[node.name]
                if layer.rounded is None or layer.bias is None:
                    written += self._product(layer)
                else:
                    written += self._convolution(layer, layer.rounded, layer.bias)
            elif node.name in self.joined:
                node.output[0] = self.joined[node.name]
                written.append(node)
            elif node.name not in self.gone:
                written.append(self._in_codes(node))
        read = {name for node in written for name in node.input} | self.outputs
        return [node for node in written if node.op_type != "DequantizeLinear" or node.output[0] in read]

    def _in_codes(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A node that stays, with the zero point of its codes."""
        tensor = {"QuantizeLinear": node.output[0], "DequantizeLinear": node.input[0]}.get(node.op_type)
        if tensor in self.codes:
            node.input[2] = self._code(self.codes[tensor].zero)
        return node

    def _code(self, value: int) -> str:
        return add_constant(self.graph, f"code.{value}", np.array(value, np.uint8))

    def _read(self, layer: _Layer) -> tuple[str, str, str]:
        """Codes, scale and zero point of what `layer` reads."""
        return layer.source, self.made_by[layer.node.input[0]].input[1], self._code(self.codes[layer.source].zero)

    def _convolution(self, layer: _Layer, rounded: _Rounded, bias: NDArray[np.int32]) -> list[onnx.NodeProto]:
        name, codes = layer.node.name, self.codes[rounded.quantize.output[0]]
        target = rounded.part or rounded.quantize.output[0]
        bounded = (codes.low, codes.high) != (0, 255)
        result = f"{target}.unbounded" if bounded else target
        written = [rounded.quantize.input[1], self._code(codes.zero)]
        whole = add_constant(self.graph, f"{name}.integer_bias", bias)
        inputs = [*self._read(layer), *layer.weight.input, *written, whole]
        nodes = [helper.make_node("QLinearConv", inputs, [result], name=name, **attributes(layer.node))]
        if bounded:
            ends = [self._code(codes.low), self._code(codes.high)]
            nodes.append(helper.make_node("Clip", [result, *ends], [target], name=f"{target}.bounded"))
        return nodes

    def _product(self, layer: _Layer) -> list[onnx.NodeProto]:
        """Channels last, as ONNX Runtime lays out the convolutions around it: so its transpositions cancel."""
        name, (source, scale, zero) = layer.node.name, self._read(layer)
        weight, scales, _ = layer.weight.input
        columns = add_constant(self.graph, f"{name}.columns", self.constants[weight][:, :, 0, 0].T)
        first, last, target = f"{name}.channels_last", f"{name}.product", f"{name}.channels_first"
        inputs = [first, columns, scale, scales, zero, "", layer.node.input[2]]
        return [
            helper.make_node("Transpose", [source], [first], name=first, perm=[0, 2, 3, 1]),
            helper.make_node("MatMulIntegerToFloat", inputs, [last], name=name, domain=CONTRIB),
            helper.make_node("Transpose", [last], [layer.node.output[0]], name=target, perm=[0, 3, 1, 2]),
        ]


def _codes(bounds: tuple[float, float], scale: NDArray[np.float32]) -> _Codes:
    """How values within `bounds`, rounded to int8 codes -128 to 127 of `scale`, are written as uint8."""
    low, high = (int(np.rint(np.clip(np.float32(bound) / scale, -128, 127))) for bound in bounds)
    zero = 0 if low >= 0 else 128
    return _Codes(zero, low + zero, high + zero)
