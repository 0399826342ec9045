"""DeLong's intervals against the definition written out in loops, and against a bootstrap."""

from __future__ import annotations

import itertools
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.delong import AreaDrops, area_drops, midranks, structural_components
from edge.statistics import roc_auc
from mdconv.metrics import resampled_areas

Z = NormalDist().inv_cdf(0.975)
Case = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]


def a_case(images: int, findings: int, seed: int, decimals: int = 1) -> Case:
    """Truth and the scores of two models that are much alike, (N, L); findings go together, scores have ties."""
    rng = np.random.default_rng(seed)
    ill = 0.5 * rng.normal(size=(images, 1)) + rng.normal(size=(images, findings))
    truth = ill + rng.normal(size=ill.shape) > np.linspace(0.3, 1.2, findings)
    first = ill + rng.normal(0, 0.8, ill.shape)
    return truth, first.round(decimals), (first + rng.normal(0, 0.5, ill.shape)).round(decimals)


def kernel(positive: float, negative: float) -> float:
    return 1.0 if positive > negative else 0.5 if positive == negative else 0.0


def components_by_loops(truth: Any, scores: Any) -> tuple[float, list[float]]:
    """DeLong et al. 1988, equations 2 and 3, pair by pair: the area, and each image's component."""
    positives = [s for s, y in zip(scores, truth) if y]
    negatives = [s for s, y in zip(scores, truth) if not y]
    components = [
        sum(kernel(s, other) for other in negatives) / len(negatives)
        if y
        else sum(kernel(other, s) for other in positives) / len(positives)
        for s, y in zip(scores, truth)
    ]
    area = sum(kernel(p, n) for p, n in itertools.product(positives, negatives)) / len(positives) / len(negatives)
    return area, components


def covariance_by_loops(truth: Any, scores: Any) -> tuple[list[float], NDArray[np.float64]]:
    """Areas of K models on the same (N,) truth and their covariance (K, K): S10 / m + S01 / n, sum by sum."""
    found = [components_by_loops(truth, each) for each in scores]
    covariance = np.zeros((len(scores), len(scores)))
    for kind in (True, False):
        images = [i for i, y in enumerate(truth) if bool(y) == kind]
        for r, s in itertools.product(range(len(scores)), repeat=2):
            (area_r, by_r), (area_s, by_s) = found[r], found[s]
            total = sum((by_r[i] - area_r) * (by_s[i] - area_s) for i in images)
            covariance[r, s] += total / (len(images) - 1) / len(images)
    return [area for area, _ in found], covariance


def interval(value: float, variance: float) -> Any:
    return pytest.approx((value - Z * variance**0.5, value + Z * variance**0.5), abs=1e-12)


