"""Figures of merit and how sure they are, for many labels at once.

The bootstrap resamples patients, not images: images of one patient are not independent. A resample is a weight on each
image (how often its patient was drawn), so that all draws share one sort of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.labels import CHESTXRAY14
from edge.statistics import roc_auc

DRAWS = 2000
CHUNK = 1 << 22
"""Weights that are in memory at a time: draws times images."""


class Areas(NamedTuple):
    """Areas under the ROC curve of L labels."""

    all: NDArray[np.float64]
    """(L,), on all images; NaN where a label is always or never present."""
    resampled: NDArray[np.float64]
    """(draws, L), on resampled patients; NaN likewise."""


def area_per_finding(labels: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> dict[str, float]:
    """AUC of each of the 14 findings, from labels and probabilities (N, 14).

    A finding that all images have, or none, has no AUC and is left out.
    """
    return {
        name: roc_auc(labels[:, index], probabilities[:, index])
        for index, name in enumerate(CHESTXRAY14)
        if 0 < labels[:, index].sum() < len(labels)
    }


def youden_thresholds(labels: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> dict[str, float]:
    """The probability of each finding at which sensitivity + specificity is greatest (Youden, Cancer 3, 1950).

    Labels and probabilities are (N, 14). Raises `ValueError` if a finding has no positive or no negative case.
    """
    try:
        return {name: youden_threshold(labels[:, i], probabilities[:, i]) for i, name in enumerate(CHESTXRAY14)}
    except ValueError as error:
        present = labels.sum(axis=0)
        names = [name for name, count in zip(CHESTXRAY14, present) if not 0 < count < len(labels)]
        raise ValueError(f"{', '.join(names)}: {error}") from None


def youden_threshold(truth: NDArray[np.bool_], probabilities: NDArray[np.floating[Any]]) -> float:
    """The probability at which sensitivity + specificity is greatest, for one finding; truth and probabilities (N,).

    Raises `ValueError` if there is no positive or no negative case.
    """
    if not 0 < truth.sum() < len(truth):
        raise ValueError(f"{truth.sum()} of {len(truth)} cases are positive, a threshold needs both kinds")
    scores = probabilities.astype(np.float64)
    cuts = np.unique(scores)
    positives, negatives = np.sort(scores[truth]), np.sort(scores[~truth])
    sensitivity = 1 - np.searchsorted(positives, cuts, "left") / len(positives)
    specificity = np.searchsorted(negatives, cuts, "left") / len(negatives)
    best = int(np.argmax(sensitivity + specificity))
    below = cuts[best - 1] if best else 0.0
    return float((below + cuts[best]) / 2)  # half way to the next score: neither case decides it alone


def sensitivity_threshold(truth: NDArray[np.bool_], probabilities: NDArray[np.floating[Any]], wanted: float) -> float:
    """The highest probability from which on at least the share `wanted` (0, 1] of positives is called; both (N,).

    Raises `ValueError` if there is no positive case.
    """
    scores = probabilities.astype(np.float64)
    positives = np.sort(scores[truth])[::-1]
    if not len(positives):
        raise ValueError(f"none of {len(truth)} cases is positive, a sensitivity needs one")
    # Not ceil of the product alone: 0.7 * 10 is 7.000000000000001 in binary arithmetic.
    cut = positives[max(1, math.ceil(round(wanted * len(positives), 9))) - 1]
    below = scores[scores < cut]
    return float((cut + (below.max() if len(below) else 0.0)) / 2)


def resampled_areas(
    truth: NDArray[np.bool_],
    scores: NDArray[np.floating],
    patients: Sequence[str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Areas:
    """Area under the ROC curve of each label on all images, and on `draws` resamples of the patients.

    The same `patients`, `draws` and `seed` give the same resamples, so that two networks can be compared draw by draw.

    Args:
        truth, scores: (N, L).
        patients: whose each image is; each image's own if None.
    """
    owners = patients or [str(i) for i in range(len(truth))]
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // len(truth))
    parts = [
        _areas(truth, scores, patient_weights(owners, min(step, draws - start), rng)) for start in range(0, draws, step)
    ]
    return Areas(_areas(truth, scores, np.ones((1, len(truth)), np.int32))[0], np.concatenate(parts))


def _areas(truth: NDArray[np.bool_], scores: NDArray[np.floating], weights: NDArray[np.int32]) -> NDArray[np.float64]:
    """(D, L) of (N, L) truth and scores under the weightings (D, N)."""
    return np.stack([weighted_auc(truth[:, i], scores[:, i], weights) for i in range(truth.shape[1])], axis=1)


def patient_weights(patients: Sequence[str], draws: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """How often each image counts in each of `draws` resamples with replacement of its patients: (draws, N)."""
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return counts.astype(np.int32)[:, owner]


def weighted_auc(
    truth: NDArray[np.bool_], scores: NDArray[np.floating], weights: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Area under the ROC curve, (D,), under each of the weightings (D, N) of the images; truth and scores are (N,).

    With whole weights it is the area on images repeated so often; a tie counts one half (Hanley and McNeil, Radiology
    143, 1982). NaN where all weight lies on one class.
    """
    order = np.argsort(scores, kind="stable")
    ordered, positive = scores[order], truth[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of each group of equal scores
    weighed = weights[:, order].astype(np.float64)
    positives = np.add.reduceat(weighed * positive, starts, axis=1)
    negatives = np.add.reduceat(weighed * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    with np.errstate(invalid="ignore"):
        area: NDArray[np.float64] = (positives * below).sum(axis=1) / pairs
    return area


def roc_points(
    truth: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ROC curve of (N,) truth and scores: 1 - specificity and sensitivity at each cut, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[scores[order][1:] != scores[order][:-1], True])  # equal scores are cut together
    right, wrong = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
    return np.r_[0, wrong] / wrong[-1], np.r_[0, right] / right[-1]
