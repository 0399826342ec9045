"""edge.intervals: against tables, and against values whose spread is known by a formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge.intervals import (
    LEAST_GROUPS,
    LEAST_VALUES,
    Spread,
    mean,
    middle,
    of_groups,
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


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_the_middle_is_the_median_of_all_means_of_two(count):
    values = np.random.default_rng(count).normal(0, 0.05, count)
    assert middle(values) == pytest.approx(np.median([(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]))


@pytest.mark.parametrize(("groups", "each"), [(12, 1), (30, 1), (12, 8), (12, 40)])
@pytest.mark.parametrize("luck", [0.0, 0.02])
def test_the_interval_is_as_wide_as_the_groups_luck_and_the_noise_in_them_make_it(groups, each, luck):
    """Of normal values the middle has pi / 3 of the mean's variance (Hodges and Lehmann 1963): sigma^2 / n, and the
    luck of a group does not shrink with what it holds."""
    noise = 0.03
    expected = math.sqrt((math.pi / 3) * noise**2 / (groups * each) + luck**2 / groups)
    errors = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        interval = of_groups([rng.normal(0, luck) + rng.normal(0, noise, each) for _ in range(groups)])
        errors.append(math.log(interval.high / interval.low) / 2 / student_t(groups - 1))
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(expected, rel=0.15)


def test_the_interval_of_groups_holds_the_true_ratio_about_as_often_as_it_says():
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        groups = [0.05 + rng.normal(0, 0.02) + 0.02 * rng.standard_t(3, rng.integers(0, 9)) for _ in range(15)]
        interval = of_groups(groups)
        held += interval.low <= math.exp(0.05) <= interval.high
    assert held >= 180  # 190 are 95 %


def test_a_quarter_of_wild_ones_does_not_carry_the_middle_away():
    logs = np.r_[np.random.default_rng(1).normal(0.1, 0.01, 30), np.full(10, 5.0)]
    assert middle(logs) == pytest.approx(0.1, abs=0.02)
    assert logs.mean() > 1


def test_too_few_groups_have_no_interval():
    group = np.zeros(3)
    assert of_groups([group] * (LEAST_GROUPS - 1) + [np.zeros(0)]) is None
    assert of_groups([group] * LEAST_GROUPS) == (1.0, 1.0, 1.0)


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
