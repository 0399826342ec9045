"""The loop of a training, in one process of those that train together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.errors import UsageError
from edge.statistics import roc_auc
from mdconv.data.cases import Cases
from mdconv.distributed import World
from mdconv.networks import log_odds, normalise
from mdconv.recipe import Recipe, autocast_dtype, learning_rate
from mdconv.training_data import training_batches, validation_batches
from mdconv.training_log import TrainingLog
from mdconv.training_state import Progress

STEPS_BETWEEN_LOOKS = 20
"""On a GPU, which works on while the next steps are prepared, losses are looked at only so often."""


@dataclass(frozen=True)
class Moments:
    """What is done at the loop's turning points."""

    keep: Callable[[], None]
    """Where training could go on from."""
    keep_best: Callable[[NDArray[np.float32], dict[str, float]], None]
    """After the best epoch so far: probabilities (N, L) of the validation images, AUC by label."""
    stop: Callable[[], bool]
    """Whether somebody asked to stop."""
    save_seconds: float


class Trainer:
    """Trains `model` through `computes`: itself, or a module with the same parameters. `parts` are what a resumed
    training needs back."""

    def __init__(
        self,
        model: nn.Module,
        computes: nn.Module,
        channels: int,
        sets: tuple[Cases, Cases],
        recipe: Recipe,
        world: World,
        workers: int,
    ) -> None:
        """`channels` are the network's input's; `sets` are to train and to validate on."""
        self._channels = channels
        self._train, self._validation = sets
        self._recipe, self._world, self._workers = recipe, world, workers
        self._computes = computes
        self._forward = computes
        if world.size > 1:
            self._forward = nn.parallel.DistributedDataParallel(computes)
        self._optimiser = torch.optim.Adam(model.parameters(), lr=0.0, weight_decay=recipe.weight_decay)
        self._autocast = autocast_dtype(recipe.precision, world.device)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=self._autocast is torch.float16)
        self._steps = len(self._train) // recipe.batch
        self._loss_of: nn.Module = nn.CrossEntropyLoss() if self._train.exclusive else nn.BCEWithLogitsLoss()
        self._look = STEPS_BETWEEN_LOOKS if world.device.type == "cuda" else 1
        self.parts = {"model": model, "optimiser": self._optimiser, "scaler": self._scaler}

    def run(self, progress: Progress, log: TrainingLog, moments: Moments) -> None:
        """Train from `progress` to the end. Raises `KeyboardInterrupt`, after `keep`, where `stop` says so."""
        started = time.monotonic() - progress.seconds
        while not progress.finished:
            rate = self._train_epoch(progress, log, moments, started)
            probabilities = self._validate()
            if not np.isfinite(probabilities).all():
                raise _diverged("output on validation images", progress)
            areas = areas_of(self._validation, probabilities)
            score = float(np.mean(list(areas.values())))
            progress.history.append(
                {
                    "epoch": progress.epoch + 1,
                    "loss": progress.loss_sum / self._steps,
                    "mean_auc": score,
                    "images_per_second": rate,
                    "seconds": time.monotonic() - started,
                }
            )
            progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
            if score > progress.best_score:
                progress.best_score, progress.best_epoch = score, progress.epoch
                moments.keep_best(probabilities, areas)
            stale = progress.epoch - progress.best_epoch
            progress.finished = progress.epoch == self._recipe.epochs or 0 < self._recipe.patience <= stale
            progress.seconds = time.monotonic() - started
            log.epoch(progress.history, areas)
            moments.keep()

    def _train_epoch(self, progress: Progress, log: TrainingLog, moments: Moments, started: float) -> float:
        """The epoch's remaining steps; returns images a second."""
        recipe, first = self._recipe, progress.step
        began = saved = time.monotonic()
        self._forward.train()
        batches = training_batches(
            self._train,
            size=recipe.size,
            batch=recipe.batch,
            augmented=recipe.augment,
            seed=recipe.seed,
            epoch=progress.epoch,
            skip=first,
            world=self._world,
            workers=self._workers,
        )
        losses: list[Tensor] = []
        for images, truth in batches:
            number = progress.epoch * self._steps + progress.step
            rate = learning_rate(recipe, number, recipe.epochs * self._steps)
            # Seeded by step: an interrupted training draws the same dropout masks again, and so do all processes.
            torch.manual_seed(recipe.seed * 1_000_003 + number)
            losses.append(self._step(images, truth, rate))
            progress.step += 1
            if progress.step % self._look and progress.step < self._steps:
                continue
            loss, stopping = self._settle(losses, progress, moments)
            log.step(progress.epoch, progress.step, self._steps, loss, rate)
            due = time.monotonic() - saved >= moments.save_seconds and progress.step < self._steps
            if stopping or due:
                progress.seconds = time.monotonic() - started
                moments.keep()
                saved = time.monotonic()
            if stopping:
                raise KeyboardInterrupt
        return (progress.step - first) * recipe.batch / (time.monotonic() - began)

    def _step(self, images: Tensor, truth: Tensor, rate: float) -> Tensor:
        """One step of the optimiser; returns the loss of this process's part of the batch."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss: Tensor = self._loss_of(self._outputs(self._forward, images), truth)
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return loss.detach()

    def _settle(self, losses: list[Tensor], progress: Progress, moments: Moments) -> tuple[float, bool]:
        """Add the last steps' losses to `progress`; returns their mean and whether to stop, all processes alike."""
        asked = torch.tensor(float(moments.stop()), device=self._world.device)
        *values, asking = self._world.mean(torch.stack([*losses, asked]).double()).tolist()
        losses.clear()
        for loss in values:
            progress.loss_sum += loss
        if not math.isfinite(progress.loss_sum):
            raise _diverged("loss", progress)
        return sum(values) / len(values), asking > 0

    def _outputs(self, network: nn.Module, images: Tensor) -> Tensor:
        pixels = normalise(images, self._channels).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._world.device.type, self._autocast, enabled=self._autocast is not None):
            outputs: Tensor = network(pixels)
        return outputs.float() if outputs.itemsize < 4 else outputs  # a loss needs more digits than half precision has

    @torch.inference_mode()
    def _validate(self) -> NDArray[np.float32]:
        """Probabilities (N, L) of the validation images, each process doing its part."""
        self._forward.eval()
        cases, parts = self._validation, []
        for images, _ in validation_batches(cases, size=self._recipe.size, world=self._world, workers=self._workers):
            outputs = self._outputs(self._computes, images)
            parts.append(torch.sigmoid(log_odds(outputs, cases.exclusive)))
        probabilities: NDArray[np.float32] = self._world.gather(torch.cat(parts), len(cases)).cpu().numpy()
        return probabilities


def _diverged(what: str, progress: Progress) -> UsageError:
    return UsageError(
        f"the {what} is not finite any more (epoch {progress.epoch + 1}, step {progress.step}): "
        "take a lower learning rate, or float32 as precision, and another output folder"
    )


def areas_of(cases: Cases, probabilities: NDArray[np.float32]) -> dict[str, float]:
    """AUC of each label that some of `cases` have and others have not."""
    return {
        label: roc_auc(cases.truth[:, number], probabilities[:, number])
        for number, label in enumerate(cases.labels)
        if 0 < cases.truth[:, number].sum() < len(cases)
    }
