"""Youden's thresholds against counting, and areas of findings that some images have."""

from __future__ import annotations

import numpy as np
import pytest

from edge.labels import CHESTXRAY14
from mdconv.metrics import area_per_finding, sensitivity_threshold, youden_thresholds


def brute_force_youden(truth: np.ndarray, scores: np.ndarray) -> float:
    """The best sensitivity + specificity over all cuts, by counting."""
    cuts = [*np.unique(scores), np.inf]
    return max(float((scores[truth] >= cut).mean() + (scores[~truth] < cut).mean()) for cut in cuts)


@pytest.mark.parametrize("seed", range(5))
def test_youden_thresholds_reach_the_best_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random((60, 14)) < 0.3
    labels[:2] = [[True], [False]]
    scores = (0.2 * labels + rng.random((60, 14)).round(2) * 0.8).astype(np.float32)
    for index, (name, cut) in enumerate(youden_thresholds(labels, scores).items()):
        truth, values = labels[:, index], scores[:, index]
        reached = (values[truth] >= cut).mean() + (values[~truth] < cut).mean()
        assert name == CHESTXRAY14[index] and 0 <= cut <= 1
        assert reached == pytest.approx(brute_force_youden(truth, values))


@pytest.mark.parametrize("wanted", [0.01, 0.1, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("images", [5, 10, 63, 200])
def test_the_highest_threshold_of_a_sensitivity(images: int, wanted: float) -> None:
    rng = np.random.default_rng(images)
    truth = np.arange(images) % 3 != 0
    scores = (0.2 * truth + rng.random(images).round(2) * 0.8).astype(np.float32)
    cut = sensitivity_threshold(truth, scores, wanted)
    positives = int(truth.sum())
    needed = next(k for k in range(1, positives + 1) if k / positives >= wanted - 1e-12)
    assert (scores[truth] >= cut).sum() >= needed
    reached = min(each for each in scores if each >= cut)
    assert (scores[truth] > reached).sum() < needed, "a higher one calls too few"
    assert 0 < cut <= reached


def test_a_sensitivity_needs_a_positive() -> None:
    with pytest.raises(ValueError, match="none of 3 cases is positive"):
        sensitivity_threshold(np.zeros(3, bool), np.zeros(3), 0.9)


def test_a_threshold_needs_both_kinds_of_case() -> None:
    labels = np.ones((5, 14), bool)
    with pytest.raises(ValueError, match="Atelectasis"):
        youden_thresholds(labels, np.zeros((5, 14), np.float32))


def test_findings_without_both_kinds_have_no_area() -> None:
    labels = np.zeros((4, 14), bool)
    labels[:2, 3] = True
    assert area_per_finding(labels, np.tile(np.array([[0.9], [0.8], [0.1], [0.2]], np.float32), 14)) == {
        "Infiltration": 1.0
    }
