"""The faults are what they say: one scale multiplied, everything else as it was."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.gate_faults import Fault, multiply_scale, row, scaled_tensors, summary
from calibration.gate import assess
from calibration.quantize import quantize
from tests.conftest import tiny_network


class Noise:
    digest = "0" * 64

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        rng = np.random.default_rng(3)
        for _ in range(len(self)):
            yield rng.integers(0, 256, (1, 1, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    model = tiny_network(32)
    for node in model.graph.node:
        node.name = node.output[0]
    return quantize(model, Noise())[0]


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}


def test_one_scale_is_multiplied(quantized: onnx.ModelProto) -> None:
    before = constants(quantized)
    tensors = scaled_tensors(quantized)
    assert tensors == {"activations": ["x2"], "weights": ["W1"]}  # the convolution that makes the maps is not rounded
    for name in ("x2", "W1"):
        after = constants(multiply_scale(quantized, name, 0.125))
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value / 8 if key == f"{name}.scale" else value)
    for key, value in constants(quantized).items():
        np.testing.assert_array_equal(value, before[key])


def test_the_summary_counts_what_was_found_and_what_was_not() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((50, 2)) < 0.4
    float32 = (rng.normal(size=truth.shape) + 2 * truth).astype(np.float32)
    images = [np.zeros((50, 1, 1, 1), np.uint8)]

    def gate(shift: float) -> dict[str, object]:
        thresholds = {"Mass": 0.6, "Nodule": 0.6}
        return assess(
            lambda _: float32, lambda _: float32 - np.float32(shift), images, list(thresholds), thresholds, truth
        )

    gates = {Fault("activations", "a", 8): gate(0), Fault("activations", "b", 8): gate(0.01)}
    gates |= {Fault("weights", "c", 0.125): gate(3)}
    mild = gates[Fault("activations", "b", 8)]["figures"]
    *_, activations, weights = summary(gates)
    assert activations.startswith("| activations x 8 | 0 of 2 | 0 | 0.0000, ")
    assert f"{mild['mean_difference']:.4f}" in activations  # type: ignore[index]
    assert weights == "| weights / 8 | 1 of 1 | 0 | - |"
    assert row("c", gates[Fault("weights", "c", 0.125)]).startswith("| c | fail | 0.0000 (0.0000 to 0.0000) | ")
