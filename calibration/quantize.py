"""Symmetric int8 by explicit QuantizeLinear/DequantizeLinear pairs, where `calibration.placement` puts them.

Zero points are 0. Biases stay float32, but of whole steps of the integer sum (`calibration.whole_biases`). The graph
is quantized in its portable form, where an `MDConv` is one node; lowering comes after. Channels can be equalized before
it, and biases corrected behind it: both change constants alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.bias_correction import Shift, correct, measure_shifts
from calibration.equalization import equalize
from calibration.insertion import insert, scale_of
from calibration.observers import METHODS, Histogram
from calibration.placement import Placement, activations, place
from calibration.whole_biases import make_biases_whole
from edge.backends.onnxruntime import open_session
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
class Calibrated:
    """A float32 model and all that calibration found out about it: int8 models follow without another image."""

    model: onnx.ModelProto
    """Equalized, if that was asked for."""
    placement: Placement
    scales: dict[str, np.float32]
    shifts: Mapping[str, Shift] | None
    """What bias correction takes off; None if that was not asked for."""
    record: dict[str, Any]
    """What ``calibration.json`` says if no layer is left, but for the placement and the bias correction."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The nodes that can be left as they are, in the graph's order: what `Placement.without` takes."""
        rounding = {*self.placement.weighted, *(name for name, _ in self.placement.skips)}
        return tuple(node.name for node in self.model.graph.node if node.name in rounding)

    def quantized(self, left: Collection[str] = ()) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The int8 model with layers `left` in float32, and what ``calibration.json`` says about it."""
        placement, model, corrected = self.placement.without(left), self.model, None
        if self.shifts is not None:
            model, corrected = correct(model, {name: self.shifts[name] for name in placement.weighted})
        rounded = set(activations(model.graph, placement))
        record = {
            **self.record,
            "placement": placement.to_json(model.graph),
            "tensors": {name: facts for name, facts in self.record["tensors"].items() if name in rounded},
            "bias_correction": corrected,
        }
        quantized = insert(model, placement, self.scales)
        make_biases_whole(quantized)
        return quantized, record


def quantize(
    model: onnx.ModelProto,
    images: Images,
    method: str = "mse",
    progress: Progress | None = None,
    **repairs: bool,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A quantized copy of a float32 `model`, and what ``calibration.json`` says about it; as `calibrate`."""
    return calibrate(model, images, method, progress, **repairs).quantized()


def calibrate(
    model: onnx.ModelProto,
    images: Images,
    method: str = "mse",
    progress: Progress | None = None,
    *,
    equalization: bool = False,
    bias_correction: bool = False,
) -> Calibrated:
    """Find out what is needed to quantize a float32 `model`.

    Args:
        model: as `build_engine.export` writes it, input ``image`` (N, 1, S, S) uint8.
        images: real images of the model's size, each (1, 1, S, S) uint8.
        method: one of `METHODS`.
        equalization: whether `calibration.equalization` comes first. The record's ranges are then of its model.
        bias_correction: whether `calibration.bias_correction` comes last.

    Raises:
        UsageError: an unknown method, no image, images of another size, or values that are not finite.
    """
    if method not in METHODS:
        raise UsageError(f"calibration method {method!r} is none of {', '.join(METHODS)}")
    equalized = shifts = None
    if equalization:
        model, equalized = equalize(model, _Pass(model, images, "equalizing", progress))
    placement = place(model.graph)
    histograms = observe(model, activations(model.graph, placement), images, progress)
    ranges = {name: METHODS[method](histogram) for name, histogram in histograms.items()}
    for group in placement.tied:
        ranges.update(dict.fromkeys(group, max(ranges[name] for name in group)))
    scales = {name: scale_of(reach) for name, reach in ranges.items()}
    if bias_correction:
        shifts = measure_shifts(model, placement, scales, _Pass(model, images, "correcting biases", progress))
    record = {
        "method": method,
        "count": len(images),
        "digest": images.digest,
        "tensors": {
            name: {"low": histogram.low, "high": histogram.high, "range": ranges[name], "scale": float(scales[name])}
            for name, histogram in histograms.items()
        },
        "equalization": equalized,
    }
    return Calibrated(model, placement, scales, shifts, record)


@dataclass(frozen=True)
class _Pass:
    """The images, checked against `model` one by one; each time they are read `progress` is told, under `phase`.

    Raises `UsageError` for no image, or for one of another size.
    """

    model: onnx.ModelProto
    images: Images
    phase: str
    progress: Progress | None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        size = tuple(axis.dim_value for axis in self.model.graph.input[0].type.tensor_type.shape.dim)
        done = 0
        for image in self.images:
            if image.shape[2:] != size[2:]:
                raise UsageError(f"calibration image is {image.shape}, the model takes {size}")
            yield image
            done += 1
            if self.progress:
                self.progress(self.phase, done, len(self.images))
        if not done:
            raise UsageError("no calibration image: a model is never calibrated on made-up data; name real ones")


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], images: Images, progress: Progress | None = None
) -> dict[str, Histogram]:
    """A histogram of each of `tensors` over `images`, from the float32 model in ONNX Runtime.

    Images run one at a time, so memory does not grow with their number. Raises `UsageError` as `quantize` does.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    session = open_session(watched.SerializeToString(), threads=0)
    (source,) = session.get_inputs()
    histograms = {name: Histogram() for name in tensors}
    for number, image in enumerate(_Pass(model, images, "calibrating", progress), start=1):
        for name, values in zip(tensors, session.run(list(tensors), {source.name: image})):
            try:
                histograms[name].update(values)
            except ValueError as error:
                raise UsageError(f"tensor {name} on calibration image {number}: {error}: the model is broken") from None
    return histograms
