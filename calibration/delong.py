"""Areas under the ROC curve of two models on the same images, and how sure their difference is: DeLong's method.

An area is a mean over pairs of a positive and a negative image, so it is also a mean of one number an image, its
structural component (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988, eq. 2 and 3). The components' spread is
the area's variance. Ranks give them in N log N steps (Sun and Xu, IEEE Signal Processing Letters 21, 2014), and what is
linear in areas (a difference of models, a mean over findings) has the same combination of components for its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Share of samples whose interval holds the true value."""


class Estimate(NamedTuple):
    """A figure and how sure it is."""

    value: float
    interval: tuple[float, float] | None
    """Of `LEVEL`, from the normal distribution; None where a finding has fewer than two patients of a kind."""


class AreaDrops(NamedTuple):
    """How much smaller the second model's areas are than the first's, for L findings."""

    areas: NDArray[np.float64]
    """(2, L), first and second model; NaN where a finding is always or never present."""
    drops: tuple[Estimate, ...]
    """L of them, NaN likewise."""
    mean: Estimate
    """Of the mean area over the findings that have one."""


def area_drops(
    truth: NDArray[np.bool_],
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    patients: Sequence[str] | None = None,
) -> AreaDrops:
    """Compare two models' scores, each (N, L), on the same N images.

    Images of one patient are not independent: their components are added up before they are squared (Obuchowski,
    Biometrics 53, 1997). Findings of one image are not either; since components are kept by image, the covariances of
    all pairs of findings are in the mean's variance.

    Args:
        truth: (N, L).
        patients: whose each image is; each image's own if None.
    """
    owner = np.arange(len(truth)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    count = truth.shape[1]
    areas = np.full((2, count), np.nan)
    spread = np.full((int(owner.max()) + 1, count), np.nan)
    for i in range(count):
        if 0 < truth[:, i].sum() < len(truth):
            areas[:, i], components = structural_components(truth[:, i], np.stack([first[:, i], second[:, i]]))
            spread[:, i] = _spread(components[0] - components[1], truth[:, i], owner)
    drops = areas[0] - areas[1]
    known = ~np.isnan(drops)
    mean = Estimate(float("nan"), None)
    if known.any():
        mean = _estimate(drops[known].mean(), spread[:, known].mean(axis=1))
    return AreaDrops(areas, tuple(_estimate(drops[i], spread[:, i]) for i in range(count)), mean)


def structural_components(
    truth: NDArray[np.bool_], scores: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Areas (K,) of K models and the components (K, N) of the images, from (N,) truth and (K, N) scores.

    A positive's component is the share of negatives that score below it, a negative's the share of positives above it;
    a tie counts one half. Both kinds have the area as their mean. There must be an image of each kind.
    """
    among_all = midranks(scores)
    components = np.empty(scores.shape)
    positives, negatives = scores[:, truth], scores[:, ~truth]
    components[:, truth] = (among_all[:, truth] - midranks(positives)) / negatives.shape[1]
    components[:, ~truth] = 1 - (among_all[:, ~truth] - midranks(negatives)) / positives.shape[1]
    return components[:, truth].mean(axis=1), components


def midranks(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Ranks from 1 on along the last axis of (K, N) values; equal ones share the mean of the ranks that they cover."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    places = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    differs = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(values), 1), bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, differs]), places, 0), axis=1)
    last = np.where(np.hstack([differs, edge]), places, values.shape[1])
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=1)
    return ranks


def _spread(components: NDArray[np.float64], truth: NDArray[np.bool_], owner: NDArray[np.intp]) -> NDArray[np.float64]:
    """What each patient adds to the error of an area, from (N,) components: (P,), whose squares add up to the variance.

    NaN where fewer than two patients have, or lack, the finding: nothing is then known of the spread.
    """
    weighted = np.empty(len(truth))
    for kind in (truth, ~truth):
        patients = len(np.unique(owner[kind]))
        scale = np.sqrt(patients / (patients - 1)) / kind.sum() if patients > 1 else np.nan
        weighted[kind] = (components[kind] - components[kind].mean()) * scale
    return np.bincount(owner, weighted).astype(np.float64)


def _estimate(value: float, spread: NDArray[np.float64]) -> Estimate:
    error = float(np.sqrt(np.square(spread).sum()))
    if np.isnan(error):
        return Estimate(float(value), None)
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return Estimate(float(value), (float(value) - reach, float(value) + reach))
