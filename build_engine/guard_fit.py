"""Fits the guard's distance on the calibration images, as the bundle sees them, and measures its threshold.

The covariance is Ledoit and Wolf's: the sample covariance shrunk towards a multiple of the identity by the amount that
minimises the expected squared error, so that it can be inverted with fewer images than features ("A well-conditioned
estimator for large-dimensional covariance matrices", J. Multivariate Analysis 88, 2004). An image is nearer to a fit
that it took part in than any other image of its kind, so the threshold comes from images that were left out: the set is
cut into folds, and each is scored by a fit on the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from build_engine.images import Calibration
from build_engine.verify import say
from calibration.dataset import CalibrationSet
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import GUARD, Bundle
from edge.guard import GUARD_VERSION, SCORE, Distance, ImageLimits
from edge.guard_features import feature_groups
from edge.progress import ProgressLine

FOLDS = 8
MEASURABLE = 64
"""Fewest images for a threshold. With 16 to 48, the rate of false refusals of phantoms was anything from 0 to 13 %."""
DEVIATIONS = 4.0
"""The threshold lies this many standard deviations above the mean of the logarithms of the left-out distances.

Normal logarithms would exceed it once in 30,000; those of phantoms are skewed, and exceed it once in about 1,000."""
_FLOOR = 0.1
"""Least scale of a feature, in medians of its group: one that is all but constant in a few images proves little."""


class Features(NamedTuple):
    """Of N images."""

    values: NDArray[np.float64]
    """(N, P)."""
    sizes: tuple[int, ...]
    """How many of the P belong to each group of like features, in their order."""


def fit_guard(bundle: Bundle, calibration: Calibration | None) -> dict[str, Any]:
    """The manifest's ``guard``, fitted on the `calibration` images; writes ``guard.npz`` into the bundle's directory.

    The bundle's own model is run, in ONNX Runtime. Without images, or with too few, there is no score, or one that
    refuses nothing; the entry's ``reason`` and a line on standard error say so.
    """
    entry = _fit(bundle, calibration)
    if entry["threshold"] is None:
        say(f"guard: {entry['reason']}")
    else:
        rate = entry["false_refusals"]
        say(
            f"guard: distances up to {entry['threshold']:.2f} are accepted; of {rate['of']} images left out of the fit "
            f"{rate['refused']} would be refused"
        )
    return entry


def _fit(bundle: Bundle, calibration: Calibration | None) -> dict[str, Any]:
    if calibration is None:
        return _not_fitted("no --calibration-data apart from the images of --gate-data: no score")
    images, origin = calibration
    count = len(images)
    if count < FOLDS:
        return _not_fitted(f"{count} images are too few to fit a distance on, {FOLDS} are needed: no score")
    features = _features(bundle, images)
    distance, shrinkage = fit(features)
    arrays = {field: getattr(distance, field).astype(np.float32) for field in ("mean", "scale", "whitening")}
    np.savez_compressed(bundle.directory / GUARD, **arrays)
    left_out = left_out_distances(features)
    entry = _not_fitted("") | {
        "file": GUARD,
        "fitted_on": {"images": count, "digest": images.digest, "origin": origin},
        "features": features.values.shape[1],
        "shrinkage": round(shrinkage, 4),
        "left_out": {"folds": FOLDS, "mean": round(float(left_out.mean()), 4), "max": round(float(left_out.max()), 4)},
    }
    if count < MEASURABLE:
        few = (
            f"{count} images are too few to measure a threshold on, {MEASURABLE} are needed: the score refuses nothing"
        )
        return {**entry, "reason": few}
    threshold = round(choose_threshold(left_out), 4)
    refused = int((left_out > threshold).sum())
    rate = {"refused": refused, "of": count, "at_most": round(upper_limit(refused, count), 5)}
    how = f"{DEVIATIONS:g} standard deviations above the mean of the logarithms of the distances of images left out"
    return {**entry, "threshold": threshold, "reason": how, "false_refusals": rate}


def _not_fitted(reason: str) -> dict[str, Any]:
    """The manifest's ``guard`` of a bundle without a score: the limits of a gray image are all that it has."""
    return {
        "version": GUARD_VERSION,
        "score": SCORE,
        "file": None,
        "threshold": None,
        "reason": reason,
        "image": asdict(ImageLimits()),
    }


