"""Intervals of ratios: from comparisons that were made side by side, and from two runs that were not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95

LEAST_GROUPS = 6
"""Fewer say too little of how far groups lie apart."""

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
    first, second = np.triu_indices(len(values))
    return float(np.median((values[first] + values[second]) / 2))


def of_groups(groups: Sequence[NDArray[np.float64]], confidence: float = CONFIDENCE) -> Interval | None:
    """The ratio of log ratios that come in groups, each with a luck of its own: the `middle` of them all.

    A share of wild ones, up to 29 %, cannot carry it away. The interval comes from leaving out a whole group at a time
    (jackknife; Efron and Tibshirani 1993, 11), by Student's t: many log ratios in one group do not make it sure.
    None below `LEAST_GROUPS` that hold any.
    """
    filled = [group for group in groups if len(group)]
    count = len(filled)
    if count < LEAST_GROUPS:
        return None
    ratio = middle(np.concatenate(filled))
    without = np.array([middle(np.concatenate(filled[:i] + filled[i + 1 :])) for i in range(count)])
    error = math.sqrt((count - 1) * float(without.var()))
    reach = student_t(count - 1, confidence) * error
    return Interval(math.exp(ratio), math.exp(ratio - reach), math.exp(ratio + reach))


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
