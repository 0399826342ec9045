"""The gate's figures against counting and adding up one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.figures import agreement, expected_calibration_error, figures_on_labels
from edge.results import probabilities
from edge.statistics import roc_auc

NAMES = ("Mass", "Nodule", "Hernia")
THRESHOLDS = {"Mass": 0.4, "Nodule": 0.55, "Hernia": 0.9}


def calibration_error_by_loops(truth: Any, chances: Any, bins: int) -> float:
    """Guo et al. 2017, equation 3."""
    error = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [i for i, p in enumerate(chances) if low <= p < high or (p == 1 and number == bins - 1)]
        if inside:
            accuracy = sum(truth[i] for i in inside) / len(inside)
            confidence = sum(chances[i] for i in inside) / len(inside)
            error += len(inside) / len(truth) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("images", [1, 7, 200])
@pytest.mark.parametrize("bins", [1, 4, 16])
def test_calibration_error(images: int, bins: int) -> None:
    rng = np.random.default_rng(images)
    chances = rng.choice([0.0, 0.125, 0.25, 0.49, 0.5, 0.75, 0.9375, 0.99, 1.0], images)  # edges of bins, too
    truth = rng.random(images) < chances**2
    found = expected_calibration_error(truth, chances, bins)
    assert found == pytest.approx(calibration_error_by_loops(truth, chances, bins), abs=1e-12)


def test_calibration_error_of_a_model_that_is_always_sure_and_half_right() -> None:
    assert expected_calibration_error(np.array([True, False]), np.ones(2)) == pytest.approx(0.5)


def test_by_finding_and_model() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((90, 3)) < (0.5, 0.3, 0.1)
    models = {}
    models["reference"] = (rng.normal(0, 1, truth.shape) + 2 * truth - 1).astype(np.float32)
    models["candidate"] = (models["reference"] + rng.normal(0, 0.5, truth.shape)).astype(np.float32)
    figures = figures_on_labels(models["reference"], models["candidate"], NAMES, truth, THRESHOLDS)
    for model, logits in models.items():
        areas, errors = [], []
        for i, name in enumerate(NAMES):
            found, chances = figures["findings"][name], probabilities(logits[:, i])
            called = [p >= THRESHOLDS[name] for p in chances]
            right = [c == t for c, t in zip(called, truth[:, i])]
            positive = [ok for ok, t in zip(right, truth[:, i]) if t]
            negative = [ok for ok, t in zip(right, truth[:, i]) if not t]
            assert (found["positives"], found["threshold"]) == (len(positive), THRESHOLDS[name])
            assert found["sensitivity"][model] == pytest.approx(sum(positive) / len(positive))
            assert found["specificity"][model] == pytest.approx(sum(negative) / len(negative))
            areas.append(roc_auc(truth[:, i], logits[:, i]))
            errors.append(calibration_error_by_loops(truth[:, i], chances, 15))
            assert found["auc"][model] == pytest.approx(areas[-1])
            assert found["calibration_error"][model] == pytest.approx(errors[-1])
        assert figures["mean_auc"][model] == pytest.approx(np.mean(areas))
        assert figures["mean_calibration_error"][model] == pytest.approx(np.mean(errors))
    for rate in ("sensitivity", "specificity"):
        known = [each[rate] for each in figures["findings"].values() if None not in each[rate].values()]
        mean = figures[f"mean_{rate}"]
        assert mean["findings"] == len(known)
        assert mean["drop"] == pytest.approx(np.mean([each["reference"] - each["candidate"] for each in known]))
        assert mean["drop"] == pytest.approx(mean["reference"] - mean["candidate"])
    mean = figures["mean_auc"]
    assert mean["drop"] == pytest.approx(mean["reference"] - mean["candidate"])
    assert mean["interval"][0] < mean["drop"] < mean["interval"][1]
    assert "15 bins of equal width" in figures["method"]["calibration_error"]


def test_agreement() -> None:
    expected, found = np.array([[0.1, 0.5], [0.9, 0.2]]), np.array([[0.2, 0.5], [0.5, 0.1]])
    # At 0.2 a finding that reaches its threshold is positive; the second column's 0.2 and 0.1 lie on two sides.
    figures = agreement(expected, found, np.array([0.2, 0.2]))
    assert figures == pytest.approx({"mean_difference": 0.15, "max_difference": 0.4, "changed_decisions": 2 / 4})
    assert agreement(expected, found, np.array([0.6, 0.3]))["changed_decisions"] == 1 / 4
