"""How well a checkpoint separates each finding: `python -m mdconv.evaluate`.

    python -m mdconv.evaluate --phantoms 1000                      held-out phantoms
    python -m mdconv.evaluate --images DIR [--labels FILE]         a folder in the layout of ChestX-ray14

Prints the area under the ROC curve of each finding and their mean, in float32; `--json` prints one JSON object instead.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.errors import EdgeError, UsageError, describe_os_error
from edge.labels import CHESTXRAY14
from edge.preprocess import Preprocess, load_image
from edge.statistics import roc_auc
from mdconv.checkpoint import Checkpoint, load_checkpoint
from mdconv.data.phantom import TEST_SEEDS
from mdconv.data.phantom.sets import phantom_set
from mdconv.networks import normalise
from mdconv.weights import DEMO_CHECKPOINT

BATCH = 16


def predict(model: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities (N, L) of images (N, 1, S, S); leaves the model in evaluation mode."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(np.array(images[start : start + BATCH]))
            parts.append(torch.sigmoid(model(normalise(pixels))).numpy())
    return np.concatenate(parts)


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


def folder_set(folder: Path, table: Path, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images (N, 1, size, size) and labels (N, 14) of a folder and its table in the layout of ChestX-ray14.

    Rows whose image is not in the folder are left out: the table usually covers more than one folder. Raises
    `UsageError` for an unreadable table, an unknown finding or no image at all, `InputRefusedError` for an image that
    cannot be read.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [(row["Image Index"], row["Finding Labels"]) for row in csv.DictReader(file)]
    except OSError as error:
        raise UsageError(f"cannot read the labels: {describe_os_error(error)}") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{table} is not in ChestX-ray14's layout ({error!r}): expected columns 'Image Index' and 'Finding Labels'"
        ) from error
    rows = [(name, text) for name, text in rows if (folder / name).is_file()]
    if not rows:
        raise UsageError(f"none of the images that {table} lists is in {folder}: check both paths")
    images = np.empty((len(rows), 1, size, size), np.uint8)
    labels = np.zeros((len(rows), len(CHESTXRAY14)), bool)
    for index, (name, text) in enumerate(rows):
        images[index, 0] = load_image(folder / name, Preprocess(input_size=size))
        for finding in text.split("|"):
            if finding == "No Finding":
                continue
            if finding not in CHESTXRAY14:
                raise UsageError(f"{table}: {name} has {finding!r}, expected findings of ChestX-ray14")
            labels[index, CHESTXRAY14.index(finding)] = True
    return images, labels


def report(checkpoint: Checkpoint, images: NDArray[np.uint8], labels: NDArray[np.bool_]) -> dict[str, object]:
    """AUC per finding, their mean, the number of images. Raises `UsageError` if no finding has both kinds of case."""
    areas = area_per_finding(labels, predict(checkpoint.model, images))
    if not areas:
        raise UsageError(f"no finding is present in some and absent in others of {len(labels)} images: use more images")
    return {
        "images": len(images),
        "input_size": images.shape[-1],
        "auc": areas,
        "mean_auc": float(np.mean(list(areas.values()))),
        "weights": checkpoint.sha256,
        "notice": checkpoint.notice,
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m mdconv.evaluate", description="Per-finding AUC of a checkpoint.")
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT, help="default: the demo checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--phantoms", type=int, metavar="N", help="judge on the first N held-out phantoms")
    source.add_argument("--images", type=Path, metavar="DIR", help="judge on a folder of images")
    parser.add_argument("--labels", type=Path, help="CSV of --images (default: labels.csv in it)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        checkpoint = load_checkpoint(options.checkpoint)
        if checkpoint.labels != CHESTXRAY14:
            raise UsageError(
                f"{options.checkpoint} reports other findings than ChestX-ray14's 14: use its own data set"
            )
        if options.images is not None:
            table = options.labels or options.images / "labels.csv"
            images, labels = folder_set(options.images, table, checkpoint.input_size)
        elif 1 <= options.phantoms <= len(TEST_SEEDS):
            images, labels = phantom_set(TEST_SEEDS[: options.phantoms], checkpoint.input_size)
        else:
            raise UsageError(f"--phantoms {options.phantoms}: expected 1 to {len(TEST_SEEDS)}")
        result = report(checkpoint, images, labels)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(json.dumps(result) if options.json else as_text(result, labels))
    return 0


def as_text(result: dict[str, object], labels: NDArray[np.bool_]) -> str:
    """The result as a table: finding, AUC, number of positive cases."""
    areas = result["auc"]
    assert isinstance(areas, dict)
    lines = [f"{result['images']} images at {result['input_size']} px ({result['notice']})"]
    lines += [f"{name:20} {areas[name]:.4f}  {labels[:, CHESTXRAY14.index(name)].sum():5d} positive" for name in areas]
    return "\n".join([*lines, f"{'mean':20} {result['mean_auc']:.4f}"])


if __name__ == "__main__":
    sys.exit(main())
