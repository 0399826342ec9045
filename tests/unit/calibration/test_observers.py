from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.observers import BINS, METHODS, Histogram, entropy, least_divergence, minmax, mse, percentile


def observed(*arrays: NDArray[np.float32]) -> Histogram:
    histogram = Histogram()
    for array in arrays:
        histogram.update(array)
    return histogram


def samples(kind: str, size: int = 20_000) -> NDArray[np.float32]:
    rng = np.random.default_rng(17)
    values = {
        "normal": rng.normal(0, 0.7, size),
        "outlier": np.append(rng.normal(0, 1, size - 1), 60),
        "relu6": np.clip(rng.normal(0.5, 2, size), 0, 6),
        "laplace": rng.laplace(0, 1e-4, size),
        "huge": rng.normal(0, 3e7, size),
        "uniform": rng.uniform(-1, 1, size),
    }[kind]
    return values.astype(np.float32)


KINDS = ("normal", "outlier", "relu6", "laplace", "huge", "uniform")


@pytest.mark.parametrize("kind", KINDS)
def test_counts_equal_numpy(kind: str) -> None:
    values = samples(kind)
    histogram = observed(values[:7], values[7:5002].reshape(5, -1), values[5002:])
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    expected, _ = np.histogram(magnitudes, BINS, (0, BINS * histogram.width))
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    assert math.frexp(histogram.width)[0] == 0.5  # a power of two
    assert BINS / 2 <= histogram.largest / histogram.width < BINS  # so the resolution is never wasted


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_batches_does_not_matter(kind: str) -> None:
    batches = np.split(samples(kind), 8)
    first = observed(*batches)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(8)
        other = observed(*(batches[i] for i in order))
        np.testing.assert_array_equal(other.counts, first.counts)
        for method in METHODS.values():
            assert method(other) == method(first)


@pytest.mark.parametrize("last", [1.0, 17.0, 3e4, 2.0**60])
@pytest.mark.parametrize("method", METHODS)
def test_a_range_that_grows_late_is_as_if_it_had_been_known_before(method: str, last: float) -> None:
    """However far the last value lies beyond all before it, bins that were counted finely are merged exactly."""
    early = (samples("normal") * np.float32(1e-3)).reshape(4, -1)
    grown = observed(*early, np.full(3, last, np.float32))
    known = observed(np.full(3, last, np.float32), *early)
    np.testing.assert_array_equal(grown.counts, known.counts)
    assert (grown.low, grown.high, grown.width) == (known.low, last, known.width)
    assert METHODS[method](grown) == METHODS[method](known)
    magnitudes = np.abs(np.append(early, np.full(3, last))).astype(np.float32)
    expected, _ = np.histogram(magnitudes[magnitudes > 0].astype(np.float64), BINS, (0, BINS * grown.width))
    np.testing.assert_array_equal(grown.counts, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax(kind: str) -> None:
    values = samples(kind)
    assert minmax(observed(values)) == np.abs(values).max()


@pytest.mark.parametrize("kind", KINDS)
def test_percentile(kind: str) -> None:
    values = samples(kind, 300_000)
    histogram = observed(values)
    exact = np.percentile(np.abs(values), 99.999, method="inverted_cdf")
    assert abs(percentile(histogram) - exact) <= histogram.width


@pytest.mark.parametrize("method", [percentile, entropy])
def test_a_rare_outlier_is_dropped_and_one_that_is_not_so_rare_is_kept(method: Callable[[Histogram], float]) -> None:
    assert method(observed(samples("outlier", 120_000))) < 6
    assert method(observed(samples("outlier", 80_000))) == 60


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_the_best_of_brute_force(kind: str) -> None:
    values = samples(kind).astype(np.float64)

    def error(threshold: float) -> float:
        scale = threshold / 127
        return float(((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2).mean())

    best = min(error(threshold) for threshold in np.abs(values).max() * np.linspace(0.005, 1, 200))
    assert error(mse(observed(values.astype(np.float32)))) <= 1.03 * best


def naive_entropy(values: NDArray[np.float32], width: float, step: int) -> float:
    """Migacz's procedure as his slides have it, with loops, on the values themselves."""
    bins = [0] * (int(float(np.abs(values).max()) / width) + 1)
    for value in np.abs(values[values != 0]).astype(float):
        bins[int(value / width)] += 1
    best, best_divergence = 0, math.inf
    for count in [*range(128, len(bins), step), len(bins)]:
        kept = bins[:count]
        target = kept.copy()
        target[-1] += sum(bins[count:])
        merged: dict[int, list[int]] = {}
        for i, n in enumerate(kept):
            if n:
                merged.setdefault(i * 128 // count, []).append(n)
        spread = [sum(m := merged[i * 128 // count]) / len(m) if n else 0.0 for i, n in enumerate(kept)]
        divergence = 0.0
        for p, q in zip(target, spread):
            if p and not q:
                divergence = math.inf
            elif p:
                divergence += p / sum(target) * math.log(p / sum(target) / (q / sum(spread)))
        if divergence < best_divergence:
            best, best_divergence = count, divergence
    return min(best * width, float(np.abs(values).max()))


@pytest.mark.parametrize("kind", ["normal", "relu6", "outlier"])
def test_entropy_equals_the_loops(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.observers._STEP", 400)  # the loops are slow
    values = samples(kind, 3000)
    histogram = observed(values)
    assert least_divergence(histogram) == naive_entropy(values, histogram.width, 400)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_clips_no_more_than_percentile(kind: str) -> None:
    histogram = observed(samples(kind, 300_000))
    assert entropy(histogram) == max(least_divergence(histogram), percentile(histogram))
    assert np.count_nonzero(np.abs(samples(kind, 300_000)) > entropy(histogram) + histogram.width) <= 3


def test_divergence_clips_an_outlier_but_not_a_uniform_tensor() -> None:
    assert least_divergence(observed(samples("outlier", 100_000))) < 10
    assert least_divergence(observed(samples("uniform", 100_000))) > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_all_zeros_have_no_range(method: str) -> None:
    histogram = observed(np.zeros((2, 3), np.float32))
    assert histogram.zeros == 6
    assert METHODS[method](histogram) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        observed(np.array([1, bad, 2], np.float32))
