"""The accuracy gate: does a quantized model say what the float32 one said, and does it tell the truth as well?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.figures import agreement, figures_on_labels
from calibration.finding_table import read_rows
from calibration.limits import DEFAULTS, Limits
from edge.errors import UsageError
from edge.gate import CRITERIA, FAIL, NOT_ASSESSED, PASS
from edge.labels import CHESTXRAY14
from edge.results import probabilities

LABELS_FILE = "labels.csv"
IMAGE_COLUMN, FINDINGS_COLUMN, PATIENT_COLUMN = "Image Index", "Finding Labels", "Patient ID"
"""Columns of ChestX-ray14's own ``Data_Entry_2017.csv``; findings are joined by ``|``. The patient may be left out."""
NO_FINDING = "No Finding"

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From (N, 1, S, S) uint8 images to (N, L) float32 logits."""


class Labelled(NamedTuple):
    """Images and what is true of them."""

    paths: tuple[Path, ...]
    truth: NDArray[np.bool_]
    """(N, L), one row an image, one column a finding."""
    patients: tuple[str, ...]
    """Whose each image is; its own name where the table does not say."""


def read_labels(directory: Path, names: Sequence[str]) -> Labelled:
    """The images that ``labels.csv`` in `directory` lists, with the truth about the findings `names`.

    Raises `UsageError` naming file and row: no such file or column, an image that is missing or listed twice, a finding
    that is neither among `names` nor one of ChestX-ray14 (a misspelt one would count as absent).
    """
    path = directory / LABELS_FILE
    rows = read_rows(path, (IMAGE_COLUMN, FINDINGS_COLUMN))
    if not rows:
        raise UsageError(f"{path} lists no image: add one row an image")
    truth: dict[Path, list[bool]] = {}
    patients = []
    for line, row in rows:
        image, findings = _checked_row(directory, f"{path}, row {line}", row, names)
        if image in truth:
            raise UsageError(f"{path}, row {line}: {image.name} was listed before: keep one of the rows")
        truth[image] = [name in findings for name in names]
        patients.append(row.get(PATIENT_COLUMN) or image.name)
    return Labelled(tuple(truth), np.array(list(truth.values()), np.bool_), tuple(patients))


def _checked_row(
    directory: Path, where: str, row: dict[str, str | None], names: Sequence[str]
) -> tuple[Path, set[str]]:
    name, joined = row[IMAGE_COLUMN], row[FINDINGS_COLUMN]
    if not name or not joined:
        raise UsageError(f"{where}: image {name!r} and findings {joined!r}, expected both ({NO_FINDING!r} for none)")
    image = directory / name
    if not image.is_file():
        raise UsageError(f"{where}: no file {image}: copy it there or take the row out")
    findings = {finding.strip() for finding in joined.split("|")} - {NO_FINDING}
    if unknown := sorted(findings - {*names, *CHESTXRAY14}):
        raise UsageError(f"{where}: unknown finding {', '.join(unknown)}: expected some of {', '.join(names)}")
    return image, findings


def assess(
    reference: Infer,
    candidate: Infer,
    images: Iterable[NDArray[np.uint8]],
    names: Sequence[str],
    thresholds: Mapping[str, float],
    truth: NDArray[np.bool_] | None,
    limits: Limits = DEFAULTS,
    patients: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run both models over `images` and judge the candidate.

    Args:
        reference, candidate: the float32 model and the one under test.
        images: batches (n, 1, S, S) uint8, N images in all.
        names: the L findings, in the order of the logits.
        thresholds: probability from which each finding counts as positive, in both models.
        truth: (N, L), or None if nothing is known: then only the agreement of the two is measured.
        limits: how far the candidate may be from float32.
        patients: whose each image is; each image's own if None.

    Returns:
        ``{"verdict": "pass" | "fail" | "not assessed", "reason", "images", "limits", "failed", "figures"}``. ``failed``
        names the limits that the candidate went beyond. Figures hold `agreement` and, with truth, `figures_on_labels`.

    Raises:
        UsageError: no image, or truth of another shape.
    """
    pairs = [(reference(batch), candidate(batch)) for batch in images]
    if not pairs:
        raise UsageError("no image to judge the model by: name a folder of radiographs")
    before, after = (np.concatenate(batches) for batches in zip(*pairs))
    return assess_logits(before, after, names, thresholds, truth, limits, patients)


def assess_logits(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    names: Sequence[str],
    thresholds: Mapping[str, float],
    truth: NDArray[np.bool_] | None,
    limits: Limits = DEFAULTS,
    patients: Sequence[str] | None = None,
) -> dict[str, Any]:
    """As `assess`, of the logits (N, L) of the float32 model and of the one under test."""
    if truth is not None and truth.shape != before.shape:
        raise UsageError(f"labels are {truth.shape}, expected {before.shape}: one row an image, one column a finding")
    result = {"images": len(before), "limits": limits.to_json()}
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        figures: dict[str, Any] = dict.fromkeys(("mean_difference", "max_difference", "changed_decisions"))
        verdict = {"verdict": FAIL, "reason": "a model's output is not a finite number"}
        return {**verdict, **result, "failed": [], "figures": figures}
    points = np.array([thresholds[name] for name in names])
    figures = agreement(probabilities(before), probabilities(after), points)
    if truth is not None:
        figures |= figures_on_labels(before, after, names, truth, thresholds, patients)
    failed = limits.exceeded(judged(figures))
    return {**_verdict(figures, truth is not None, limits, failed), **result, "failed": failed, "figures": figures}


def judged(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """What of `figures` has a limit, by its name; None where it is not known."""
    area, sensitivity = figures.get("mean_auc"), figures.get("mean_sensitivity")
    values = {
        "max_auc_drop": area["drop"] if area else None,
        "max_mean_difference": figures["mean_difference"],
        "max_changed_decisions": figures["changed_decisions"],
        "max_sensitivity_drop": sensitivity["drop"] if sensitivity else None,
    }
    return {name: values[name] for name in CRITERIA}


def _verdict(figures: Mapping[str, Any], labelled: bool, limits: Limits, failed: Sequence[str]) -> dict[str, str]:
    """Verdict and reason. An area makes the difference between a pass and agreement only, which can but fail."""
    allowed, found = limits.to_json(), judged(figures)
    mean = figures.get("mean_auc")
    said = {name: f"{CRITERIA[name]} {value:.4f}" for name, value in found.items() if value is not None}
    if mean is not None:
        said["max_auc_drop"] = (
            f"mean AUC {mean['reference']:.4f} to {mean['candidate']:.4f} over {mean['findings']} findings: a drop of "
            f"{mean['drop']:.4f} ({_interval(mean['interval'])})"
        )
    said = {name: f"{text}, {allowed[name]:g} allowed" for name, text in said.items()}
    missing = "no finding is both present and absent among the labelled images" if labelled else "there are no labels"
    if failed:
        reason = "; ".join(said[name] for name in failed)
        return {"verdict": FAIL, "reason": reason if mean else f"agreement only, since {missing}: {reason}"}
    if mean is not None:
        return {"verdict": PASS, "reason": "; ".join(said.values())}
    if labelled:
        return {"verdict": NOT_ASSESSED, "reason": f"agreement only: {missing}"}
    reason = (
        f"agreement only, since {missing}: probabilities differ from float32's by {figures['mean_difference']:.2g} on "
        f"average, {figures['max_difference']:.2g} at most"
    )
    return {"verdict": NOT_ASSESSED, "reason": reason}


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "too few patients with or without a finding for an interval"
    return f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}"
