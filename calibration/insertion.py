"""Q/DQ pairs into a float32 graph, at given places and with given scales."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph import add_constant, drop_unused_constants, initializers, replace_nodes
from calibration.observers import LEVELS
from calibration.placement import Placement


def scale_of(reach: float) -> np.float32:
    """The scale that maps [-reach, reach] to [-127, 127]; 1 for a tensor that is all zeros."""
    scale: np.float32 = np.float32(reach / (LEVELS - 1) or 1)
    return scale


def insert(model: onnx.ModelProto, placement: Placement, scales: dict[str, np.float32]) -> onnx.ModelProto:
    """A copy of `model` with Q/DQ pairs at `placement`; `scales` by tensor name."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weighted, skips, whole = set(placement.weighted), set(placement.skips), set(placement.whole)
    nodes: list[onnx.NodeProto] = []
    pairs: set[str] = set()

    def pair(name: str) -> str:
        if name not in pairs:
            pairs.add(name)
            nodes.extend(_pair(graph, name, scales[name]))
        return f"{name}.dequantized"

    for node in graph.node:
        if node.name in weighted:
            node.input[0] = pair(node.input[0])
            dequantize = _quantized_weight(graph, node.input[1])
            nodes.append(dequantize)
            node.input[1] = dequantize.output[0]
        for position, name in enumerate(node.input):
            if (node.name, position) in skips or name in whole:
                node.input[position] = pair(name)
        nodes.append(node)
    replace_nodes(graph, nodes)
    drop_unused_constants(graph)
    return quantized


def _pair(graph: onnx.GraphProto, name: str, scale: np.float32) -> list[onnx.NodeProto]:
    constants = [
        add_constant(graph, f"{name}.scale", np.array(scale, np.float32)),
        add_constant(graph, "zero_point", np.array(0, np.int8)),
    ]
    quantized, dequantized = f"{name}.quantized", f"{name}.dequantized"
    return [
        helper.make_node("QuantizeLinear", [name, *constants], [quantized], name=quantized),
        helper.make_node("DequantizeLinear", [quantized, *constants], [dequantized], name=dequantized),
    ]


def _quantized_weight(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """Add the weight (C_out, ...) `name` as int8 with a scale a channel; returns the DequantizeLinear that reads it."""
    values = numpy_helper.to_array(initializers(graph)[name])
    codes, scales = quantize_weight(values)
    inputs = [
        add_constant(graph, f"{name}.quantized", codes),
        add_constant(graph, f"{name}.scale", scales),
        add_constant(graph, f"{name}.zero_point", np.zeros(len(scales), np.int8)),
    ]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.dequantized"], name=f"{name}.dequantized", axis=0)


def quantize_weight(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 codes of a weight (C_out, ...) and its scales (C_out,): each channel's largest magnitude becomes 127."""
    scales = np.array([scale_of(float(np.abs(channel).max())) for channel in values], np.float32)
    codes = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1)))
    return np.clip(codes, 1 - LEVELS, LEVELS - 1).astype(np.int8), scales
