"""Areas of many resamples at once, against the area of each resample written out."""

from __future__ import annotations

import numpy as np
import pytest

from edge.statistics import roc_auc
from mdconv.metrics import CHUNK, patient_weights, resampled_areas, roc_points, weighted_auc


def a_case(images: int, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((images, labels)) < 0.3
    scores = np.round(rng.normal(size=(images, labels)) + truth, 1)  # rounded: there are ties
    return truth, scores


@pytest.mark.parametrize("images", [7, 40, 201])
def test_an_area_with_weights_is_that_of_repeated_images(images: int) -> None:
    truth, scores = a_case(images, 1, seed=images)
    weights = np.random.default_rng(1).integers(0, 4, (20, images)).astype(np.int32)
    found = weighted_auc(truth[:, 0], scores[:, 0], weights)
    for area, row in zip(found, weights):
        repeated, repeated_scores = np.repeat(truth[:, 0], row), np.repeat(scores[:, 0], row)
        if 0 < repeated.sum() < len(repeated):
            assert area == pytest.approx(roc_auc(repeated, repeated_scores), abs=1e-12)
        else:
            assert np.isnan(area)


def test_a_label_that_is_never_present_has_no_area() -> None:
    truth, scores = a_case(30, 3, seed=0)
    truth[:, 1] = False
    areas = resampled_areas(truth, scores, draws=10)
    assert np.isnan(areas.all[1]) and np.isnan(areas.resampled[:, 1]).all()
    assert areas.all[0] == pytest.approx(roc_auc(truth[:, 0], scores[:, 0]), abs=1e-12)


def test_images_of_one_patient_are_drawn_together() -> None:
    patients = ["a", "b", "a", "c", "b", "a"]
    weights = patient_weights(patients, 50, np.random.default_rng(3))
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all(), "as many patients as there are"


def test_many_images_are_resampled_as_few_are() -> None:
    """More weights than are held at a time: the last draws are those of one stream, each written out."""
    images, draws = 3000, 2000
    assert images * draws > CHUNK
    truth, scores = a_case(images, 1, seed=2)
    patients = [str(i // 3) for i in range(images)]
    areas = resampled_areas(truth, scores, patients, draws=draws, seed=7)
    assert areas.resampled.shape == (draws, 1)
    weights = patient_weights(patients, draws, np.random.default_rng(7))
    for draw in (0, 1397, 1398, draws - 1):
        repeated = np.repeat(np.arange(images), weights[draw])
        expected = roc_auc(truth[repeated, 0], scores[repeated, 0])
        assert areas.resampled[draw, 0] == pytest.approx(expected, abs=1e-12)


def test_the_interval_covers_what_the_normal_approximation_says() -> None:
    """Against Hanley and McNeil's standard error (Radiology 143, 1982, equation 1), for images that are independent."""
    truth, scores = a_case(2000, 1, seed=5)
    areas = resampled_areas(truth, scores, draws=2000)
    area, positives = float(areas.all[0]), int(truth.sum())
    negatives = len(truth) - positives
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    expected = (variance / (positives * negatives)) ** 0.5
    assert float(areas.resampled.std()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("images", [9, 50])
def test_the_curve_is_that_of_all_cuts_and_its_area_the_area(images: int) -> None:
    truth, scores = a_case(images, 1, seed=images)
    truth, scores = truth[:, 0], scores[:, 0]
    wrong, right = roc_points(truth, scores)
    cuts = [np.inf, *sorted(set(scores), reverse=True)]
    assert right == pytest.approx([(scores[truth] >= cut).mean() for cut in cuts])
    assert wrong == pytest.approx([(scores[~truth] >= cut).mean() for cut in cuts])
    area = float(((right[1:] + right[:-1]) / 2 * np.diff(wrong)).sum())
    assert area == pytest.approx(roc_auc(truth, scores))
