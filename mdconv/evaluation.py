"""How well networks do on a data set: areas with intervals, operating points, differences of two networks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.errors import MachineError, UsageError
from edge.results import probabilities
from edge.statistics import operating_point, rates
from mdconv.data.cases import Cases
from mdconv.metrics import DRAWS, Areas, resampled_areas
from mdconv.predictors import Predictor

BATCH = 16
INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap that bound a 95 % interval."""

Progress = Callable[[str, int, int], None]


class Judged(NamedTuple):
    """A network and what it says of a data set."""

    identity: dict[str, Any]
    input_size: int
    thresholds: dict[str, float]
    notice: str
    logits: NDArray[np.float32]
    """(N, L), columns in the order of the data set's labels."""
    areas: Areas
    """Of the logits: probabilities near 1 can be equal where logits differ."""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, L) likewise."""
        return probabilities(self.logits)


def judge(
    predictor: Predictor, cases: Cases, progress: Progress | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Judged:
    """Run `predictor` over `cases`, `BATCH` images in memory at a time.

    Raises `UsageError` if their labels differ, or if no label is present in some images and absent in others, and
    `MachineError` for an output that is not a finite number.
    """
    order = _columns(predictor, cases)
    found = _run(predictor, cases, progress)[:, order]
    areas = resampled_areas(cases.truth, found, cases.patients, draws=draws, seed=seed)
    if np.isnan(areas.all).all():
        raise UsageError(f"no label is present in some and absent in others of {len(cases)} images: use more images")
    return Judged(predictor.identity, predictor.input_size, dict(predictor.thresholds), predictor.notice, found, areas)


def _run(predictor: Predictor, cases: Cases, progress: Progress | None) -> NDArray[np.float32]:
    parts = []
    with ThreadPoolExecutor() as readers:  # decoding leaves Python alone
        for start in range(0, len(cases), BATCH):
            indices = range(start, min(start + BATCH, len(cases)))
            images = np.stack(list(readers.map(partial(cases.read, size=predictor.input_size), indices)))
            logits = predictor.predict(images[:, None]).logits
            if not np.isfinite(logits).all():
                worst = cases.ids[indices[int(np.isfinite(logits).all(axis=1).argmin())]]
                raise MachineError(
                    f"{predictor.identity['file']} gives {worst} no finite number: its weights are broken, train or "
                    "build it anew"
                )
            parts.append(logits)
            if progress:
                progress("images", indices.stop, len(cases))
    return np.concatenate(parts)


def _columns(predictor: Predictor, cases: Cases) -> list[int]:
    if sorted(predictor.labels) != sorted(cases.labels):
        raise UsageError(
            f"{predictor.identity['file']} reports {', '.join(predictor.labels)}; {cases.name} has "
            f"{', '.join(cases.labels)}: judge it on its own data set"
        )
    return [predictor.labels.index(label) for label in cases.labels]


def describe(judged: Judged, cases: Cases) -> dict[str, Any]:
    """One network's figures as JSON: ``auc`` and ``auc_interval`` by label, their means, ``operating_points``.

    Labels that all images have, or none, have no area and are left out of ``auc`` and of the means. For labels that
    exclude each other ``likeliest`` holds, by label, the `rates` of giving each image its likeliest one.
    """
    known = ~np.isnan(judged.areas.all)
    chances = judged.probabilities
    points = {
        label: operating_point(cases.truth[:, i], chances[:, i], judged.thresholds[label])
        for i, label in enumerate(cases.labels)
    }
    figures = {
        **judged.identity,
        "input_size": judged.input_size,
        "auc": {label: float(judged.areas.all[i]) for i, label in enumerate(cases.labels) if known[i]},
        "auc_interval": {
            label: _interval(judged.areas.resampled[:, i]) for i, label in enumerate(cases.labels) if known[i]
        },
        "mean_auc": float(np.nanmean(judged.areas.all)),
        "mean_auc_interval": _interval(_means(judged)),
        "operating_points": points,
    }
    if cases.exclusive:
        given = judged.logits.argmax(axis=1)
        figures["likeliest"] = {label: rates(cases.truth[:, i], given == i) for i, label in enumerate(cases.labels)}
    return figures


def difference(judged: Judged, reference: Judged) -> dict[str, Any]:
    """How much larger `judged`'s mean AUC is, with its 95 % interval: both on the same resamples of the patients."""
    value = float(np.nanmean(judged.areas.all) - np.nanmean(reference.areas.all))
    return {"mean_auc_difference": value, "interval": _interval(_means(judged) - _means(reference))}


def _means(judged: Judged) -> NDArray[np.float64]:
    """The mean AUC of each resample, over the labels that have an area on all images; (draws,)."""
    areas = judged.areas.resampled[:, ~np.isnan(judged.areas.all)]
    present = ~np.isnan(areas)  # a resample may lack a rare finding
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.where(present, areas, 0).sum(axis=1) / present.sum(axis=1)
    return means


def _interval(values: NDArray[np.float64]) -> list[float]:
    low, high = np.nanpercentile(values, INTERVAL)
    return [float(low), float(high)]
