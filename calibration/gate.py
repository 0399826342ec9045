"""The accuracy gate: does a quantized model say what the float32 one said, and does it tell the truth as well?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.finding_table import read_rows
from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from edge.results import probabilities
from edge.statistics import roc_auc

LABELS_FILE = "labels.csv"
IMAGE_COLUMN, FINDINGS_COLUMN = "Image Index", "Finding Labels"
"""Columns of ChestX-ray14's own ``Data_Entry_2017.csv``; findings are joined by ``|``."""
NO_FINDING = "No Finding"

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From (N, 1, S, S) uint8 images to (N, L) float32 logits."""


class Labelled(NamedTuple):
    """Images and what is true of them."""

    paths: tuple[Path, ...]
    truth: NDArray[np.bool_]
    """(N, L), one row an image, one column a finding."""


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
    for line, row in rows:
        image, findings = _checked_row(directory, f"{path}, row {line}", row, names)
        if image in truth:
            raise UsageError(f"{path}, row {line}: {image.name} was listed before: keep one of the rows")
        truth[image] = [name in findings for name in names]
    return Labelled(tuple(truth), np.array(list(truth.values()), np.bool_))


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
    truth: NDArray[np.bool_] | None,
    max_auc_drop: float,
) -> dict[str, Any]:
    """Run both models over `images` and judge the candidate.

    Args:
        reference, candidate: the float32 model and the one under test.
        images: batches (n, 1, S, S) uint8, N images in all.
        names: the L findings, in the order of the logits.
        truth: (N, L), or None if nothing is known: then only the agreement of the two is measured.
        max_auc_drop: how much lower the candidate's mean area under the ROC curve may be.

    Returns:
        ``{"verdict": "pass" | "fail" | "not assessed", "reason", "images", "max_auc_drop", "figures"}``. Figures hold
        the mean and the largest difference of probabilities and, with truth, areas under the curve by finding (None
        where a finding is always or never present) and their means.

    Raises:
        UsageError: no image, or truth of another shape.
    """
    pairs = [(reference(batch), candidate(batch)) for batch in images]
    if not pairs:
        raise UsageError("no image to judge the model by: name a folder of radiographs")
    logits = [np.concatenate(batches) for batches in zip(*pairs)]
    shape = logits[0].shape
    if truth is not None and truth.shape != shape:
        raise UsageError(f"labels are {truth.shape}, expected {shape}: one row an image, one column a finding")
    figures: dict[str, Any] = {"mean_difference": None, "max_difference": None}
    result = {"images": shape[0], "max_auc_drop": max_auc_drop, "figures": figures}
    if not np.isfinite(logits).all():
        return {"verdict": "fail", "reason": "a model's output is not a finite number", **result}
    expected, found = map(probabilities, logits)
    difference = np.abs(found - expected)
    figures.update(mean_difference=float(difference.mean()), max_difference=float(difference.max()))
    if truth is None:
        reason = "no labels: only the agreement with the float32 model was measured"
        return {"verdict": "not assessed", "reason": reason, **result}
    figures["findings"] = {name: _areas(truth[:, i], expected[:, i], found[:, i]) for i, name in enumerate(names)}
    return {**_verdict(figures, max_auc_drop), **result}


def _areas(truth: NDArray[np.bool_], expected: NDArray[Any], found: NDArray[Any]) -> dict[str, Any]:
    positives = int(truth.sum())
    if positives in (0, len(truth)):
        return {"positives": positives, "reference": None, "candidate": None}
    return {"positives": positives, "reference": roc_auc(truth, expected), "candidate": roc_auc(truth, found)}


def _verdict(figures: dict[str, Any], max_auc_drop: float) -> dict[str, str]:
    """Verdict and reason from the areas by finding; adds their means to `figures`."""
    known = [areas for areas in figures["findings"].values() if areas["reference"] is not None]
    if not known:
        return {"verdict": "not assessed", "reason": "no finding is both present and absent among the labelled images"}
    before, after = (float(np.mean([areas[key] for areas in known])) for key in ("reference", "candidate"))
    drop = before - after
    figures["mean_auc"] = {"reference": before, "candidate": after, "drop": drop}
    verdict = "pass" if drop <= max_auc_drop else "fail"
    reason = (
        f"mean AUC {before:.4f} to {after:.4f} over {len(known)} findings: a drop of {drop:.4f}, {max_auc_drop} allowed"
    )
    return {"verdict": verdict, "reason": reason}
