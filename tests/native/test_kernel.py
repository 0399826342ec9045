"""The shipped kernels, run on this CPU, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.native import reference
from tests.native.cases import SIZES, sweep
from tests.native.host_kernel import (
    LaunchError,
    default_tactic,
    plan,
    problem_of,
    run,
    tactic_count,
    why_unsupported,
)
from tests.native.layer import ACTIVATIONS, Layer, Operands, random_operands
from tests.native.layouts import FORMATS, LAYOUTS, LAYOUTS_OF, pack, padded_channels, unpack

CASES = sweep(per_layout=60)

FLOAT32 = 1e-5
"""Relative to an output's magnitude, or to the sum of the magnitudes added up for it where they cancel."""

FLOAT16 = 2e-3
"""Relative to the largest output of the layer, or to the sum of the magnitudes added up for an output if that is more
(layers of a few outputs, and layers whose activation cuts off all that is large)."""


def check(layer: Layer, operands: Operands, tactic: int) -> None:
    """The kernel agrees with the reference, races nowhere, and touches nothing but its operands."""
    result = run(layer, operands, tactic, check=True)
    assert result.report.findings == 0, result.report.messages
    assert not np.any(result.padding), "padding channels must be written as zeros"
    if layer.dtype == "int8":
        np.testing.assert_array_equal(result.y, reference.int8(layer, operands))
        return
    expected, magnitudes = reference.exact(layer, operands)
    error = np.abs(result.y.astype(np.float64) - expected)
    if layer.dtype == "float32":
        bound = FLOAT32 * np.maximum(np.abs(expected), magnitudes)
    else:
        bound = FLOAT16 * np.maximum(np.abs(expected).max(), magnitudes)
    # `not <=`, so that NaN fails.
    wrong = ~(error <= bound)
    assert not wrong.any(), f"{np.count_nonzero(wrong)} outputs, worst {np.max(error / bound):.2f} times the bound"


@pytest.mark.parametrize("index", range(len(CASES)))
def test_it_computes_the_layer(index: int) -> None:
    layer = CASES[index]
    operands = random_operands(layer, np.random.default_rng(index))
    check(layer, operands, 1 + index % tactic_count(layer.dtype, layer.layout))


def test_the_sweep_covers_what_it_should() -> None:
    assert len(CASES) >= 300
    for dtype, layout in FORMATS:
        some = {i: case for i, case in enumerate(CASES) if (case.dtype, case.layout) == (dtype, layout)}
        tactics = tactic_count(dtype, layout)
        assert {1 + i % tactics for i in some} == set(range(1, tactics + 1))
        assert {case.activation for case in some.values()} == set(ACTIVATIONS)
        assert {case.stride for case in some.values()} == {1, 2}
        assert {case.batch for case in some.values()} == {1, 3}
        assert {1, 960} <= {case.channels for case in some.values()}
        assert {1, max(SIZES)} <= {case.height for case in some.values()}
        assert {size for case in some.values() for size in case.kernel_sizes} == {3, 5, 7}
        assert any(case.kernel_sizes != tuple(sorted(case.kernel_sizes)) for case in some.values())
        assert any(len(set(case.channel_splits)) > 1 for case in some.values())


def small(dtype: str, layout: str) -> Layer:
    return Layer(dtype, layout, (6, 5), (3, 5), 13, 10, x_scale=0.02, y_scale=0.03)


@pytest.mark.parametrize("layout", LAYOUTS_OF["int8"])
def test_int8_rounds_ties_to_even(layout: str) -> None:
    layer = replace(small("int8", layout), activation="none", x_scale=1.0, y_scale=2.0)
    rng = np.random.default_rng(5)
    operands = random_operands(layer, rng)
    weight = np.sign(operands.weight)
    operands = replace(
        operands,
        x=rng.integers(-9, 10, layer.x_shape, dtype=np.int8),
        weight=weight,
        bias=np.zeros(layer.channels, np.float32),
        weight_scale=np.ones(layer.channels, np.float32),
    )
    halves = reference.convolve(operands.x.astype(np.int64), weight.astype(np.int64), layer) % 2
    assert np.count_nonzero(halves) > halves.size / 4  # as many ties
    for tactic in range(1, tactic_count("int8", layout) + 1):
        check(layer, operands, tactic)


