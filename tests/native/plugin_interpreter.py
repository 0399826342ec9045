"""Runs a model of lowering ``plugin``: its `MDConv` nodes in NumPy, all that lies between them in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

from edge.backends.onnxruntime import open_session
from tests.native import reference
from tests.native.layer import Layer, Operands


class Segment(NamedTuple):
    """Standard nodes that run together."""

    session: Any
    """Of ONNX Runtime."""
    inputs: list[str]
    outputs: list[str]


class PluginInterpreter:
    """A model, cut at its `MDConv` nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        # `lower` declares what the plugin's nodes put out, so that all other types can be inferred.
        self._model = shape_inference.infer_shapes(model, strict_mode=True)
        graph = self._model.graph
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._outputs = [output.name for output in graph.output]
        self._steps: list[Segment | onnx.NodeProto] = []
        nodes: list[onnx.NodeProto] = []
        for position, node in enumerate(graph.node):
            if node.op_type == "MDConv":
                self._add_segment(nodes, graph.node[position:])
                self._steps.append(node)
                nodes = []
            else:
                nodes.append(node)
        self._add_segment(nodes, [])

    def _add_segment(self, nodes: list[onnx.NodeProto], later: Any) -> None:
        if not nodes:
            return
        graph = self._model.graph
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        wanted = {name for node in later for name in node.input} | {*self._outputs}
        inputs = [name for name in read if name not in made and name not in self._constants]
        outputs = [name for node in nodes for name in node.output if name in wanted]
        types = {value.name: value for value in [*graph.input, *graph.value_info, *graph.output]}
        part = helper.make_graph(
            nodes,
            "segment",
            [types[name] for name in inputs],
            [types[name] for name in outputs],
            [tensor for tensor in graph.initializer if tensor.name in read],
        )
        standard = [entry for entry in self._model.opset_import if not entry.domain]
        content = helper.make_model(part, opset_imports=standard, ir_version=self._model.ir_version)
        session = open_session(content.SerializeToString(), threads=1)
        self._steps.append(Segment(session, inputs, outputs))

    def run(
        self, image: NDArray[Any], mdconv_inputs: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The model's outputs by name; `image` is its one input.

        `mdconv_inputs`, by tensor, are what `MDConv` nodes see in place of what the model computed.
        """
        seen = mdconv_inputs or {}
        values = {self._model.graph.input[0].name: image}
        for step in self._steps:
            if isinstance(step, Segment):
                feeds = {name: values[name] for name in step.inputs}
                values.update(zip(step.outputs, step.session.run(step.outputs, feeds)))
            else:
                values[step.output[0]] = self._mdconv(step, seen.get(step.input[0], values[step.input[0]]))
        return {name: values[name] for name in self._outputs}

    def _mdconv(self, node: onnx.NodeProto, x: NDArray[Any]) -> NDArray[Any]:
        """Y of the node, as the plugin defines it: bit by bit for int8, rounded once for the float types."""
        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        constants = [self._constants[name] for name in node.input[1:]]
        layer = Layer(
            dtype=x.dtype.name,
            layout="linear",
            channel_splits=tuple(facts["channel_splits"]),
            kernel_sizes=tuple(facts["kernel_sizes"]),
            height=x.shape[2],
            width=x.shape[3],
            stride=facts["stride"],
            activation=facts["activation"].decode(),
            batch=len(x),
            x_scale=facts.get("x_scale", 1.0),
            y_scale=facts.get("y_scale", 1.0),
        )
        operands = Operands(x, *constants[:2], constants[2] if x.dtype == np.int8 else None)
        if x.dtype == np.int8:
            return reference.int8(layer, operands)
        return reference.exact(layer, operands)[0].astype(x.dtype)
