"""Bias correction against the paper's procedure, image by image, in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from calibration.bias_correction import Shift, correct, measure_shifts
from calibration.graph import attributes, initializers
from calibration.insertion import insert, quantize_weight, scale_of
from calibration.placement import activations, place
from calibration.quantize import observe, quantize
from tests.unit.build_engine.random_networks import run
from tests.unit.calibration.test_equalization import DEPTHWISE, model_of
from tests.unit.calibration.test_quantize import Images, tiny_model


def scales_for(model: onnx.ModelProto, images: Any) -> dict[str, np.float32]:
    histograms = observe(model, activations(model.graph, place(model.graph)), images)
    return {name: scale_of(histogram.largest / 3) for name, histogram in histograms.items()}  # coarse: it saturates


class Reference:
    """Both networks of `tiny_model` on an image, written out layer by layer."""

    def __init__(self, model: onnx.ModelProto, scales: dict[str, np.float32]) -> None:
        self.values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
        self.scales = {name: float(scale) for name, scale in scales.items()}
        self.shifts: dict[str, Tensor] = {}

    def convolution(
        self, name: str, exact: Tensor, found: Tensor, source: str, **geometry: Any
    ) -> tuple[Tensor, Tensor]:
        weight, bias = self.values[f"{name}.weight"], self.values[f"{name}.bias"]
        codes, scales = quantize_weight(weight.numpy())
        rounded = torch.from_numpy(codes * scales.reshape(-1, 1, 1, 1))
        exact = torch.nn.functional.conv2d(exact, weight, bias, **geometry)
        found = torch.nn.functional.conv2d(self.rounded(found, source), rounded, bias, **geometry)
        self.shifts[name] = (found - exact).mean(dim=(2, 3))[0]
        return exact, found - self.shifts[name][:, None, None]

    def rounded(self, x: Tensor, source: str) -> Tensor:
        return (x / self.scales[source]).round().clamp(-128, 127) * self.scales[source]

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, Tensor]:
        x = (torch.from_numpy(image).float() - 120) * np.float32(1 / 60)
        stem = [t.clamp(0, 6) for t in self.convolution("stem", x, x, "normalised", stride=2, padding=1)]
        wide = [t.clamp(0, 6) for t in self.convolution("expand", *stem, "stem.relu6")]
        md = [t.clamp(0, 6) for t in self.convolution("md", *wide, "expand.relu6", padding=2, groups=16)]
        project = self.convolution("project", *md, "md")
        self.convolution("last", stem[0] + project[0], self.rounded(stem[1], "stem.relu6") + project[1], "add",
                         padding=2, groups=8)  # fmt: skip
        return self.shifts


def test_shifts_are_those_of_the_layers_in_a_row() -> None:
    model, images = tiny_model(), Images(3)
    scales = scales_for(model, images)
    found = measure_shifts(model, place(model.graph), scales, images)
    reference = Reference(model, scales)
    each = [{name: shift.numpy().copy() for name, shift in reference(image).items()} for image in images]
    assert list(found) == ["stem", "expand", "md", "project", "last"]
    for name, (mean, step) in found.items():
        expected = np.mean([shifts[name] for shifts in each], axis=0)
        assert np.abs(expected).max() > 10 * step.max()
        # One value of thousands that falls on the other side of a rounding moves the mean by a small part of a step.
        np.testing.assert_allclose(mean, expected, rtol=0, atol=0.05 * step.max())


def mean_output(model: onnx.ModelProto, tensor: str, images: Images) -> NDArray[np.float64]:
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    watched.graph.output.append(onnx.ValueInfoProto(name=tensor))
    means = [run(watched, image, tensor)[0].mean(axis=(0, 2, 3), dtype=np.float64) for image in images]
    return np.asarray(np.mean(means, axis=0))


def test_the_mean_output_comes_back() -> None:
    """In the INT8 model itself, of the convolution that is the third behind rounded layers."""
    model, images = tiny_model(), Images()
    placement, scales = place(model.graph), scales_for(tiny_model(), images)
    corrected, record = correct(model, measure_shifts(model, placement, scales, images))
    expected = mean_output(model, "project", images)
    plain, mended = (mean_output(insert(one, placement, scales), "project", images) for one in (model, corrected))
    assert np.abs(plain - expected).max() > 1
    assert np.abs(mended - expected).max() < 0.01 * np.abs(plain - expected).max()
    assert list(record) == ["stem", "expand", "md", "project", "last"]
    assert all(facts["largest"] >= facts["mean"] > 0 for facts in record.values())


def test_only_biases_change() -> None:
    model, images = tiny_model(), Images()
    shifts = measure_shifts(model, place(model.graph), scales_for(model, images), images)
    corrected, _ = correct(model, shifts)
    onnx.checker.check_model(corrected, full_check=True)
    before, after = initializers(model.graph), initializers(corrected.graph)
    for node, other in zip(model.graph.node, corrected.graph.node):
        assert (node.op_type, node.output, attributes(node)) == (other.op_type, other.output, attributes(other))
        for name, new in zip(node.input, other.input):
            if name not in before:
                assert name == new
            elif node.name in shifts and name.endswith("bias"):
                expected = (numpy_helper.to_array(before[name]) - shifts[node.name].mean).astype(np.float32)
                np.testing.assert_array_equal(numpy_helper.to_array(after[new]), expected)
            else:
                np.testing.assert_array_equal(numpy_helper.to_array(after[new]), numpy_helper.to_array(before[name]))


def test_a_convolution_without_a_bias_gets_one() -> None:
    model = model_of(f"d = {DEPTHWISE}(x, d1)\n r = Relu(d)\n y = Conv(r, w1)")
    corrected, _ = correct(model, {"d": Shift(np.arange(8) / 8, np.ones(8))})
    run(corrected, np.zeros((1, 1, 8, 8), np.uint8))
    convolution = next(node for node in corrected.graph.node if node.name == "d")
    bias = numpy_helper.to_array(initializers(corrected.graph)[convolution.input[2]])
    np.testing.assert_array_equal(bias, -np.arange(8, dtype=np.float32) / 8)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 1, 3]])
@pytest.mark.parametrize("batch", [1, 2, 6])
def test_order_and_grouping_of_the_images_change_nothing(order: list[int], batch: int) -> None:
    model, images = tiny_model(), Images()
    placement, scales = place(model.graph), scales_for(tiny_model(), images)
    first = measure_shifts(model, placement, scales, images)
    batches = [images.images[order[start : start + batch]] for start in range(0, 6, batch)]
    other = measure_shifts(model, placement, scales, batches)
    for name in first:
        np.testing.assert_array_equal(other[name].mean, first[name].mean)


def test_the_record_says_what_was_corrected() -> None:
    _, record = quantize(tiny_model(), Images(), bias_correction=True)
    assert list(record["bias_correction"]) == ["stem", "expand", "md", "project", "last"]
    assert quantize(tiny_model(), Images())[1]["bias_correction"] is None
