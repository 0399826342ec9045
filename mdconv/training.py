"""Training a network on any data set: resumable, on a CPU or a GPU, in one process or many.

The recipe is the paper's (Hu et al., IEEE Access 2020, section IV-B): Adam, weight decay, a learning rate that falls
along a cosine, binary cross-entropy over labels of which any number may hold, cross-entropy over labels that exclude
each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from edge.errors import MachineError, UsageError, describe_os_error
from mdconv.card import training_card
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.data.cases import Cases
from mdconv.distributed import World, alone, spread_out
from mdconv.metrics import youden_threshold
from mdconv.networks import build
from mdconv.qat import FakeQuantized, Scales
from mdconv.recipe import PRECISIONS, Recipe
from mdconv.trainer import Moments, Trainer
from mdconv.training_log import TrainingLog
from mdconv.training_state import STATE, fingerprint, load_state, save_state

__all__ = ["BEST", "Recipe", "Trained", "fit"]

BEST = "best.safetensors"
SAVE_SECONDS = 60.0


class Trained(NamedTuple):
    """What a training left."""

    checkpoint: Path
    best_epoch: int
    """Counted from 1."""
    history: list[dict[str, float]]
    """One record an epoch: its number from 1, mean loss, validation mean AUC, images a second, seconds so far."""
    seconds: float


def fit(
    network: str,
    config: Mapping[str, Any],
    train: Cases,
    validation: Cases,
    recipe: Recipe,
    directory: Path,
    *,
    initial: Path | None = None,
    scales: Scales | None = None,
    workers: int = 0,
    save_seconds: float = SAVE_SECONDS,
    world: World | None = None,
    command: str = "",
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train `network`, built with `config`, and keep the weights that do best on `validation` (mean AUC).

    `directory` gets ``state.pt`` (every `save_seconds` and after each epoch), ``best.safetensors`` (a checkpoint),
    ``history.jsonl`` and TensorBoard's events. Called again with the same arguments it goes on from the state, to the
    same weights as if it had never stopped, or returns at once if it was done.

    Args:
        initial: checkpoint to start from, in place of random weights.
        scales: of a bundle, for quantization-aware training: the network computes as that bundle does.
        workers: processes that read images.
        world: this process's place among those that train together, each of which calls `fit` with the same arguments;
            by default it is alone, on the GPU where there is one.
        command: what the checkpoint's card says it was made by.
        stop: asked after each step (on a GPU every 20). Once it says so, the state is kept and `KeyboardInterrupt` is
            raised.

    Raises:
        UsageError: recipe, checkpoint or folder do not fit the rest, or the loss is not finite any more.
        InputRefusedError: an image cannot be read.
        MachineError: a file cannot be written, or a worker died.
    """
    world = world or alone()
    if scales and recipe.precision == "auto":
        recipe = replace(recipe, precision="float32")  # rounding to a scale's multiples needs its digits
    _check(recipe, train, validation, world)
    torch.manual_seed(recipe.seed)
    model = initial_model(network, config, train, initial).to(world.device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    what = {"network": network, "config": dict(config), "recipe": asdict(recipe)}
    if scales:
        what["scales"] = scales.to_json()
    key = fingerprint(what, train, validation, initial)
    model = spread_out(model, world)
    computes = FakeQuantized(model, scales).to(world.device) if scales else model
    trainer = Trainer(model, computes, config.get("in_channels", 3), (train, validation), recipe, world, workers)
    try:
        if world.leads:
            directory.mkdir(parents=True, exist_ok=True)
        progress = load_state(directory, key, trainer.parts, world)

        def keep() -> None:
            if world.leads:
                save_state(directory, key, progress, trainer.parts)

        def keep_best(probabilities: NDArray[np.float32], areas: dict[str, float]) -> None:
            if world.leads:
                checkpoint = Checkpoint(
                    model=model,
                    network=network,
                    config=dict(config),
                    labels=train.labels,
                    input_size=recipe.size,
                    thresholds=thresholds_of(validation, probabilities),
                    notice=train.notice,
                    card=training_card(what, (train, validation), progress.history[-1], areas, command, world),
                    exclusive=train.exclusive,
                )
                save_checkpoint(checkpoint, directory / BEST)

        if world.leads and progress.best_epoch and not (directory / BEST).is_file():
            raise UsageError(f"{directory / STATE} is there, {BEST} is not: put it back, or name another output folder")
        if not progress.finished:
            first = progress.epoch * (len(train) // recipe.batch) + progress.step
            with TrainingLog(directory, recipe.epochs, first, enabled=world.leads) as log:
                trainer.run(progress, log, Moments(keep, keep_best, stop, save_seconds))
    except OSError as error:
        raise MachineError(f"cannot write to the output folder: {describe_os_error(error)}") from error
    except RuntimeError as error:
        if explained := _explained(error, world):
            raise explained from error
        raise
    return Trained(directory / BEST, progress.best_epoch, progress.history, progress.seconds)


def initial_model(network: str, config: Mapping[str, Any], train: Cases, initial: Path | None) -> nn.Module:
    """The network with random weights, or those of checkpoint `initial`. Raises `UsageError` if they do not fit."""
    if config.get("labels") != len(train.labels):
        raise UsageError(f"the network has {config.get('labels')} outputs, {train.name} has {len(train.labels)} labels")
    try:
        model = build(network, **config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if initial is not None:
        given = load_checkpoint(initial)
        if (given.network, given.labels, given.exclusive) != (network, train.labels, train.exclusive):
            raise UsageError(
                f"{initial} is {given.network} for {', '.join(given.labels)}, expected {network} for "
                f"{', '.join(train.labels)}: name a checkpoint of the same network and labels"
            )
        try:
            model.load_state_dict(given.model.state_dict())
        except RuntimeError:
            raise UsageError(f"{initial} has other layers ({given.config}), expected {dict(config)}") from None
    return model


def thresholds_of(cases: Cases, probabilities: NDArray[np.float32]) -> dict[str, float]:
    """Youden's threshold of each label; 0.5 for labels that exclude each other, and where `cases` cannot tell."""
    thresholds = dict.fromkeys(cases.labels, 0.5)
    if not cases.exclusive:
        for number, label in enumerate(cases.labels):
            if 0 < cases.truth[:, number].sum() < len(cases):
                thresholds[label] = youden_threshold(cases.truth[:, number], probabilities[:, number])
    return thresholds


def _explained(error: RuntimeError, world: World) -> MachineError | None:
    """What a user can mend, None for anything else."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return MachineError(f"{world.device} has too little memory for this batch: take a smaller --batch or --size")
    if "DataLoader worker" in text:
        return MachineError(
            f"a process that reads images died ({text}): take fewer --workers, or give them more memory (/dev/shm; in "
            "a container --shm-size)"
        )
    if world.size > 1 and (isinstance(error, dist.DistBackendError) or "gloo" in text):
        return MachineError(f"process {world.rank} lost the others ({text}): see what they say, and start all again")
    return None


def _check(recipe: Recipe, train: Cases, validation: Cases, world: World) -> None:
    if recipe.size < 32 or recipe.epochs < 1 or not 0 < recipe.learning_rate < 1 or recipe.weight_decay < 0:
        raise UsageError(
            f"size {recipe.size}, {recipe.epochs} epochs, learning rate {recipe.learning_rate:g}, weight decay "
            f"{recipe.weight_decay:g}: expected at least 32 pixels, an epoch, a rate between 0 and 1, no negative decay"
        )
    if recipe.batch % world.size:
        raise UsageError(f"a batch of {recipe.batch} cannot be shared by {world.size} processes: make it a multiple")
    if len(train) < recipe.batch or recipe.batch // world.size < 2:
        raise UsageError(
            f"{len(train)} images in batches of {recipe.batch} for {world.size} processes: expected a whole batch, and "
            "two images of it for each"
        )
    if (train.labels, train.exclusive) != (validation.labels, validation.exclusive):
        raise UsageError(f"{train.name} and {validation.name} have other labels: validate on the same data set")
    present = validation.truth.sum(axis=0)
    if len(validation) < world.size or not ((present > 0) & (present < len(validation))).any():
        raise UsageError(
            f"no label of {validation.name} is present in some and absent in others of {len(validation)} images: "
            "validate on more"
        )
    if recipe.precision not in PRECISIONS:
        raise UsageError(f"precision {recipe.precision!r} is none of {', '.join(PRECISIONS)}")
    if recipe.precision == "float16" and world.device.type != "cuda":
        raise UsageError("precision float16 needs a GPU: leave it at auto, or take float32")
