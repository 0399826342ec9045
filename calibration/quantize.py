"""Symmetric int8 by explicit QuantizeLinear/DequantizeLinear pairs, placed where TensorRT fuses them.

- Each convolution and each `MDConv` reads X through a Q/DQ pair, per tensor, zero point 0, and W as an int8 constant
  behind a DequantizeLinear, one scale an output channel. The bias stays float32.
- Between a convolution and its activation there is nothing, so that both become one kernel.
- A residual Add has a pair on the skip input alone; the other comes straight from a convolution, into which TensorRT
  fuses the addition.
- A concatenation, a channel shuffle or a pool has none: what comes out of it is quantized once, for the convolution that
  reads it, so that all parts of a concatenation have one scale.
- Normalisation, and the last convolution, stay float32: it maps features to the findings, costs 0.3 % of the work, and
  its rounding would reach the logits directly. So do convolutions of vectors, behind a global average (squeeze and
  excite, a hidden layer of the head): they cost next to nothing, and their gates would scale whole channels wrongly.

The graph is quantized in its portable form, where an `MDConv` is one node; lowering comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph import (
    CONVOLUTIONS,
    add_constant,
    consumers,
    drop_unused_constants,
    initializers,
    producers,
    replace_nodes,
)
from calibration.observers import LEVELS, METHODS, Histogram
from edge.errors import UsageError

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all)."""


class Images(Protocol):
    """What `quantize` calibrates on: a `calibration.dataset.CalibrationSet` or its like."""

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[NDArray[np.uint8]]: ...


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ pairs go: which inputs of which nodes, by node name and input position."""

    weighted: tuple[str, ...]
    """Convolutions that are quantized: their inputs 0 (X) and 1 (W)."""
    skips: tuple[tuple[str, int], ...]
    """Inputs of residual additions."""


def quantize(
    model: onnx.ModelProto, images: Images, method: str = "mse", progress: Progress | None = None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A quantized copy of a float32 `model`, and what ``calibration.json`` says about it.

    Args:
        model: as `build_engine.export` writes it, input ``image`` (N, 1, S, S) uint8.
        images: real images of the model's size, each (1, 1, S, S) uint8.
        method: one of `METHODS`.

    Raises:
        UsageError: an unknown method, no image, images of another size, or values that are not finite.
    """
    if method not in METHODS:
        raise UsageError(f"calibration method {method!r} is none of {', '.join(METHODS)}")
    placement = place(model.graph)
    tensors = activations(model.graph, placement)
    histograms = observe(model, tensors, images, progress)
    ranges = {name: METHODS[method](histogram) for name, histogram in histograms.items()}
    scales = {name: scale_of(reach) for name, reach in ranges.items()}
    quantized = insert(model, placement, scales)
    record = {
        "method": method,
        "count": len(images),
        "digest": images.digest,
        "placement": {
            "weighted": {node.name: node.input[0] for node in model.graph.node if node.name in placement.weighted},
            "skips": [
                [node.name, position, node.input[position]]
                for node in model.graph.node
                for name, position in placement.skips
                if node.name == name
            ],
        },
        "tensors": {
            name: {"low": histogram.low, "high": histogram.high, "range": ranges[name], "scale": float(scales[name])}
            for name, histogram in histograms.items()
        },
    }
    return quantized, record


def scale_of(reach: float) -> np.float32:
    """The scale that maps [-reach, reach] to [-127, 127]; 1 for a tensor that is all zeros."""
    scale: np.float32 = np.float32(reach / (LEVELS - 1) or 1)
    return scale


def place(graph: onnx.GraphProto) -> Placement:
    """Decide where Q/DQ pairs go (see the module's text)."""
    vectors = _vectors(graph)
    convolutions = [node.name for node in graph.node if node.op_type in CONVOLUTIONS and node.input[0] not in vectors]
    last = next(node.name for node in reversed(graph.node) if node.op_type in CONVOLUTIONS)
    made_by, read_by = producers(graph), consumers(graph)
    outputs = {output.name for output in graph.output}

    def fuses(name: str) -> bool:
        """Whether tensor `name` is a convolution's, for the addition alone: then the addition becomes part of it."""
        made = made_by.get(name)
        return made is not None and made.op_type in CONVOLUTIONS and len(read_by[name]) == 1 and name not in outputs

    skips = []
    for node in graph.node:
        if node.op_type == "Add" and any(map(fuses, node.input)):
            skips.append((node.name, 0 if fuses(node.input[1]) else 1))
    return Placement(tuple(name for name in convolutions if name != last), tuple(skips))


def _vectors(graph: onnx.GraphProto) -> set[str]:
    """The tensors with one value a channel: global averages, and what is computed from them alone."""
    constants = {tensor.name for tensor in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        values = [name for name in node.input if name not in constants]
        if node.op_type == "GlobalAveragePool" or (values and found.issuperset(values)):
            found.update(node.output)
    return found


def activations(graph: onnx.GraphProto, placement: Placement) -> list[str]:
    """The tensors that get a Q/DQ pair, in graph order."""
    inputs = {node.name: node.input for node in graph.node}
    names = [inputs[name][0] for name in placement.weighted] + [inputs[name][i] for name, i in placement.skips]
    wanted = set(names)
    return [name for name in producers(graph) if name in wanted]


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], images: Images, progress: Progress | None = None
) -> dict[str, Histogram]:
    """A histogram of each of `tensors` over `images`, from the float32 model in ONNX Runtime.

    Images run one at a time, so memory does not grow with their number. Raises `UsageError` as `quantize` does.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    histograms = {name: Histogram() for name in tensors}
    done = 0
    for image in images:
        if image.shape[2:] != tuple(source.shape[2:]):
            raise UsageError(f"calibration image is {image.shape}, the model takes {tuple(source.shape)}")
        for name, values in zip(tensors, session.run(list(tensors), {source.name: image})):
            try:
                histograms[name].update(values)
            except ValueError as error:
                raise UsageError(
                    f"tensor {name} on calibration image {done + 1}: {error}: the model is broken"
                ) from None
        done += 1
        if progress:
            progress("calibrating", done, len(images))
    if not done:
        raise UsageError("no calibration image: a model is never calibrated on made-up data; name real ones")
    return histograms


def insert(model: onnx.ModelProto, placement: Placement, scales: dict[str, np.float32]) -> onnx.ModelProto:
    """A copy of `model` with Q/DQ pairs at `placement`; `scales` by tensor name."""
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weighted, skips = set(placement.weighted), set(placement.skips)
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
            if (node.name, position) in skips:
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
