"""edge.intervals: against exact distributions, tables, and series whose spread is known by a formula."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edge.intervals import (
    LEAST_PAIRS,
    LEAST_VALUES,
    Spread,
    hodges_lehmann,
    mean,
    middle,
    percentile_of,
    spread,
    student_t,
    unpaired,
)
from edge.statistics import nearest_rank


def correlated(rng, count, rho):
    """An AR(1) series of unit variance about 20."""
    noise = rng.normal(size=count)
    series = np.empty(count)
    series[0] = noise[0]
    for i in range(1, count):
        series[i] = rho * series[i - 1] + math.sqrt(1 - rho**2) * noise[i]
    return 20 + series


@pytest.mark.parametrize("count", range(LEAST_PAIRS, 13))
def test_the_ends_miss_as_rarely_as_the_signed_rank_distribution_says(count):
    """The interval leaves out 0 exactly where the rank sum is extreme: counted over all 2^n signs, at most 5 %."""
    sizes = np.arange(1, count + 1, dtype=float)
    # Sizes far apart, so that the sign of a mean of two is that of its larger one: the Walsh form of the rank sum.
    sizes = 3.0**sizes * 1e-9
    missed = 0
    for signs in itertools.product((-1, 1), repeat=count):
        interval = hodges_lehmann(sizes * np.array(signs))
        missed += interval.low > 1 or interval.high < 1
    assert 0 < missed / 2**count <= 0.05


@pytest.mark.parametrize(("count", "critical"), [(6, 0), (8, 3), (10, 8), (15, 25), (20, 52), (30, 137), (50, 434)])
def test_the_ends_are_the_ones_of_the_tables_or_the_next_wider(count, critical):
    """Critical values of Wilcoxon's signed ranks, 5 % on two sides (Wilcoxon and Wilcox 1964)."""
    rng = np.random.default_rng(count)
    logs = rng.normal(0, 0.05, count)
    means = sorted((a + b) / 2 for i, a in enumerate(logs) for b in logs[i:])
    interval = hodges_lehmann(logs)
    place = min(range(len(means)), key=lambda i: abs(math.exp(means[i]) - interval.low))
    assert critical - 1 <= place <= critical
    assert math.exp(means[-1 - place]) == pytest.approx(interval.high)
    assert interval.ratio == pytest.approx(math.exp(np.median(means)))


def test_a_quarter_of_wild_pairs_does_not_carry_the_middle_away():
    logs = np.r_[np.random.default_rng(1).normal(0.1, 0.01, 30), np.full(10, 5.0)]
    assert middle(logs) == pytest.approx(0.1, abs=0.02)
    assert logs.mean() > 1


def test_too_few_pairs_have_no_interval():
    assert hodges_lehmann(np.zeros(LEAST_PAIRS - 1)) is None
    assert hodges_lehmann(np.zeros(LEAST_PAIRS)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("freedom", "value"), [(6, 2.447), (9, 2.262), (10, 2.228), (18, 2.101), (30, 2.042), (120, 1.980)]
)
def test_student_t_is_that_of_the_tables(freedom, value):
    assert student_t(freedom) == pytest.approx(value, abs=0.001)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_the_spread_of_a_mean_is_what_the_formula_for_a_correlated_series_says(rho):
    """Variance of the mean of AR(1): (1 + rho) / (1 - rho) / n. The bootstrap sees the correlation, on average."""
    count = 4000
    expected = math.sqrt((1 + rho) / (1 - rho) / count) / 20
    found = [spread(correlated(np.random.default_rng(seed), count, rho), mean).error for seed in range(12)]
    assert np.mean(found) == pytest.approx(expected, rel=0.2)


def test_the_interval_of_two_runs_apart_holds_the_true_ratio_about_as_often_as_it_says():
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a, b = correlated(rng, 800, 0.7), 1.05 * correlated(rng, 800, 0.7)
        ratio = nearest_rank(np.sort(b), "50") / nearest_rank(np.sort(a), "50")
        median = percentile_of(50)
        interval = unpaired(ratio, spread(a, median), spread(b, median))
        held += interval.low <= 1.05 <= interval.high
    assert held >= 51  # 57 are 95 % of 60


@pytest.mark.parametrize("count", [100, 101, 999, 1001])
@pytest.mark.parametrize("percentile", [50, 90])
def test_the_percentile_of_rows_is_the_one_of_the_report(count, percentile):
    values = np.random.default_rng(count).gamma(3, 2, (4, count))
    expected = [nearest_rank(np.sort(row), str(percentile)) for row in values]
    assert percentile_of(percentile)(values).tolist() == expected


def test_what_cannot_be_told_is_none():
    assert spread(np.ones(LEAST_VALUES - 1), mean) is None
    assert spread(np.zeros(LEAST_VALUES), mean) is None
    still = Spread(0.0, 9)
    assert unpaired(2.0, still, None) is None
    assert unpaired(0.0, still, still) is None
    assert unpaired(2.0, still, still) == (2.0, 2.0, 2.0)
