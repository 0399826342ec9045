"""Precision by explicit casts, which strongly typed TensorRT (the only kind from version 11) takes literally."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from calibration.graph import CONVOLUTIONS, consumers, drop_unused_constants, initializers, replace_nodes
from edge.errors import UsageError

_LARGEST = float(np.finfo(np.float16).max)
_ACTIVATIONS = ("Clip", "Relu", "HardSwish")
_NAMES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 model that computes in float16 from its first convolution to its last.

    What precedes the first (normalisation: gray values are not centred yet) and follows the last (the mean over
    positions, which in float16 would lose digits) stays float32, and so do the model's outputs. Inputs keep their type.
    A head with hidden layers has its mean before the last convolution, and so in float16.

    Raises `UsageError` for a quantized model, or a constant beyond float16's range (65504).
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise UsageError("the model is quantized, expected float32: convert to float16 the model as it was exported")
    return _halved(model, {node.name for node in _between_convolutions(model.graph)})


def leave_in_float16(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """A copy of an int8 model whose nodes `layers`, which it leaves unquantized, compute in float16.

    So does the activation behind one, where nothing else reads what lies between. All else keeps its type.

    Raises `UsageError` for a constant beyond float16's range (65504).
    """
    read_by, outputs = consumers(model.graph), {output.name for output in model.graph.output}
    half = set(layers)
    for node in model.graph.node:
        readers = read_by.get(node.output[0], [])
        if node.name in layers and len(readers) == 1 and node.output[0] not in outputs:
            half.update(reader.name for reader in readers if reader.op_type in _ACTIVATIONS)
    return _halved(shape_inference.infer_shapes(model, strict_mode=True), half)


def _halved(model: onnx.ModelProto, half: set[str]) -> onnx.ModelProto:
    """A copy of `model`, which declares the type of every tensor, with nodes `half` in float16."""
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    replace_nodes(graph, _Caster(graph, half).nodes())
    drop_unused_constants(graph)
    del graph.value_info[:]
    return shape_inference.infer_shapes(converted, strict_mode=True)


def _between_convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that depend on a convolution and on which one depends, the convolutions included."""
    reached: set[str] = set()
    after = []
    for node in graph.node:
        if node.op_type in CONVOLUTIONS or reached & set(node.input):
            reached.update(node.output)
            after.append(node)
    needed: set[str] = set()
    between = []
    for node in reversed(after):
        if node.op_type in CONVOLUTIONS or needed & set(node.output):
            needed.update(node.input)
            between.append(node)
    return between[::-1]


class _Caster:
    """Puts a Cast wherever a float tensor is not of the type that its reader computes in."""

    def __init__(self, graph: onnx.GraphProto, half: set[str]) -> None:
        self.graph = graph
        self.half = half
        self.cast: list[onnx.NodeProto] = []
        self.constants = initializers(graph)
        self.versions: dict[str, dict[int, str]] = {
            tensor.name: {tensor.data_type: tensor.name} for tensor in graph.initializer if tensor.data_type in _NAMES
        }
        """Under which name a float tensor is there in which type."""
        values = [*graph.value_info, *graph.output]
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}

    def nodes(self) -> list[onnx.NodeProto]:
        """The graph's nodes, with the casts."""
        outputs = {output.name for output in self.graph.output}
        for node in self.graph.node:
            kind = TensorProto.FLOAT16 if node.name in self.half else TensorProto.FLOAT
            for position, name in enumerate(node.input):
                if name in self.versions:
                    node.input[position] = self._as(name, kind)
            self.cast.append(node)
            for position, name in enumerate(node.output):
                if name in self.floats:
                    renamed = name in outputs and kind == TensorProto.FLOAT16
                    node.output[position] = f"{name}.float16" if renamed else name
                    self.versions[name] = {kind: node.output[position]}
                    if renamed:
                        self._add_cast(name, TensorProto.FLOAT, name)
        return self.cast

    def _as(self, name: str, kind: int) -> str:
        """The name under which tensor `name` is there in type `kind`, after a Cast if need be."""
        if kind not in self.versions[name]:
            self._add_cast(name, kind, f"{name}.{_NAMES[kind]}")
        return self.versions[name][kind]

    def _add_cast(self, name: str, kind: int, target: str) -> None:
        (source,) = self.versions[name].values()
        if name in self.constants and kind == TensorProto.FLOAT16:
            self.graph.initializer.append(_as_float16(self.constants[name], target))
            self.versions[name][kind] = target
            return
        self.cast.append(helper.make_node("Cast", [source], [target], name=f"{name}.to_{_NAMES[kind]}", to=kind))
        self.versions[name][kind] = target


def _as_float16(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if np.abs(values).max(initial=0) > _LARGEST:
        raise UsageError(
            f"{tensor.name} reaches {np.abs(values).max():.3g}, float16 ends at {_LARGEST:.0f}: "
            "build with --fp32 or --int8"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)
