"""The card of trained weights: how they were made, on what, and how well they do; as JSON and as text for people."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdconv.checkpoint import Checkpoint
from mdconv.data.cases import Cases
from mdconv.data.phantom import NOTICE
from mdconv.distributed import World


def demo_card(
    *,
    command: str,
    validation: tuple[int, int],
    test: tuple[int, int],
    recipe: dict[str, Any],
    parts: Sequence[Mapping[str, Any]],
    areas: dict[str, float],
) -> dict[str, Any]:
    """The JSON form for the demo network.

    `validation` and `test` are the first seed and the number of phantoms of each set, `parts` how each part of the
    recipe went (`mdconv.demo_recipe.Trained`).
    """
    return {
        "notice": NOTICE,
        "command": command,
        "data": {
            "kind": "synthetic phantoms (mdconv.data.phantom)",
            "validation_seeds": list(validation),
            "test_seeds": list(test),
        },
        "recipe": recipe,
        "parts": list(parts),
        "auc": {label: round(area, 4) for label, area in areas.items()},
        "mean_auc": round(float(np.mean(list(areas.values()))), 4),
    }


def training_card(
    what: Mapping[str, Any],
    sets: tuple[Cases, Cases],
    record: Mapping[str, float],
    areas: Mapping[str, float],
    command: str,
    world: World,
) -> dict[str, Any]:
    """The JSON form for weights of `mdconv.training.fit`.

    `what` holds the recipe, `sets` are to train and to validate on, `record` and `areas` (by label, on the validation
    images) are the best epoch's.
    """
    train, validation = sets
    return {
        "notice": train.notice,
        "command": command,
        "data": {"train": [train.name, len(train)], "validation": [validation.name, len(validation)]},
        "recipe": dict(what["recipe"]),
        "quantization_aware": "scales" in what,
        "epoch": int(record["epoch"]),
        "seconds": round(record["seconds"]),
        "processes": world.size,
        "machine": machine(world.device),
        "validation_auc": {label: round(area, 4) for label, area in areas.items()},
        "validation_mean_auc": round(record["mean_auc"], 4),
    }


def as_markdown(checkpoint: Checkpoint) -> str:
    """The card of a checkpoint that was read from its file, as Markdown."""
    if "parts" in checkpoint.card["recipe"]:
        return _demo_markdown(checkpoint)
    card, config = checkpoint.card, checkpoint.config
    recipe, data = card["recipe"], card["data"]
    stages = ", ".join(config.get("md_stages", ())) or "no stage"
    kernels = ", ".join(f"{size} x {size}" for size in config.get("kernel_sizes", (3, 5)))
    ratios = ":".join(map(str, config.get("ratios", (1, 1))))
    kind = "cross-entropy" if checkpoint.exclusive else "binary cross-entropy"
    views = "random crop, rotation and mirroring" if recipe["augment"] else "random mirroring"
    facts = [
        f"network: {checkpoint.network}, MD-Conv in {stages} (kernels {kernels}, ratios {ratios}); "
        f"{checkpoint.input_size} x {checkpoint.input_size} gray input, {len(checkpoint.labels)} labels",
        f"file: sha256 {checkpoint.sha256}",
        f"made by: `{card['command']}`",
        f"data: {data['train'][1]} images to train on ({data['train'][0]}), {data['validation'][1]} to choose the "
        f"epoch and the thresholds ({data['validation'][0]})",
        f"recipe: Adam, learning rate {recipe['learning_rate']:g} at its peak, {recipe['warm_up_steps']} steps of "
        f"warm-up, then a cosine to zero; weight decay {recipe['weight_decay']:g}; batch {recipe['batch']}; {kind}; "
        f"{views}; precision {recipe['precision']}; seed {recipe['seed']}"
        + ("; quantization-aware" if card["quantization_aware"] else ""),
        f"epoch {card['epoch']} of at most {recipe['epochs']}, after {card['seconds'] / 60:.0f} minutes",
        f"machine: {card['machine']}, processes: {card['processes']}",
    ]
    rows = [
        f"| {label} | {_or_dash(card['validation_auc'].get(label))} | {checkpoint.thresholds[label]:.4f} |"
        for label in checkpoint.labels
    ]
    listed = "\n".join(textwrap.fill(fact, 120, initial_indent="- ", subsequent_indent="  ") for fact in facts)
    return f"""# {checkpoint.network}: {data["train"][0]}

**{checkpoint.notice[:1].upper()}{checkpoint.notice[1:]}.**

{listed}

Area under the ROC curve on the validation images, which also chose the epoch: on others expect less. The threshold is
the probability from which a label counts as positive.

| label | validation AUC | threshold |
|---|---|---|
{chr(10).join(rows)}
| mean | {card["validation_mean_auc"]:.4f} | |
"""


def _or_dash(area: float | None) -> str:
    return "-" if area is None else f"{area:.4f}"


def _demo_markdown(checkpoint: Checkpoint) -> str:
    card, recipe = checkpoint.card, checkpoint.card["recipe"]
    data = card["data"]
    parts = [
        _part_markdown(number, part, went) for number, (part, went) in enumerate(zip(recipe["parts"], card["parts"]), 1)
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
- data: {data["kind"]}: those of the tables below to train,
  {data["validation_seeds"][1]} for the thresholds (seeds from {data["validation_seeds"][0]}),
  {data["test_seeds"][1]} held out for the areas (seeds from {data["test_seeds"][0]})
- recipe: Adam, weight decay {recipe["weight_decay"]:g}, binary cross-entropy, random mirroring; in each part a warm-up
  of the learning rate, then a cosine over the pixels processed. `mdconv/demo_recipe.py` says where it departs from the
  paper and why

{chr(10).join(parts)}
Area under the ROC curve on the held-out phantoms (float32), and the probability from which a finding counts as positive
(Youden's index on the validation phantoms):

| finding | AUC | threshold |
|---|---|---|
{chr(10).join(findings)}
| mean | {card["mean_auc"]:.4f} | |

To measure this again: `python -m mdconv.evaluate --phantoms {data["test_seeds"][1]}`.
"""


def _part_markdown(number: int, part: Mapping[str, Any], went: Mapping[str, Any]) -> str:
    weight = part["location_weight"]
    taught = f"labels, and where the boxes of lesions are (weight {weight:g})" if weight else "labels alone"
    rows = [
        f"| {stage['size']} | {stage['images']} (from {stage['first']}) | {stage['epochs']} | {stage['batch']} |"
        for stage in part["stages"]
    ]
    rate = f"learning rate {part['learning_rate']:g} at its peak, after {part['warm_up_steps']} steps of warm-up"
    return f"""Part {number}: {taught}; {rate}.
{went["seconds"] / 60:.0f} minutes in {went["precision"]} on {went["machine"]}, rendering included.

| pixels | phantoms (seeds) | epochs | batch |
|---|---|---|---|
{chr(10).join(rows)}
"""


def machine(device: torch.device) -> str:
    """The processor that trains, for people."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
