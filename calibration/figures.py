"""What the accuracy gate measures by finding: areas, sensitivity, specificity and calibration of both models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.delong import LEVEL, Estimate, area_drops
from edge.results import probabilities
from edge.statistics import rates

CALIBRATION_BINS = 15
MODELS = ("reference", "candidate")


def agreement(
    expected: NDArray[np.float64], found: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> dict[str, Any]:
    """Mean and largest difference of (N, L) probabilities; share of decisions that differ, at (L,) thresholds."""
    difference = np.abs(found - expected)
    changed = (expected >= thresholds) != (found >= thresholds)
    return {
        "mean_difference": float(difference.mean()),
        "max_difference": float(difference.max()),
        "changed_decisions": float(changed.mean()),
    }


def figures_on_labels(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    names: Sequence[str],
    truth: NDArray[np.bool_],
    thresholds: Mapping[str, float],
    patients: Sequence[str] | None = None,
) -> dict[str, Any]:
    """How well both models tell the truth, from their (N, L) logits and the (N, L) truth, ready for JSON.

    Returns:
        ``findings``: by name, ``positives``, ``threshold`` and, for both models, ``auc`` (with ``drop`` and its
        ``interval``), ``sensitivity``, ``specificity``, ``calibration_error``. ``mean_auc``, ``mean_sensitivity``,
        ``mean_specificity`` (each with its ``drop``, over the ``findings`` that have one; absent if none has) and
        ``mean_calibration_error`` likewise. What is not defined is None. ``method``: how it was done.
    """
    drops = area_drops(truth, reference.astype(np.float64), candidate.astype(np.float64), patients)
    chances = [probabilities(logits) for logits in (reference, candidate)]
    findings: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        points = [rates(truth[:, i], chance[:, i] >= thresholds[name]) for chance in chances]
        errors = [expected_calibration_error(truth[:, i], chance[:, i]) for chance in chances]
        findings[name] = {
            "positives": int(truth[:, i].sum()),
            "threshold": thresholds[name],
            "auc": _areas(drops.areas[:, i], drops.drops[i]),
            **{key: _both([point[key] for point in points]) for key in ("sensitivity", "specificity")},
            "calibration_error": _both(errors),
        }
    known = ~np.isnan(drops.areas[0])
    figures: dict[str, Any] = {"findings": findings}
    if known.any():
        mean = _areas(drops.areas[:, known].mean(axis=1), drops.mean)
        figures["mean_auc"] = {**mean, "findings": int(known.sum())}
    for rate in ("sensitivity", "specificity"):
        if defined := [each[rate] for each in findings.values() if each[rate]["reference"] is not None]:
            before, after = (float(np.mean([both[model] for both in defined])) for model in MODELS)
            figures[f"mean_{rate}"] = {**_both([before, after]), "drop": before - after, "findings": len(defined)}
    figures["mean_calibration_error"] = _both(
        [float(np.mean([each["calibration_error"][model] for each in findings.values()])) for model in MODELS]
    )
    figures["method"] = {
        "interval": f"{LEVEL:.0%} of the paired difference, DeLong; images of one patient together",
        "calibration_error": f"expected calibration error, {CALIBRATION_BINS} bins of equal width",
    }
    return figures


def expected_calibration_error(
    truth: NDArray[np.bool_], chances: NDArray[np.floating[Any]], bins: int = CALIBRATION_BINS
) -> float:
    """How far probabilities lie from the share of positives, (N,) both: the mean over equally wide bins of [0, 1].

    Each bin counts by its number of images (Guo et al., ICML 2017, eq. 3); the last has its upper edge too.
    """
    number = np.minimum((chances * bins).astype(int), bins - 1)
    gaps = np.bincount(number, chances - truth, minlength=bins)  # images of a bin times its gap
    return float(np.abs(gaps).sum() / len(truth))


def _areas(areas: NDArray[np.float64], drop: Estimate) -> dict[str, Any]:
    interval = None if drop.interval is None else list(drop.interval)
    missing = bool(np.isnan(drop.value))
    return {
        **_both([None if missing else float(area) for area in areas]),
        "drop": None if missing else drop.value,
        "interval": interval,
    }


def _both(values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(MODELS, values, strict=True))
