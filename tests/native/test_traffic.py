"""The bounds on what the kernels move, and that no barrier is missing in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.kernel_traffic import traffic_of
from tests.native import reference
from tests.native.host_kernel import run, run_unfused, tactic_count
from tests.native.layer import DTYPES, Layer, random_operands
from tests.native.layouts import FORMATS
from tests.native.network_layers import NETWORK_LAYERS, network_layer

MOST_OF_COMPULSORY = 1.25
LEAST_SAVING = 2.5


@pytest.mark.parametrize(("dtype", "layout"), FORMATS)
def test_traffic_at_the_networks_own_layers(dtype: str, layout: str) -> None:
    assert {channels for channels, _, _ in NETWORK_LAYERS} == {96, 144, 192, 384, 576, 960}
    for shape in NETWORK_LAYERS:
        layer = network_layer(dtype, layout, *shape)
        seen = traffic_of(layer)
        assert seen.must <= seen.fused <= MOST_OF_COMPULSORY * seen.must, layer
        assert seen.unfused >= LEAST_SAVING * seen.fused, layer


SPARE_BARRIERS = {"chw4": 1, "chw32": 1}
"""Their tiles can be laid down as they are loaded, without passing through shared memory first; the barrier between is
there for the layouts whose tiles cannot."""


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [32, 30, 27])
@pytest.mark.parametrize(("dtype", "layout"), FORMATS)
def test_no_barrier_is_missing_and_one_that_is_would_be_found(dtype: str, layout: str, width: int, stride: int) -> None:
    """Widths whose rows are and are not aligned take different ways into shared memory."""
    layer = Layer(dtype, layout, (20, 13), (3, 5), 29, width, stride, x_scale=0.02, y_scale=0.03)
    operands = random_operands(layer, np.random.default_rng(3))
    for tactic in range(1, tactic_count(dtype, layout) + 1):
        whole = run(layer, operands, tactic, check=True)
        assert whole.report.findings == 0, whole.report.messages
        assert whole.report.barrier_sites >= 2
        silent = 0
        for barrier in range(whole.report.barrier_sites):
            planted = run(layer, operands, tactic, check=True, drop_barrier=barrier)
            if planted.report.findings == 0:
                silent += 1
                np.testing.assert_array_equal(planted.y, whole.y)
        assert silent <= SPARE_BARRIERS.get(layout, 0), f"tactic {tactic}"


UNFUSED = (
    (12, 14, 14, 1, 1),
    (7, 9, 13, 2, 3),
    (3, 113, 97, 1, 1),
    (96, 28, 28, 2, 2),
    (4, 1, 1, 1, 1),
    (5, 224, 224, 2, 1),
)


@pytest.mark.parametrize(("channels", "height", "width", "stride", "batch"), UNFUSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unfused_sequence_computes_the_layer(
    dtype: str, channels: int, height: int, width: int, stride: int, batch: int
) -> None:
    """What is compared with must be right too."""
    split = (channels // 2, channels - channels // 2)
    layer = Layer(dtype, "linear", split, (5, 3), height, width, stride, "hardswish", batch, 0.02, 0.03)
    operands = random_operands(layer, np.random.default_rng(4))
    result = run_unfused(layer, operands, check=True)
    assert result.report.findings == 0, result.report.messages
    assert result.report.launches == 7  # a split, a convolution and a concat for each group, then bias and activation
    if dtype == "int8":
        no_bias = replace(operands, bias=np.zeros_like(operands.bias))
        codes = reference.int8(replace(layer, activation="none"), no_bias)
        rounded_twice = reference.int8_bias(layer, codes, operands.bias)
        np.testing.assert_array_equal(result.y, rounded_twice)
    else:
        expected, magnitudes = reference.exact(layer, operands)
        tolerance = 1e-6 if dtype == "float32" else 2e-3
        assert np.all(np.abs(result.y - expected) <= tolerance * np.maximum(np.abs(expected), magnitudes))
