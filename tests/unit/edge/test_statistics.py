"""edge.statistics against brute force, numpy's own definitions and values worked out by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from edge.statistics import (
    MAX_BINS,
    PERCENTILES,
    histogram,
    nearest_rank,
    operating_point,
    roc_auc,
    samples_needed,
    summary,
)


def pairwise_auc(labels, scores):
    """The definition itself, pair by pair."""
    positive = [s for s, y in zip(scores, labels) if y]
    negative = [s for s, y in zip(scores, labels) if not y]
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative))
    return wins / (len(positive) * len(negative))


@pytest.mark.parametrize("count", [2, 3, 7, 50, 201])
@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
def test_roc_auc_counts_pairs_with_ties_as_half(count, levels):
    rng = np.random.default_rng(count * 31 + levels)
    labels = rng.random(count) < 0.3
    labels[0], labels[1] = True, False
    scores = rng.integers(0, levels, count).astype(float)
    assert roc_auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores), abs=1e-12)


def test_roc_auc_of_known_orders():
    assert roc_auc([False, False, True, True], [0.1, 0.2, 0.3, 0.4]) == 1.0
    assert roc_auc([True, True, False, False], [0.1, 0.2, 0.3, 0.4]) == 0.0
    assert roc_auc([True, False], [0.5, 0.5]) == 0.5
    assert roc_auc([0, 1, 0, 1], [1, 2, 3, 4]) == 0.75


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([True, True], [0.1, 0.2], "2 positives and 0 negatives"),
        ([False], [0.1], "0 positives and 1 negatives"),
        ([], [], "0 positives and 0 negatives"),
        ([True, False], [0.1, float("nan")], "finite"),
        ([True, False], [0.1], "one length"),
        ([[True, False]], [[0.1, 0.2]], "two vectors"),
        ([0.3, 1], [0.1, 0.2], "booleans"),
    ],
)
def test_roc_auc_refuses_what_has_no_area(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        roc_auc(labels, scores)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 11, 99, 100, 101, 999, 1000, 1001, 2500])
@pytest.mark.parametrize("percentile", [*PERCENTILES, "25", "75", "100"])
def test_nearest_rank_is_the_smallest_value_that_enough_do_not_exceed(count, percentile):
    rng = np.random.default_rng(count)
    values = np.sort(rng.integers(0, max(2, count // 2), count).astype(float))
    share = Fraction(percentile) / 100
    brute = min(v for v in values if Fraction(int((values <= v).sum()), count) >= share)
    assert nearest_rank(values, percentile) == brute


@pytest.mark.parametrize("count", [10, 77, 1000, 4321])
def test_nearest_rank_is_numpys_inverted_cdf(count):
    values = np.sort(np.random.default_rng(count).exponential(10.0, count))
    for percentile in ("50", "90", "95", "99"):
        assert nearest_rank(values, percentile) == np.percentile(values, float(percentile), method="inverted_cdf")


def test_nearest_rank_does_not_slip_a_rank_by_rounding():
    # In floats 99.9 / 100 * 1000 is 999.0000000000001, whose ceiling is one rank too far: the maximum.
    assert nearest_rank([float(i) for i in range(1, 1001)], "99.9") == 999.0


def test_nearest_rank_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        nearest_rank([], "50")


def test_samples_needed():
    assert [samples_needed(p) for p in PERCENTILES] == [2, 10, 20, 100, 1000]


@pytest.mark.parametrize(
    ("count", "given"),
    [
        (1, []),
        (2, ["p50"]),
        (9, ["p50"]),
        (10, ["p50", "p90"]),
        (99, ["p50", "p90", "p95"]),
        (100, ["p50", "p90", "p95", "p99"]),
        (999, ["p50", "p90", "p95", "p99"]),
        (1000, ["p50", "p90", "p95", "p99", "p99.9"]),
    ],
)
def test_summary_gives_only_the_percentiles_that_the_count_supports(count, given):
    figures = summary(np.arange(count, 0, -1))
    assert [key for key in figures if key.startswith("p") and figures[key] is not None] == given
    assert figures["count"] == count
    assert figures["max"] == count
    assert figures["mean"] == pytest.approx((count + 1) / 2)


def test_summary_of_nothing_claims_nothing():
    figures = summary([])
    assert figures.pop("count") == 0
    assert set(figures.values()) == {None}
    assert set(figures) == {"mean", "p50", "p90", "p95", "p99", "p99.9", "max", "histogram"}


def test_summary_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="finite"):
        summary([1.0, float("inf")])


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("shape", ["equal", "normal", "tail", "two values", "one ulp"])
def test_histogram_holds_every_value_once(count, shape):
    rng = np.random.default_rng(count)
    values = {
        "equal": np.full(count, 3.0),
        "normal": rng.normal(10, 1, count),
        "tail": np.concatenate([rng.normal(10, 0.1, count), [5000.0]]),
        "two values": np.tile([1.0, 2.0], count),
        "one ulp": np.tile([1.0, np.nextafter(1.0, 2.0)], count),
    }[shape]
    result = histogram(values)
    edges, counts = result["edges"], result["counts"]
    assert len(edges) == len(counts) + 1 <= MAX_BINS + 2
    assert sum(counts) == values.size
    assert edges[0] == values.min()
    assert edges[-1] == values.max()
    for index, number in enumerate(counts):
        top = values <= edges[-1] if index == len(counts) - 1 else values < edges[index + 1]
        assert number == int(((values >= edges[index]) & top).sum())


def test_histogram_keeps_the_body_readable_under_a_long_tail():
    rng = np.random.default_rng(1)
    body = rng.normal(10, 0.5, 1000)
    result = histogram(np.concatenate([body, [4000.0]]))
    assert sum(1 for number in result["counts"] if number > 0) > 10
    assert result["counts"][-1] == 1


def test_an_operating_point_counts() -> None:
    truth = np.array([True, True, True, False, False])
    chance = np.array([0.9, 0.5, 0.2, 0.5, 0.1])
    point = operating_point(truth, chance, 0.5)
    assert point["threshold"] == 0.5
    assert point["sensitivity"] == pytest.approx(2 / 3) and point["specificity"] == pytest.approx(1 / 2)
    assert point["accuracy"] == pytest.approx(3 / 5)
    assert operating_point(truth[:3], chance[:3], 0.5)["specificity"] is None
    assert operating_point(truth[3:], chance[3:], 0.5)["sensitivity"] is None
