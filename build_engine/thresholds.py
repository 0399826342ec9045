"""Operating points: from which probability on a finding counts as positive, chosen on labelled validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from build_engine.verify import say
from calibration.gate import read_labels
from calibration.judge import load_images, portable_runner
from edge.errors import UsageError
from edge.preprocess import Preprocess
from edge.progress import ProgressLine
from edge.results import probabilities
from mdconv.checkpoint import Checkpoint
from mdconv.metrics import sensitivity_threshold, youden_threshold

OWN = {"rule": "the checkpoint's own"}


class Chosen(NamedTuple):
    """Thresholds by finding, and the manifest's account of how they were chosen."""

    thresholds: dict[str, float]
    account: dict[str, Any]


def parse_rule(text: str) -> str | float:
    """``youden``, or the wanted sensitivity of ``sensitivity=0.9``. Raises `ValueError` for anything else."""
    name, _, value = text.partition("=")
    if text == "youden":
        return text
    if name != "sensitivity" or not 0 < float(value) <= 1:
        raise ValueError(text)
    return float(value)


def check_threshold_options(rule: str | None, directory: Path | None, gate_data: Path | None) -> None:
    """Raises `UsageError` for options that do not go together."""
    if (rule is None) != (directory is None):
        raise UsageError(
            "--thresholds and --threshold-data go together: give both, or neither to keep the checkpoint's"
        )
    if directory is None:
        return
    if not directory.is_dir():
        raise UsageError(f"--threshold-data {directory} is no folder: name one that holds radiographs and labels.csv")
    if gate_data is not None and gate_data.is_dir() and directory.samefile(gate_data):
        raise UsageError(
            "--threshold-data and --gate-data are one folder: thresholds look too good on the images that they were "
            "chosen on; name two folders"
        )


def choose_thresholds(
    model: Path, rule: str, directory: Path, preprocess: Preprocess, checkpoint: Checkpoint
) -> Chosen:
    """Choose by `rule` (as `parse_rule` reads it) from what the float32 `model` says of the images in `directory`.

    A finding that all of them have, or none, keeps the checkpoint's threshold, which is said and recorded. Raises
    `UsageError` for labels or images that cannot be used, and where no finding could be chosen for.
    """
    images = read_labels(directory, checkpoint.labels)
    say(f"choosing thresholds on {len(images.paths)} images by {rule}")
    run = portable_runner(model)
    with ProgressLine("thresholds") as progress:
        loaded = load_images(images.paths, preprocess, progress, "--threshold-data")
        chances = probabilities(np.concatenate([run(image).logits for image in loaded]))
    wanted = parse_rule(rule)
    thresholds, kept = dict(checkpoint.thresholds), []
    for i, label in enumerate(checkpoint.labels):
        truth = images.truth[:, i]
        if not 0 < truth.sum() < len(truth):
            kept.append(label)
        elif isinstance(wanted, float):
            thresholds[label] = sensitivity_threshold(truth, chances[:, i], wanted)
        else:
            thresholds[label] = youden_threshold(truth, chances[:, i])
    if len(kept) == len(checkpoint.labels):
        raise UsageError(f"{directory} has no finding that some of its images have and others lack: use more images")
    if kept:
        say(f"all images have or lack {', '.join(kept)}: the checkpoint's threshold is kept")
    positives = {label: int(count) for label, count in zip(checkpoint.labels, images.truth.sum(axis=0))}
    return Chosen(
        thresholds, {"rule": rule, "images": len(images.paths), "positives": positives, "kept_from_checkpoint": kept}
    )
