"""Intervals of ratios: from pairs that were measured side by side, and from two series that were not."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95

LEAST_PAIRS = 6
"""Fewer have no interval at this confidence: even if all point one way, chance does that more often."""

BLOCKS = 10
"""Into so many a series is cut. A disturbance that lasts as long as one counts as one observation, not as many."""

LEAST_VALUES = 10 * BLOCKS
DRAWS = 1000
SEED = 0

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Of each row of (n, m) values, as (n,)."""


class Interval(NamedTuple):
    """A ratio and the ends of its interval."""

    ratio: float
    low: float
    high: float


class Spread(NamedTuple):
    """How far chance moves the logarithm of a figure."""

    error: float
    """Its standard error."""
    freedom: float
    """The degrees of freedom with which that is known."""


def middle(values: NDArray[np.float64]) -> float:
    """The median of all means of two of (n,) values, each with itself among them (Hodges and Lehmann 1963)."""
    return float(np.median(_means_of_two(values)))


def hodges_lehmann(logarithms: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval | None:
    """The ratio of pairs from their (n,) log ratios: their `middle`, with ends from Wilcoxon's signed ranks.

    (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 2014, 3.2 and 3.3, large-sample form.) Takes the
    log ratios to scatter alike on both sides of their middle; a share of wild ones, up to 29 %, cannot carry it away.
    None below `LEAST_PAIRS`.
    """
    count = len(logarithms)
    if count < LEAST_PAIRS:
        return None
    means = np.sort(_means_of_two(logarithms))
    deviation = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    beyond = max(0, math.floor(count * (count + 1) / 4 - _normal(confidence) * deviation) - 1)
    low, high = float(means[beyond]), float(means[-1 - beyond])
    return Interval(math.exp(middle(logarithms)), math.exp(low), math.exp(high))


def _means_of_two(values: NDArray[np.float64]) -> NDArray[np.float64]:
    first, second = np.triu_indices(len(values))
    found: NDArray[np.float64] = (values[first] + values[second]) / 2
    return found


def spread(values: NDArray[np.float64], statistic: Statistic, least: int = LEAST_VALUES) -> Spread | None:
    """How far chance moves the logarithm of `statistic` of (n,) values, given in the order in which they came.

    Circular block bootstrap (Politis and Romano 1992) with blocks of n / `BLOCKS`, since neighbours resemble each
    other. None of fewer than `least` values, or where the statistic is not positive.
    """
    count = len(values)
    if count < least:
        return None
    length = math.ceil(count / BLOCKS)
    starts = np.random.default_rng(SEED).integers(0, count, (DRAWS, BLOCKS))
    picked = (starts[:, :, np.newaxis] + np.arange(length)).reshape(DRAWS, -1)[:, :count] % count
    drawn = statistic(values[picked])
    if not (drawn > 0).all():
        return None
    # So few blocks, drawn from their own mean, spread less than they would about the true one.
    error = float(np.log(drawn).std()) * math.sqrt(BLOCKS / (BLOCKS - 1))
    return Spread(error, BLOCKS - 1)


def unpaired(ratio: float, a: Spread | None, b: Spread | None, confidence: float = CONFIDENCE) -> Interval | None:
    """The interval of `ratio` = b / a of two runs that know nothing of each other (Welch); None if either spread is."""
    if a is None or b is None or ratio <= 0:
        return None
    variances = a.error**2, b.error**2
    whole = sum(variances)
    if whole == 0:
        return Interval(ratio, ratio, ratio)
    freedom = whole**2 / (variances[0] ** 2 / a.freedom + variances[1] ** 2 / b.freedom)
    reach = math.exp(student_t(freedom, confidence) * math.sqrt(whole))
    return Interval(ratio, ratio / reach, ratio * reach)


def percentile_of(percentile: int) -> Statistic:
    """The nearest-rank percentile, as `edge.statistics.nearest_rank` has it."""

    def statistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
        rank = max(0, math.ceil(percentile * values.shape[1] / 100) - 1)
        ranked: NDArray[Any] = np.partition(values, rank, axis=1)[:, rank]
        return ranked

    return statistic


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.mean(axis=1)
    return found


def student_t(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Student's t beyond which, on both sides, 1 - `confidence` lies, by its expansion about the normal distribution.

    (Abramowitz and Stegun 26.7.5.) Within 0.002 from 6 degrees of freedom on.
    """
    z = _normal(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def _normal(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
