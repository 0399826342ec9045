"""The card of trained weights: how they were made, on what, and how well they do; as JSON and as text for people."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdconv.checkpoint import Checkpoint
from mdconv.data.cases import Cases
from mdconv.data.phantom import NOTICE


def make_card(
    *,
    command: str,
    train: tuple[int, int],
    validation: tuple[int, int],
    test: tuple[int, int],
    recipe: dict[str, Any],
    seconds: float,
    areas: dict[str, float],
) -> dict[str, Any]:
    """The JSON form. `train`, `validation` and `test` are the first seed and the number of phantoms of each set."""
    return {
        "notice": NOTICE,
        "command": command,
        "data": {
            "kind": "synthetic phantoms (mdconv.data.phantom)",
            "train_seeds": list(train),
            "validation_seeds": list(validation),
            "test_seeds": list(test),
        },
        "recipe": recipe,
        "seconds": round(seconds),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}",
        "auc": {label: round(area, 4) for label, area in areas.items()},
        "mean_auc": round(float(np.mean(list(areas.values()))), 4),
    }


def training_card(
    what: Mapping[str, Any], train: Cases, validation: Cases, record: Mapping[str, float], command: str
) -> dict[str, Any]:
    """The JSON form for weights of `mdconv.training.fit`: `what` holds the recipe, `record` is the best epoch's."""
    return {
        "notice": train.notice,
        "command": command,
        "data": {"train": [train.name, len(train)], "validation": [validation.name, len(validation)]},
        "recipe": dict(what["recipe"]),
        "seconds": round(record["seconds"]),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}",
        "validation_mean_auc": round(record["mean_auc"], 4),
        "epoch": int(record["epoch"]),
    }


def as_markdown(checkpoint: Checkpoint) -> str:
    """The card of a checkpoint that was read from its file, as Markdown."""
    card, recipe = checkpoint.card, checkpoint.card["recipe"]
    data = card["data"]
    stages = [
        f"| {stage['size']} | {stage['images']} | {stage['epochs']} | {stage['batch']} |" for stage in recipe["stages"]
    ]
    findings = [
        f"| {label} | {card['auc'][label]:.4f} | {checkpoint.thresholds[label]:.4f} |" for label in checkpoint.labels
    ]
    side = checkpoint.input_size
    kernels = " and ".join(f"{size} x {size}" for size in checkpoint.config["kernel_sizes"])
    return f"""# {checkpoint.network} with MD-Conv in {", ".join(checkpoint.config["md_stages"])}

**{NOTICE.capitalize()}.** These weights have never seen a patient. They exist so that export, quantization, runtime and
reports have a network that really separates something. They must not be used to judge radiographs of people.

- network: {checkpoint.network}, MD-Conv kernels {kernels}, {side} x {side} gray input,
  {len(checkpoint.labels)} findings of ChestX-ray14
- file: sha256 {checkpoint.sha256}
- made by: `{card["command"]}`
- seed: {recipe["seed"]}
- data: {data["kind"]}: {data["train_seeds"][1]} to train (seeds from {data["train_seeds"][0]}),
  {data["validation_seeds"][1]} for the thresholds (from {data["validation_seeds"][0]}),
  {data["test_seeds"][1]} held out for the areas below (from {data["test_seeds"][0]})
- recipe: Adam, weight decay {recipe["weight_decay"]:g}; learning rate {recipe["learning_rate"]:g} at its peak, after
  {recipe["warm_up_steps"]} steps of warm-up, then a cosine over the pixels processed; binary cross-entropy; random
  mirroring; bfloat16 autocast. `mdconv/train.py` says where it departs from the paper and why
- time: {card["seconds"] / 60:.0f} minutes on {card["machine"]}, rendering included

| pixels | phantoms | epochs | batch |
|---|---|---|---|
{chr(10).join(stages)}

Area under the ROC curve on the held-out phantoms (float32), and the probability from which a finding counts as positive
(Youden's index on the validation phantoms):

| finding | AUC | threshold |
|---|---|---|
{chr(10).join(findings)}
| mean | {card["mean_auc"]:.4f} | |

To measure this again: `python -m mdconv.evaluate --phantoms {data["test_seeds"][1]}`.
"""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
