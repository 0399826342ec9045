"""The demo network: a recipe that trains it on phantoms, and its checkpoint with its card.

The recipe is the paper's (Hu et al., IEEE Access 2020, section IV-B: Adam, weight decay 1e-4, learning rate falling
along a cosine, binary cross-entropy over 14 labels, random horizontal flips, batch 64, 100 epochs), scaled down to less
than two hours on two cores. It departs from the paper in:

- learning rate: 1.5e-3 at its peak after a warm-up, not 1e-4 ("10e-5"): these weights start at random, with few images;
- batch 32 (16 at 448 pixels), not 64: twice the steps from the same images;
- size: most steps at 128 and 224 pixels, the last at 448, the deployed size, instead of 448 throughout;
- a few epochs instead of 100, on phantoms instead of patients;
- a second part, on new phantoms, in which the boxes of lesions are known and `mdconv.location` teaches the class
  activation maps to point at them: labels alone, on so few images, teach that a finding is there but not where.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.errors import MachineError, describe_os_error
from edge.labels import CHESTXRAY14
from mdconv.card import as_markdown, demo_card, machine
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.data.cases import Box
from mdconv.data.phantom import NOTICE, TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS, boxes_of
from mdconv.data.phantom.sets import phantom_set
from mdconv.location import cover, location_loss
from mdconv.metrics import area_per_finding, youden_thresholds
from mdconv.networks import build, normalise
from mdconv.networks.blocks import Network
from mdconv.recipe import autocast_dtype

NETWORK = "mobilenet_v2"
CONFIG: dict[str, Any] = {"labels": len(CHESTXRAY14), "kernel_sizes": [3, 5], "ratios": [1, 1]}
INPUT_SIZE = 448
VALIDATION_COUNT = 600
TEST_COUNT = 1000
PREDICTED_AT_ONCE = 16


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one image size: `images` phantoms from seed `first` on, seen `epochs` times."""

    size: int
    images: int
    epochs: int
    batch: int
    render_size: int
    first: int = 0

    @property
    def steps(self) -> int:
        return self.epochs * (self.images // self.batch)


@dataclass(frozen=True)
class Part:
    """Stages that share a learning-rate schedule and an optimiser; a part starts from what the one before learned."""

    stages: tuple[Stage, ...]
    learning_rate: float
    """At its peak."""
    warm_up_steps: int
    location_weight: float = 0.0
    """Of `mdconv.location.location_loss` beside the binary cross-entropy."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the phantoms themselves."""

    parts: tuple[Part, ...] = (
        Part(
            stages=(
                Stage(size=128, images=12_000, epochs=3, batch=32, render_size=224),
                Stage(size=224, images=12_000, epochs=1, batch=32, render_size=224),
                Stage(size=448, images=3_000, epochs=1, batch=16, render_size=448),
            ),
            learning_rate=1.5e-3,
            warm_up_steps=150,
        ),
        Part(
            stages=(Stage(size=448, images=4_800, epochs=1, batch=16, render_size=448, first=12_000),),
            learning_rate=7e-4,
            warm_up_steps=50,
            location_weight=0.3,
        ),
    )
    weight_decay: float = 1e-4
    seed: int = 0
    md_stages: tuple[str, ...] = ("layer5",)

    @property
    def config(self) -> dict[str, Any]:
        """Options of `mdconv.networks.build`."""
        return {**CONFIG, "md_stages": list(self.md_stages)}


class Batch(NamedTuple):
    """Of one step."""

    pixels: Tensor
    """(N, 1, S, S) uint8."""
    truth: Tensor
    """(N, 14) float32, 0 or 1."""
    indices: NDArray[np.int64]
    """(N,), of the images in their stage."""
    mirrored: NDArray[np.bool_]
    """(N,), whether an image is shown left for right."""


class Trained(NamedTuple):
    """A network, and how each part of its training went."""

    model: Network
    parts: tuple[dict[str, Any], ...]
    """``seconds``, ``precision`` of activations, ``machine``."""


def learning_rates(part: Part) -> list[float]:
    """The learning rate of each step: a linear warm-up, and a cosine from the peak to zero.

    The cosine runs over the pixels processed, not the steps: so it falls evenly with the time spent, and the last
    stage, few steps on large images, still learns at a useful rate.
    """
    pixels = [stage.batch * stage.size**2 for stage in part.stages for _ in range(stage.steps)]
    total, done, rates = sum(pixels), 0, []
    for step, work in enumerate(pixels):
        warm = min(1.0, (step + 1) / part.warm_up_steps)
        rates.append(part.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done / total)))
        done += work
    return rates


