"""Small helpers over an ONNX graph, and the identity of the MD-Conv op, shared by calibration and build_engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

MDCONV = "MDConv"
MDCONV_DOMAIN = "mdconv"
MDCONV_VERSION = 1
CONVOLUTIONS = ("Conv", MDCONV)
"""Op types with inputs X, W and optionally B, whose weights are (C_out, ...)."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values; texts are `str`."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def initializers(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The graph's constants by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Which node makes a tensor, by the tensor's name. Graph inputs and constants have none."""
    return {name: node for node in graph.node for name in node.output}


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Which nodes read a tensor, by the tensor's name, in graph order. Being a graph output does not count."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    return readers


def add_constant(graph: onnx.GraphProto, name: str, value: NDArray[Any]) -> str:
    """Put a constant into the graph, unless one of this name is there already, and return its name."""
    if name not in initializers(graph):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
    return name


def drop_unused_constants(graph: onnx.GraphProto) -> None:
    """Remove the constants that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Make `nodes` the graph's nodes. They must be in topological order."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
