"""Symmetric int8 by explicit QuantizeLinear/DequantizeLinear pairs, where `calibration.placement` puts them.

Zero points are 0 and biases stay float32. The graph is quantized in its portable form, where an `MDConv` is one node;
lowering comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph import add_constant, drop_unused_constants, initializers, replace_nodes
from calibration.observers import LEVELS, METHODS, Histogram
from calibration.placement import Placement, activations, place
from edge.errors import UsageError

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps in all)."""


class Images(Protocol):
    """What `quantize` calibrates on: a `calibration.dataset.CalibrationSet` or its like."""

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[NDArray[np.uint8]]: ...


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
    for group in placement.tied:
        ranges.update(dict.fromkeys(group, max(ranges[name] for name in group)))
    scales = {name: scale_of(reach) for name, reach in ranges.items()}
    quantized = insert(model, placement, scales)
    record = {
        "method": method,
        "count": len(images),
        "digest": images.digest,
        "placement": placement.to_json(model.graph),
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