def train(recipe: Recipe, cache: Path) -> Trained:
    """Train from random weights; phantoms, and the weights after each part but the last, are kept in `cache`.

    A part whose weights are there is not trained again. Prints a line every hundred steps and every epoch.
    """
    torch.manual_seed(recipe.seed)
    model, records = build(NETWORK, **recipe.config), []
    for number, part in enumerate(recipe.parts):
        kept = cache / f"part-{number + 1}-{_digest(recipe, number)}.safetensors"
        if kept.exists():
            checkpoint = load_checkpoint(kept)
            model.load_state_dict(checkpoint.model.state_dict())
            records = checkpoint.card["parts"]
            print(f"part {number + 1}: taken from {kept.name}", flush=True)
            continue
        records = [*records, _train_part(model, part, recipe, number, cache)]
        if number + 1 < len(recipe.parts):
            so_far = Checkpoint(model, NETWORK, recipe.config, CHESTXRAY14, INPUT_SIZE, {}, NOTICE, {"parts": records})
            try:
                save_checkpoint(so_far, kept)
            except OSError as error:
                raise MachineError(f"cannot keep the weights of a part: {describe_os_error(error)}") from error
    return Trained(model.eval(), tuple(records))


def _digest(recipe: Recipe, number: int) -> str:
    """Of all that decides the weights after part `number`."""
    decides = asdict(replace(recipe, parts=recipe.parts[: number + 1]))
    return sha256(json.dumps([NETWORK, recipe.config, decides], sort_keys=True).encode()).hexdigest()[:12]


def _train_part(model: Network, part: Part, recipe: Recipe, number: int, cache: Path) -> dict[str, Any]:
    torch.manual_seed(recipe.seed + number)
    rng = np.random.default_rng(recipe.seed + number)
    model.train()
    _lay_out(model, torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.0, weight_decay=recipe.weight_decay)
    dtype = autocast_dtype("auto", torch.device("cpu"))
    rates = learning_rates(part)
    started, step, running = time.monotonic(), 0, 0.0
    for stage in part.stages:
        images, labels = _stage_set(stage, cache)
        _say(f"stage {stage.size} px: {stage.images} phantoms, {stage.epochs} epochs", started)
        for epoch in range(stage.epochs):
            for batch in make_batches(images, labels, stage.batch, rng):
                for group in optimiser.param_groups:
                    group["lr"] = rates[step]
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    loss = _loss(model, batch, stage, part.location_weight)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                step += 1
                running += (loss.item() - running) * max(0.02, 1 / step)
                if step % 100 == 0:
                    _say(f"step {step}/{len(rates)}  loss {running:.4f}", started)
            areas = _validate(model, stage.size, cache)
            mean = float(np.mean(list(areas.values())))
            _say(f"stage {stage.size} px, epoch {epoch + 1}: validation mean AUC {mean:.4f}", started)
    _lay_out(model, torch.contiguous_format)
    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    seconds = round(time.monotonic() - started)
    return {"seconds": seconds, "precision": precision, "machine": machine(torch.device("cpu"))}