def fit(features: Features) -> tuple[Distance, float]:
    """The distance from the images of `features` (at least two), and Ledoit and Wolf's shrinkage, 0 to 1."""
    values = features.values
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    groups = np.split(deviation, np.cumsum(features.sizes)[:-1])
    # The last bound is for groups that are constant altogether: blank images have no contrast to scale by.
    scale = np.concatenate([np.maximum(group, max(_FLOOR * float(np.median(group)), 1e-3)) for group in groups])
    covariance, shrinkage = ledoit_wolf((values - mean) / scale)
    # x' inv(C) x = |inv(L) x|^2 with C = L L'.
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    return Distance(mean, scale, whitening), shrinkage


def ledoit_wolf(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Covariance (P, P) of N `centred` vectors (N, P), shrunk towards the identity times its mean variance.

    Also the shrinkage. The mean is taken for known, as in the paper. All vectors 0 gives the identity.
    """
    count, size = centred.shape
    sample = centred.T @ centred / count
    variance = float(np.trace(sample)) / size
    if variance == 0:
        return np.eye(size), 1.0
    target = variance * np.eye(size)
    distance = float(np.square(sample - target).sum())
    # Mean squared distance of the single vectors' outer products from the sample covariance, by N: its own error.
    error = (float(np.square(np.square(centred).sum(axis=1)).sum()) / count - float(np.square(sample).sum())) / count
    shrinkage = min(max(error / distance, 0.0), 1.0) if distance > 0 else 1.0
    # Never quite 0: the sample covariance alone may be singular.
    shrinkage = max(shrinkage, 1e-6)
    return shrinkage * target + (1 - shrinkage) * sample, shrinkage


def left_out_distances(features: Features) -> NDArray[np.float64]:
    """Distance (N,) of each image from a fit on the other folds'. Image i is in fold i modulo `FOLDS`."""
    values = features.values
    fold = np.arange(len(values)) % FOLDS
    found = np.empty(len(values))
    for number in range(FOLDS):
        distance, _ = fit(features._replace(values=values[fold != number]))
        found[fold == number] = [distance(vector) for vector in values[fold == number]]
    return found


def choose_threshold(left_out: NDArray[np.float64]) -> float:
    """`DEVIATIONS` standard deviations above the mean of the logarithms of the distances (N,)."""
    logarithms = np.log(left_out)
    return math.exp(logarithms.mean() + DEVIATIONS * logarithms.std(ddof=1))


def upper_limit(refused: int, count: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's one-sided upper limit of a rate of which `refused` of `count` were seen, by bisection."""
    if refused == count:
        return 1.0
    log_choices = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(refused + 1)]
    low, high = refused / count, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        tail = sum(
            math.exp(choices + k * math.log(rate) + (count - k) * math.log1p(-rate))
            for k, choices in enumerate(log_choices)
        )
        low, high = (rate, high) if tail > 1 - confidence else (low, rate)
    return high


def _features(bundle: Bundle, images: CalibrationSet) -> Features:
    say(f"guard: fitting on {len(images)} images")
    rows: list[NDArray[np.float64]] = []
    sizes: Sequence[int] = ()
    with ProgressLine("guard") as progress, OnnxRuntimeBackend(bundle) as backend:
        for number, image in enumerate(images):
            progress("images", number, len(images))
            outputs = backend.infer(image)
            cam = None if outputs.cam is None else outputs.cam[0]
            groups = feature_groups(image[0, 0], outputs.logits[0], cam)
            sizes = [len(group) for group in groups.values()]
            rows.append(np.concatenate(list(groups.values())))
    return Features(np.stack(rows), tuple(sizes))
