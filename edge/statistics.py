"""Statistics that calibration, evaluation and reports share: ROC areas, operating points, percentiles, histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PERCENTILES = ("50", "90", "95", "99", "99.9")
"""The percentiles of a summary, as text: they are exact decimals, which binary floats are not."""

MAX_BINS = 48


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, a tie counting one half.

    `labels` (N,) bool, `scores` (N,) real. This is the Mann-Whitney U statistic over the number of pairs (Hanley and
    McNeil, Radiology 143, 1982). Raises `ValueError` if the lengths differ, if a score is not finite, or if one of the
    two classes is absent: the area is then not defined.
    """
    truth = np.asarray(labels)
    values = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"labels {truth.shape} and scores {values.shape} must be two vectors of one length")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be booleans (or 0 and 1)")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite numbers")
    positive = truth.astype(bool)
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"{positives} positives and {negatives} negatives: the area needs at least one of each")
    # Midranks: tied scores share the mean of the ranks that they cover.
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(sizes)
    midrank = last_rank - (sizes - 1) / 2.0
    rank_sum = float(midrank[group][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


def operating_point(
    truth: NDArray[np.bool_], probabilities: NDArray[np.floating[Any]], threshold: float
) -> dict[str, float | None]:
    """The threshold, and `rates` of calling (N,) probabilities from `threshold` on positive."""
    return {"threshold": threshold, **rates(truth, probabilities >= threshold)}


def rates(truth: NDArray[np.bool_], called: NDArray[np.bool_]) -> dict[str, float | None]:
    """Sensitivity, specificity and accuracy of calling the images `called` (N,) positive.

    Sensitivity is None without a positive case, specificity without a negative one.
    """
    return {
        "sensitivity": float(called[truth].mean()) if truth.any() else None,
        "specificity": float(1 - called[~truth].mean()) if not truth.all() else None,
        "accuracy": float((called == truth).mean()),
    }


def samples_needed(percentile: str) -> int:
    """The fewest samples that support a percentile: enough that one lies beyond it (100 for p99, 1000 for p99.9)."""
    return math.ceil(100 / (100 - Fraction(percentile)))


def nearest_rank(ordered: Sequence[float] | NDArray[np.float64], percentile: str) -> float:
    """The nearest-rank percentile of ascending values: the smallest that at least `percentile` % of them do not exceed.

    It is always a value that occurred, never an interpolation. `percentile` is a decimal text in (0, 100], since
    ``99.9 / 100 * 1000`` exceeds 999 in binary arithmetic. Raises `ValueError` on no values.
    """
    if len(ordered) == 0:
        raise ValueError("no values: a percentile needs at least one")
    return float(ordered[math.ceil(Fraction(percentile) / 100 * len(ordered)) - 1])


def summary(values: ArrayLike) -> dict[str, Any]:
    """Count, mean, percentiles, max and histogram of (N,) values; their unit is the result's.

    A percentile that the count does not support (`samples_needed`) is None, and so is everything but the count of no
    values. Raises `ValueError` on a value that is not finite.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if not np.isfinite(ordered).all():
        raise ValueError("values must be finite numbers")
    count = int(ordered.size)
    figures: dict[str, Any] = {"count": count, "mean": float(ordered.mean()) if count else None}
    for percentile in PERCENTILES:
        supported = count >= samples_needed(percentile)
        figures[f"p{percentile}"] = nearest_rank(ordered, percentile) if supported else None
    figures["max"] = float(ordered[-1]) if count else None
    figures["histogram"] = histogram(ordered) if count else None
    return figures


def histogram(values: ArrayLike) -> dict[str, list[Any]]:
    """Histogram of (N,) finite values, N >= 1: ``{"edges": [n + 1 numbers], "counts": [n integers]}``.

    Bin i holds ``edges[i] <= value < edges[i + 1]``, the last bin its upper edge too. Bins are equally wide (Freedman
    and Diaconis 1981), at most `MAX_BINS` of them. A long tail would flatten them all into one: what lies far above the
    body (3 interquartile ranges above the third quartile) is then gathered in one last, wider bin, up to the maximum.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    low, high = float(ordered[0]), float(ordered[-1])
    quartile_1, quartile_3 = nearest_rank(ordered, "25"), nearest_rank(ordered, "75")
    spread = quartile_3 - quartile_1
    body = min(high, quartile_3 + 3 * spread) if spread > 0 else high
    width = 2 * spread / len(ordered) ** (1 / 3)
    bins = min(MAX_BINS, max(1, math.ceil((body - low) / width))) if width > 0 else (MAX_BINS if high > low else 1)
    edges = np.linspace(low, body, bins + 1)
    if body < high:
        edges = np.append(edges, high)
    if not (np.diff(edges) > 0).all():  # fewer distinct floats than bins, or all values equal
        edges = np.array([low, high])
    counts, _ = np.histogram(ordered, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}