@pytest.mark.parametrize("layout", LAYOUTS_OF["int8"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_int8_at_the_ends_of_its_range(layout: str, activation: str, scale: float) -> None:
    """The largest sums there are, from codes that vanish to ones far out of range."""
    layer = Layer("int8", layout, (3, 2, 3), (7, 3, 5), 9, 9, activation=activation, x_scale=scale, y_scale=1.0)
    operands = random_operands(layer, np.random.default_rng(6))
    weight = np.where(operands.weight == 0, 0, -128).astype(np.int8)
    x = np.full(layer.x_shape, -128, np.int8)
    x[:, 1::2] = 127
    operands = replace(operands, x=x, weight=weight, weight_scale=np.full(8, 0.01, np.float32))
    check(layer, operands, 1)


@pytest.mark.parametrize(("dtype", "layout"), FORMATS)
def test_rows_may_be_wider_than_a_tile(dtype: str, layout: str) -> None:
    for stride in (1, 2):
        layer = Layer(dtype, layout, (3, 2), (5, 3), 11, 1027, stride=stride, x_scale=0.02, y_scale=0.03)
        operands = random_operands(layer, np.random.default_rng(7))
        for tactic in range(1, tactic_count(dtype, layout) + 1):
            check(layer, operands, tactic)


@pytest.mark.parametrize(("dtype", "layout"), FORMATS)
def test_a_plan_is_one_that_an_orin_can_launch(dtype: str, layout: str) -> None:
    for case in (case for case in CASES if (case.dtype, case.layout) == (dtype, layout)):
        for tactic in range(1, tactic_count(dtype, layout) + 1):
            made = plan(case, tactic)
            assert 1 <= np.prod(made.block) <= 1024
            assert made.grid[1] <= 65535 and made.grid[2] <= 65535
            assert made.shared_bytes <= 48 * 1024
            _, channels, rows, columns = case.y_shape
            tiles = case.batch * np.prod([-(-size // tile) for size, tile in zip((channels, rows, columns), made.tile)])
            assert np.prod(made.grid) >= tiles


@pytest.mark.parametrize(("dtype", "layout"), FORMATS)
def test_the_default_tactic_exists(dtype: str, layout: str) -> None:
    for case in (case for case in CASES if (case.dtype, case.layout) == (dtype, layout)):
        assert 1 <= default_tactic(case) <= tactic_count(dtype, layout)


@pytest.mark.parametrize("tactic", [-1, 99])
def test_a_tactic_that_does_not_exist_is_refused(tactic: int) -> None:
    layer = small("float32", "linear")
    with pytest.raises(LaunchError, match="cudaErrorInvalidValue"):
        run(layer, random_operands(layer, np.random.default_rng(0)), tactic)
    with pytest.raises(LaunchError, match="cudaErrorInvalidValue"):
        plan(layer, tactic)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layout": "chw4"}, "layout"),
        ({"layout": "chw32", "dtype": "float16"}, "layout"),
        ({"layout": "hwc8", "dtype": "int8"}, "layout"),
        ({"stride": 3}, "stride"),
        ({"kernel_sizes": (3, 9)}, "kernel_sizes"),
        ({"kernel_sizes": (4, 5)}, "kernel_sizes"),
        ({"channel_splits": (11, 0)}, "channel_splits"),
        ({"height": 0}, "height"),
        ({"batch": 0}, "batch"),
        ({"dtype": "int8", "x_scale": 0.0}, "x_scale"),
        ({"dtype": "int8", "y_scale": float("nan")}, "y_scale"),
    ],
)
def test_what_it_cannot_run_it_names(changes: dict[str, object], named: str) -> None:
    layer = replace(small("float32", "linear"), **changes)
    reason = why_unsupported(problem_of(layer))
    assert reason is not None and named in reason
    with pytest.raises(LaunchError, match="cudaErrorInvalidValue"):
        plan(layer, 1)


def test_splits_must_sum_to_the_channels() -> None:
    problem = problem_of(small("float32", "linear"))
    problem.channels += 1
    reason = why_unsupported(problem)
    assert reason is not None and "channel_splits" in reason


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 4, 15, 33])
def test_layouts_are_packed_as_the_header_says(layout: str, channels: int) -> None:
    tensor = np.arange(2 * channels * 3 * 5).reshape(2, channels, 3, 5)
    memory = pack(tensor, layout, -1)
    n, c, h, w = 1, channels - 1, 2, 3
    element = {
        "linear": lambda: memory[n, c, h, w],
        "chw4": lambda: memory[n, c // 4, h, w, c % 4],
        "chw32": lambda: memory[n, c // 32, h, w, c % 32],
        "hwc8": lambda: memory[n, h, w, c],
    }[layout]()
    assert element == tensor[n, c, h, w]
    back, padding = unpack(memory.reshape(-1), layout, tensor.shape)
    np.testing.assert_array_equal(back, tensor)
    assert padding.shape[1] == padded_channels(channels, layout) - channels
    assert np.all(padding == -1)
