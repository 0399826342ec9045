"""The demo network: a recipe that trains it on phantoms, and its checkpoint with its card.

The recipe is the paper's (Hu et al., IEEE Access 2020, section IV-B: Adam, weight decay 1e-4, learning rate falling
along a cosine, binary cross-entropy over 14 labels, random horizontal flips, batch 64, 100 epochs), scaled down to less
than an hour on two cores. It departs from the paper in:

- learning rate: 1.5e-3 at its peak after a warm-up, not 1e-4 ("10e-5"): these weights start at random, with few images;
- batch 32 (16 at 448 pixels), not 64: twice the steps from the same images;
- size: most steps at 128 and 224 pixels, the last at 448, the deployed size, instead of 448 throughout;
- a few epochs instead of 100, on phantoms instead of patients;
- bfloat16 activations (autocast), because that is what these cores are fast in; weights and batch norm stay float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.errors import MachineError, describe_os_error
from edge.labels import CHESTXRAY14
from mdconv.card import as_markdown, demo_card
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.data.phantom import NOTICE, TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS
from mdconv.data.phantom.sets import phantom_set
from mdconv.evaluate import area_per_finding, predict, youden_thresholds
from mdconv.networks import build, normalise

NETWORK = "mobilenet_v2"
CONFIG: dict[str, Any] = {"labels": len(CHESTXRAY14), "md_stages": ["layer5"], "kernel_sizes": [3, 5], "ratios": [1, 1]}
INPUT_SIZE = 448
VALIDATION_COUNT = 600
TEST_COUNT = 1000


@dataclass(frozen=True)
class Stage:
    """A part of the training at one image size: `images` phantoms, seen `epochs` times in batches of `batch`."""

    size: int
    images: int
    epochs: int
    batch: int
    render_size: int

    @property
    def steps(self) -> int:
        return self.epochs * (self.images // self.batch)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the phantoms themselves."""

    stages: tuple[Stage, ...] = (
        Stage(size=128, images=12_000, epochs=3, batch=32, render_size=224),
        Stage(size=224, images=12_000, epochs=1, batch=32, render_size=224),
        Stage(size=448, images=3_000, epochs=1, batch=16, render_size=448),
    )
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-4
    warm_up_steps: int = 150
    seed: int = 0


def learning_rates(recipe: Recipe) -> list[float]:
    """The learning rate of each step: a linear warm-up, and a cosine from the peak to zero.

    The cosine runs over the pixels processed, not the steps: so it falls evenly with the time spent, and the last
    stage, few steps on large images, still learns at a useful rate.
    """
    pixels = [stage.batch * stage.size**2 for stage in recipe.stages for _ in range(stage.steps)]
    total, done, rates = sum(pixels), 0, []
    for step, work in enumerate(pixels):
        warm = min(1.0, (step + 1) / recipe.warm_up_steps)
        rates.append(recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done / total)))
        done += work
    return rates


def train(recipe: Recipe, cache: Path) -> nn.Module:
    """Train from random weights; phantoms are kept in `cache`. Prints a line every hundred steps and every epoch."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = build(NETWORK, **CONFIG).train()
    _lay_out(model, torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.0, weight_decay=recipe.weight_decay)
    loss_of = nn.BCEWithLogitsLoss()
    rates = learning_rates(recipe)
    started, step, running = time.monotonic(), 0, 0.0
    for stage in recipe.stages:
        images, labels = _stage_set(stage, cache)
        _say(f"stage {stage.size} px: {stage.images} phantoms, {stage.epochs} epochs", started)
        for epoch in range(stage.epochs):
            for pixels, truth in make_batches(images, labels, stage.batch, rng):
                for group in optimiser.param_groups:
                    group["lr"] = rates[step]
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model(normalise(pixels).contiguous(memory_format=torch.channels_last))
                loss = loss_of(logits.float(), truth)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                step += 1
                running += (loss.item() - running) * max(0.02, 1 / step)
                if step % 100 == 0:
                    _say(f"step {step}/{len(rates)}  loss {running:.4f}", started)
            areas = _validate(model, stage.size, cache)
            mean = float(np.mean(list(areas.values())))
            _say(f"stage {stage.size} px, epoch {epoch + 1}: validation mean AUC {mean:.4f}", started)
    _lay_out(model, torch.contiguous_format)
    model.eval()
    return model


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Convolution weights in a memory format; channels last trains twice as fast on a CPU."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _say(text: str, started: float) -> None:
    print(f"[{time.monotonic() - started:6.0f} s] {text}", flush=True)


def _stage_set(stage: Stage, cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    seeds = TRAIN_SEEDS[: stage.images]
    images, labels = phantom_set(seeds, stage.render_size, cache)
    return resized(images, stage.size), labels


def resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, 1, S, S) to (N, 1, size, size), by area."""
    if images.shape[-1] == size:
        return images
    small = np.empty((len(images), 1, size, size), np.uint8)
    for index, image in enumerate(images):
        small[index, 0] = cv2.resize(image[0], (size, size), interpolation=cv2.INTER_AREA)
    return small


def make_batches(
    images: NDArray[np.uint8], labels: NDArray[np.bool_], batch: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled batches, each image mirrored with probability 1/2; an incomplete last batch is left out."""
    order = rng.permutation(len(images))
    for start in range(0, len(images) - batch + 1, batch):
        chosen = np.sort(order[start : start + batch])
        pixels = np.array(images[chosen])
        mirrored = rng.random(batch) < 0.5
        pixels[mirrored] = pixels[mirrored][..., ::-1]
        yield torch.from_numpy(pixels), torch.from_numpy(labels[chosen].astype(np.float32))


def _validate(model: nn.Module, size: int, cache: Path) -> dict[str, float]:
    images, labels = phantom_set(VALIDATION_SEEDS[:VALIDATION_COUNT], INPUT_SIZE, cache)
    areas = area_per_finding(labels, predict(model, resized(images, size)))
    model.train()
    return areas


def run(recipe: Recipe, output: Path, cache: Path) -> None:
    """Train, choose thresholds on validation phantoms, measure on test phantoms; write checkpoint and CARD.md."""
    started = time.monotonic()
    model = train(recipe, cache)
    seconds = time.monotonic() - started
    images, labels = phantom_set(VALIDATION_SEEDS[:VALIDATION_COUNT], INPUT_SIZE, cache)
    thresholds = youden_thresholds(labels, predict(model, images))
    images, labels = phantom_set(TEST_SEEDS[:TEST_COUNT], INPUT_SIZE, cache)
    areas = area_per_finding(labels, predict(model, images))
    card = demo_card(
        command=f"python -m mdconv.train --output {output.name} --seed {recipe.seed}",
        train=(TRAIN_SEEDS.start, max(stage.images for stage in recipe.stages)),
        validation=(VALIDATION_SEEDS.start, VALIDATION_COUNT),
        test=(TEST_SEEDS.start, TEST_COUNT),
        recipe=asdict(recipe),
        seconds=seconds,
        areas=areas,
    )
    checkpoint = Checkpoint(model, NETWORK, CONFIG, CHESTXRAY14, INPUT_SIZE, thresholds, NOTICE, card)
    try:
        save_checkpoint(checkpoint, output)
        text = as_markdown(load_checkpoint(output))
        output.with_name("CARD.md").write_text(text, "utf-8")
    except OSError as error:
        raise MachineError(f"cannot write the checkpoint: {describe_os_error(error)}") from error
    print(text)
    print(f"{output}: {NOTICE}")