def _loss(model: Network, batch: Batch, stage: Stage, location_weight: float) -> Tensor:
    features = model.features(normalise(batch.pixels).contiguous(memory_format=torch.channels_last))
    logits = model.classifier(model.dropout(features.mean((2, 3))))
    loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), batch.truth)
    if not location_weight:
        return loss
    assert isinstance(model.classifier, nn.Linear)
    cam = torch.einsum("nchw,lc->nlhw", features, model.classifier.weight)
    return loss + location_weight * location_loss(cam, _covered(stage, batch, cam.shape[-1]))


def _covered(stage: Stage, batch: Batch, cells: int) -> Tensor:
    """Which share of each cell of each map lies in the boxes of its finding: (N, 14, cells, cells)."""
    covered = []
    for index, mirrored in zip(batch.indices, batch.mirrored):
        boxes = [Box(*box) for box in boxes_of(TRAIN_SEEDS[stage.first + int(index)], stage.size)]
        shares = cover(boxes, CHESTXRAY14, stage.size, cells)
        covered.append(shares[..., ::-1] if mirrored else shares)
    return torch.from_numpy(np.stack(covered))


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Convolution weights in a memory format; channels last trains twice as fast on a CPU."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _say(text: str, started: float) -> None:
    print(f"[{time.monotonic() - started:6.0f} s] {text}", flush=True)


def _stage_set(stage: Stage, cache: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    seeds = TRAIN_SEEDS[stage.first : stage.first + stage.images]
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
) -> Iterator[Batch]:
    """One epoch of shuffled batches, each image mirrored with probability 1/2; an incomplete last batch is left out."""
    order = rng.permutation(len(images))
    for start in range(0, len(images) - batch + 1, batch):
        chosen = np.sort(order[start : start + batch])
        pixels = np.array(images[chosen])
        mirrored = rng.random(batch) < 0.5
        pixels[mirrored] = pixels[mirrored][..., ::-1]
        truth = torch.from_numpy(labels[chosen].astype(np.float32))
        yield Batch(torch.from_numpy(pixels), truth, chosen, mirrored)


def predict(model: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities (N, L) of images (N, 1, S, S); leaves the model in evaluation mode."""
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), PREDICTED_AT_ONCE):
            pixels = torch.from_numpy(np.array(images[start : start + PREDICTED_AT_ONCE]))
            parts.append(torch.sigmoid(model(normalise(pixels))).numpy())
    return np.concatenate(parts)


def _validate(model: nn.Module, size: int, cache: Path) -> dict[str, float]:
    images, labels = phantom_set(VALIDATION_SEEDS[:VALIDATION_COUNT], INPUT_SIZE, cache)
    areas = area_per_finding(labels, predict(model, resized(images, size)))
    model.train()
    return areas


def run(recipe: Recipe, output: Path, cache: Path, command: str) -> None:
    """Train, choose thresholds on validation phantoms, measure on test phantoms; write checkpoint and CARD.md.

    `command` is what the card says that made it.
    """
    model, parts = train(recipe, cache)
    images, labels = phantom_set(VALIDATION_SEEDS[:VALIDATION_COUNT], INPUT_SIZE, cache)
    thresholds = youden_thresholds(labels, predict(model, images))
    images, labels = phantom_set(TEST_SEEDS[:TEST_COUNT], INPUT_SIZE, cache)
    areas = area_per_finding(labels, predict(model, images))
    card = demo_card(
        command=command,
        validation=(VALIDATION_SEEDS.start, VALIDATION_COUNT),
        test=(TEST_SEEDS.start, TEST_COUNT),
        recipe=asdict(recipe),
        parts=parts,
        areas=areas,
    )
    checkpoint = Checkpoint(model, NETWORK, recipe.config, CHESTXRAY14, INPUT_SIZE, thresholds, NOTICE, card)
    try:
        save_checkpoint(checkpoint, output)
        text = as_markdown(load_checkpoint(output))
        output.with_name("CARD.md").write_text(text, "utf-8")
    except OSError as error:
        raise MachineError(f"cannot write the checkpoint: {describe_os_error(error)}") from error
    print(text)
    print(f"{output}: {NOTICE}")
