"""Bias correction: the mean error of a quantized convolution, channel by channel, taken off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, in the
form that measures: rounding weights and activations shifts the mean of what a channel puts out, most where a channel
has few weights, nine in a depthwise convolution. The shift is the mean, over calibration images and positions, of the
quantized convolution's output less that of the float32 one, where all convolutions before it are corrected already.

The paper runs the images through the network once for each layer. Here one pass does: the float32 network and the
quantized one run side by side on an image, and in the latter each convolution's output is corrected by the image's own
shift before it goes on. So every layer reads corrected values, as in the paper; a layer's correction is the mean of its
shifts. An image is used by itself, and sums are of whole numbers: neither order nor grouping of the images matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph import MDCONV, add_constant, attributes, initializers, replace_nodes
from calibration.insertion import insert
from calibration.placement import Placement
from edge.backends.onnxruntime import open_session

_FINENESS = 1 << 20
"""Means are summed in such parts of the least step that the convolution's integer sums can make."""

_QUANTIZED = "int8/"
"""Before the names of the quantized network's tensors, where both run side by side."""


class Shift(NamedTuple):
    """How far quantization shifts a convolution's output."""

    mean: NDArray[np.float64]
    """(C_out,) of the quantized output less the float32 one, over images and positions."""
    step: NDArray[np.float64]
    """(C_out,) scale of the input times scale of the weight: by so much the output changes with one int8 code."""


def measure_shifts(
    model: onnx.ModelProto,
    placement: Placement,
    scales: Mapping[str, np.float32],
    images: Iterable[NDArray[np.uint8]],
) -> dict[str, Shift]:
    """The shift of each quantized convolution of float32 `model`, by name.

    Args:
        model: float32, before Q/DQ.
        placement, scales: as `insert` takes them.
        images: (n, 1, S, S) uint8; each runs by itself.
    """
    exact = _with_plain_convolutions(model)
    quantized = insert(exact, placement, dict(scales))
    steps = _steps(exact.graph, quantized.graph, placement)
    session = open_session(_side_by_side(exact, quantized, steps).SerializeToString(), threads=0)
    source = session.get_inputs()[0].name
    outputs = [_shift_of(name) for name in steps]
    sums = {name: np.zeros(len(step), np.int64) for name, step in steps.items()}
    count = 0
    for batch in images:
        for image in np.split(batch, len(batch)):
            for (name, step), shift in zip(steps.items(), session.run(outputs, {source: image})):
                sums[name] += np.rint(shift.reshape(-1) / step * _FINENESS).astype(np.int64)
            count += 1
    return {name: Shift(sums[name] / (count * _FINENESS) * step, step) for name, step in steps.items()}


def correct(model: onnx.ModelProto, shifts: Mapping[str, Shift]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A copy of float32 `model` with corrected biases, and what ``calibration.json`` says about it.

    For each convolution: the mean and the largest magnitude of its channels' corrections, in the output's unit and in
    steps of the integer sum.
    """
    corrected = onnx.ModelProto()
    corrected.CopyFrom(model)
    constants = initializers(corrected.graph)
    record: dict[str, Any] = {}
    for node in corrected.graph.node:
        if node.name not in shifts:
            continue
        mean, step = shifts[node.name]
        bias = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else np.zeros(len(mean))
        name = f"{node.name}.bias.corrected"
        node.input[2:] = [add_constant(corrected.graph, name, (bias - mean).astype(np.float32))]
        magnitudes = np.abs(mean)
        record[node.name] = {
            "mean": float(magnitudes.mean()),
            "largest": float(magnitudes.max()),
            "largest_steps": float((magnitudes / step).max()),
        }
    return corrected, record


def _with_plain_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each `MDConv` is a convolution of its name and, if it has one, an activation."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in plain.graph.node:
        if node.op_type != MDCONV:
            nodes.append(node)
            continue
        facts = attributes(node)
        kind, output = facts["activation"], node.output[0]
        result = output if kind == "none" else f"{output}.before"
        geometry = {name: facts[name] for name in ("group", "pads", "strides")}
        nodes.append(helper.make_node("Conv", list(node.input), [result], name=node.name, **geometry))
        if kind == "relu6":
            ends = [add_constant(plain.graph, f"relu6/{end}", np.float32(end)) for end in (0, 6)]
            nodes.append(helper.make_node("Clip", [result, *ends], [output], name=f"{node.name}.{kind}"))
        elif kind != "none":
            nodes.append(
                helper.make_node(
                    {"relu": "Relu", "hardswish": "HardSwish"}[kind], [result], [output], name=f"{node.name}.{kind}"
                )
            )
    replace_nodes(plain.graph, nodes)
    del plain.functions[:]
    return plain


def _steps(exact: onnx.GraphProto, quantized: onnx.GraphProto, placement: Placement) -> dict[str, NDArray[np.float64]]:
    constants = initializers(quantized)
    inputs = {node.name: node.input for node in exact.node}
    steps = {}
    for name in placement.weighted:
        x, weight = (numpy_helper.to_array(constants[f"{tensor}.scale"]) for tensor in inputs[name][:2])
        steps[name] = x.astype(np.float64) * weight
    return steps


def _shift_of(name: str) -> str:
    return f"{_QUANTIZED}{name}.shift"


def _side_by_side(exact: onnx.ModelProto, quantized: onnx.ModelProto, corrected: Iterable[str]) -> onnx.ModelProto:
    """Both networks on one input, the outputs of convolutions `corrected` moved to the exact mean in the second.

    Its outputs are these shifts, (1, C_out, 1, 1), by convolution.
    """
    joined = onnx.ModelProto()
    joined.CopyFrom(exact)
    graph, names = joined.graph, set(corrected)
    del graph.output[:]
    known = initializers(graph)
    graph.initializer.extend(tensor for tensor in quantized.graph.initializer if tensor.name not in known)
    axes = add_constant(graph, f"{_QUANTIZED}axes", np.array([2, 3], np.int64))
    made = {output for node in quantized.graph.node for output in node.output}
    for node in quantized.graph.node:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{_QUANTIZED}{node.name}"
        copy.input[:] = [f"{_QUANTIZED}{name}" if name in made else name for name in node.input]
        copy.output[:] = [f"{_QUANTIZED}{name}" for name in node.output]
        if node.name in names:
            output, shift = copy.output[0], _shift_of(node.name)
            copy.output[0] = shifted = f"{output}.shifted"
            graph.node.extend(
                [
                    helper.make_node("Sub", [shifted, node.output[0]], [f"{shifted}.error"]),
                    helper.make_node("ReduceMean", [f"{shifted}.error", axes], [shift], keepdims=1),
                    helper.make_node("Sub", [shifted, shift], [output]),
                ]
            )
            graph.output.append(onnx.ValueInfoProto(name=shift))
    return joined