@pytest.mark.parametrize("images", [5, 12, 61])
@pytest.mark.parametrize("decimals", [0, 9])
def test_a_finding_is_what_the_definition_says(images: int, decimals: int) -> None:
    truth, first, second = a_case(images, 3, seed=images, decimals=decimals)
    truth[:2], truth[2:4] = True, False
    drops = area_drops(truth, first, second)
    for i, drop in enumerate(drops.drops):
        areas, covariance = covariance_by_loops(truth[:, i], [first[:, i], second[:, i]])
        np.testing.assert_allclose(drops.areas[:, i], areas, rtol=1e-12)
        assert drop.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
        assert drop.interval == interval(drop.value, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


def test_the_mean_over_findings_of_one_truth_is_delongs_contrast() -> None:
    """Where all findings have one truth, they are 2 L models on the same cases: the contrast of their covariance."""
    truth, first, second = a_case(41, 4, seed=3)
    truth = np.repeat(truth[:, :1], 4, axis=1)
    areas, covariance = covariance_by_loops(truth[:, 0], [*first.T, *second.T])
    contrast = np.array([1 / 4] * 4 + [-1 / 4] * 4)
    mean = area_drops(truth, first, second).mean
    assert mean.value == pytest.approx(float(contrast @ areas), abs=1e-12)
    assert mean.interval == interval(mean.value, float(contrast @ covariance @ contrast))


def contributions_by_loops(case: Case, patients: list[str]) -> dict[str, float]:
    """What each patient adds to the error of the mean drop, image by image and finding by finding."""
    truth, first, second = case
    total = dict.fromkeys(patients, 0.0)
    for i in range(truth.shape[1]):
        found = [components_by_loops(truth[:, i], scores[:, i]) for scores in (first, second)]
        drop = found[0][0] - found[1][0]
        for image, patient in enumerate(patients):
            alike = [k for k in range(len(truth)) if truth[k, i] == truth[image, i]]
            clusters = len({patients[k] for k in alike})
            component = found[0][1][image] - found[1][1][image] - drop
            total[patient] += component / len(alike) * (clusters / (clusters - 1)) ** 0.5 / truth.shape[1]
    return total


@pytest.mark.parametrize("images_each", [1, 3])
def test_the_mean_over_findings_adds_up_by_patient(images_each: int) -> None:
    case = a_case(45, 3, seed=8)
    patients = [f"p{i // images_each}" for i in range(45)]
    mean = area_drops(*case, patients).mean
    assert mean.interval == interval(
        mean.value, sum(value**2 for value in contributions_by_loops(case, patients).values())
    )


def bootstrap(case: Case, patients: list[str] | None = None) -> NDArray[np.float64]:
    """Drops of 2,000 resamples of the patients, each finding and their mean: (draws, L + 1)."""
    truth, first, second = case
    before, after = (resampled_areas(truth, scores, patients, seed=1).resampled for scores in (first, second))
    drops = before - after
    return np.column_stack([drops, drops.mean(axis=1)])


def ends(drops: AreaDrops) -> NDArray[np.float64]:
    return np.array([each.interval for each in (*drops.drops, drops.mean)])


@pytest.mark.parametrize("images_each", [1, 2])
def test_intervals_agree_with_a_bootstrap_of_2000_draws(images_each: int) -> None:
    """To 2 % of an interval's width, at either end. The bootstrap's own error is 0.8 %: 1 / sqrt(2 * 2000) / 2."""
    truth, first, second = (np.repeat(each, images_each, axis=0) for each in a_case(1500, 2, seed=5))
    rng = np.random.default_rng(2)  # a patient's images are alike, not the same
    case = truth, first + rng.normal(0, 0.1, first.shape), second + rng.normal(0, 0.1, first.shape)
    patients = [f"p{i // images_each}" for i in range(len(truth))]
    found = ends(area_drops(*case, patients))
    drawn = bootstrap(case, patients)
    value, error = found.mean(axis=1), drawn.std(axis=0, ddof=1)
    expected = np.stack([value - Z * error, value + Z * error], axis=1)
    width = found[:, 1] - found[:, 0]
    assert (np.abs(found - expected).max(axis=1) / width).max() <= 0.02
    np.testing.assert_allclose(drawn.mean(axis=0), value, atol=0.02 * width.min())


def test_images_of_one_patient_are_not_independent() -> None:
    case = a_case(60, 2, seed=4)
    fourfold = tuple(np.repeat(each, 4, axis=0) for each in case)
    patients = [f"p{i // 4}" for i in range(240)]
    once, clustered, naive = (
        np.diff(ends(drops), axis=1)
        for drops in (area_drops(*case), area_drops(*fourfold, patients), area_drops(*fourfold))
    )
    np.testing.assert_allclose(clustered, once, rtol=1e-12)
    assert (naive < 0.6 * once).all()


def test_the_same_model_twice_differs_by_nothing() -> None:
    truth, first, _ = a_case(30, 2, seed=6)
    drops = area_drops(truth, first, first)
    assert [*drops.drops, drops.mean] == [(0.0, (0.0, 0.0))] * 3


def test_what_is_not_defined() -> None:
    truth, first, second = a_case(30, 3, seed=7)
    truth[:, 0] = False
    truth[:, 1] = np.arange(30) == 4
    drops = area_drops(truth, first, second)
    assert np.isnan(drops.areas[:, 0]).all() and np.isnan(drops.drops[0].value) and drops.drops[0].interval is None
    assert np.isfinite(drops.drops[1].value) and drops.drops[1].interval is None  # one positive: no spread to see
    assert drops.drops[2].interval is not None
    assert drops.mean.value == pytest.approx((drops.drops[1].value + drops.drops[2].value) / 2)
    assert drops.mean.interval is None
    assert np.isnan(area_drops(truth[:, :1], first[:, :1], second[:, :1]).mean.value)


def test_components_and_ranks() -> None:
    truth, first, second = a_case(37, 1, seed=9, decimals=0)
    scores = np.stack([first[:, 0], second[:, 0]])
    areas, components = structural_components(truth[:, 0], scores)
    for k in range(2):
        area, expected = components_by_loops(truth[:, 0], scores[k])
        np.testing.assert_allclose(components[k], expected, rtol=1e-12)
        assert areas[k] == pytest.approx(area) == roc_auc(truth[:, 0], scores[k])
    ranks = [[1 + sum(b < a for b in row) + (sum(b == a for b in row) - 1) / 2 for a in row] for row in scores]
    np.testing.assert_array_equal(midranks(scores), ranks)
