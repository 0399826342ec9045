"""Training a network on any data set: the loop, resumable, on a CPU or a GPU, in one process or many.

The recipe is the paper's (Hu et al., IEEE Access 2020, section IV-B): Adam, weight decay, a learning rate that falls
along a cosine, binary cross-entropy over labels of which any number may hold, cross-entropy over labels that exclude
each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.errors import MachineError, UsageError, describe_os_error
from edge.statistics import roc_auc
from mdconv.card import training_card
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.data.cases import Cases
from mdconv.distributed import ALONE, World, spread_out
from mdconv.evaluate import youden_threshold
from mdconv.networks import build, log_odds, normalise
from mdconv.training_data import training_batches
from mdconv.training_log import TrainingLog
from mdconv.training_state import Progress, fingerprint, load_state, save_state

BEST = "best.safetensors"
SAVE_SECONDS = 60.0
VALIDATION_BATCH = 32


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from network and images. The defaults are the paper's."""

    size: int = 448
    """Height and width that the network sees, pixels."""
    epochs: int = 100
    batch: int = 64
    """Images a step, over all processes."""
    learning_rate: float = 1e-4
    """At its peak. The paper prints "10e-5"."""
    weight_decay: float = 1e-4
    warm_up_steps: int = 0
    patience: int = 10
    """Epochs without a better validation score after which training stops; 0 never stops it early."""
    augment: bool = True
    """Random crop, rotation and mirroring (section IV-B); without it mirroring alone."""
    seed: int = 0
    precision: str = "auto"
    """"float32", "bfloat16", "float16" (a GPU's), or "auto": what the device is fast in."""


class Trained(NamedTuple):
    """What a training left."""

    checkpoint: Path
    best_epoch: int
    """Counted from 1."""
    history: list[dict[str, float]]
    """One record an epoch: its number from 1, mean loss, validation mean AUC, images a second."""
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
    workers: int = 0,
    save_seconds: float = SAVE_SECONDS,
    world: World = ALONE,
    command: str = "",
) -> Trained:
    """Train `network`, built with `config`, and keep the weights that do best on `validation` (mean AUC).

    `directory` gets ``state.pt`` (every `save_seconds` and after each epoch), ``best.safetensors`` (a checkpoint),
    ``history.jsonl`` and TensorBoard's events. Called again with the same arguments it goes on from the state, to the
    same weights as if it had never stopped, or returns at once if it was done.

    Args:
        initial: checkpoint to start from, in place of random weights.
        workers: processes that read images.
        world: this process's place among those that train together; each calls `fit` with the same arguments.
        command: what the checkpoint's card says it was made by.

    Raises:
        UsageError: recipe, checkpoint or folder do not fit the rest.
        InputRefusedError: an image cannot be read.
        MachineError: a file cannot be written.
    """
    _check(recipe, train, validation, world)
    torch.manual_seed(recipe.seed)
    model = initial_model(network, config, train, initial).to(world.device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    what = {"network": network, "config": dict(config), "recipe": asdict(recipe)}
    key = fingerprint(what, train, validation, initial)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(model, train, validation, recipe, world, workers)
        progress = load_state(directory, key, trainer.parts, world.device)

        def keep() -> None:
            if world.leads:
                save_state(directory, key, progress, trainer.parts)

        def keep_best(probabilities: NDArray[np.float32]) -> None:
            card = training_card(what, train, validation, progress.history[-1], command)
            thresholds = thresholds_of(validation, probabilities)
            checkpoint = Checkpoint(
                model=model,
                network=network,
                config=dict(config),
                labels=train.labels,
                input_size=recipe.size,
                thresholds=thresholds,
                notice=train.notice,
                card=card,
                exclusive=train.exclusive,
            )
            if world.leads:
                save_checkpoint(checkpoint, directory / BEST)

        if not progress.finished:
            with TrainingLog(directory, recipe.epochs, enabled=world.leads) as log:
                trainer.run(progress, log, keep, keep_best, save_seconds)
    except OSError as error:
        raise MachineError(f"cannot write to the output folder: {describe_os_error(error)}") from error
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
        if (given.network, given.labels) != (network, train.labels):
            raise UsageError(
                f"{initial} is {given.network} for {', '.join(given.labels)}, expected {network} for "
                f"{', '.join(train.labels)}: name a checkpoint of the same network and labels"
            )
        try:
            model.load_state_dict(given.model.state_dict())
        except RuntimeError:
            raise UsageError(f"{initial} has other layers ({given.config}), expected {dict(config)}") from None
    return model


class Trainer:
    """The loop itself, in one process of `world`. Its `parts` are what a resumed training needs back."""

    def __init__(
        self, model: nn.Module, train: Cases, validation: Cases, recipe: Recipe, world: World, workers: int
    ) -> None:
        self._recipe, self._world, self._workers = recipe, world, workers
        self._train, self._validation = train, validation
        self._model = spread_out(model, world)
        self._optimiser = torch.optim.Adam(model.parameters(), lr=0.0, weight_decay=recipe.weight_decay)
        self._autocast = autocast_dtype(recipe.precision, world.device)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=self._autocast is torch.float16)
        self._steps = len(train) // recipe.batch
        self._loss_of: nn.Module = nn.CrossEntropyLoss() if train.exclusive else nn.BCEWithLogitsLoss()
        self._forward: nn.Module = self._model
        if world.size > 1:
            self._forward = nn.parallel.DistributedDataParallel(self._model, broadcast_buffers=False)
        self.parts = {"model": model, "optimiser": self._optimiser, "scaler": self._scaler}

    def run(
        self,
        progress: Progress,
        log: TrainingLog,
        keep: Callable[[], None],
        keep_best: Callable[[NDArray[np.float32]], None],
        save_seconds: float,
    ) -> None:
        """Train from `progress` to the end: calls `keep` where it could go on, `keep_best` with the best weights."""
        started = time.monotonic() - progress.seconds
        while not progress.finished:
            self._train_epoch(progress, log, keep, started, save_seconds)
            probabilities = self._validate()
            areas = areas_of(self._validation, probabilities)
            score, before = float(np.mean(list(areas.values()))), progress.history
            spent = time.monotonic() - started - (before[-1]["seconds"] if before else 0.0)
            progress.history.append(
                {
                    "epoch": progress.epoch + 1,
                    "loss": progress.loss_sum / self._steps,
                    "mean_auc": score,
                    "images_per_second": self._steps * self._recipe.batch / spent,
                    "seconds": time.monotonic() - started,
                }
            )
            progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
            if score > progress.best_score:
                progress.best_score, progress.best_epoch = score, progress.epoch
                keep_best(probabilities)
            stale = progress.epoch - progress.best_epoch
            progress.finished = progress.epoch == self._recipe.epochs or 0 < self._recipe.patience <= stale
            progress.seconds = time.monotonic() - started
            log.epoch(progress.history, areas)
            keep()

    def _train_epoch(
        self, progress: Progress, log: TrainingLog, keep: Callable[[], None], started: float, save_seconds: float
    ) -> None:
        recipe, saved = self._recipe, time.monotonic()
        self._forward.train()
        batches = training_batches(
            self._train,
            size=recipe.size,
            batch=recipe.batch,
            augmented=recipe.augment,
            seed=recipe.seed,
            epoch=progress.epoch,
            skip=progress.step,
            world=self._world,
            workers=self._workers,
        )
        for images, truth in batches:
            number = progress.epoch * self._steps + progress.step
            rate = learning_rate(recipe, number, recipe.epochs * self._steps)
            # Seeded by step: an interrupted training draws the same dropout masks again, and so do all processes.
            torch.manual_seed(recipe.seed * 1_000_003 + number)
            progress.loss_sum += (loss := self._step(images, truth, rate))
            progress.step += 1
            log.step(progress.epoch, progress.step, self._steps, number, loss, rate)
            if time.monotonic() - saved >= save_seconds and progress.step < self._steps:
                progress.seconds = time.monotonic() - started
                keep()
                saved = time.monotonic()

    def _step(self, images: Tensor, truth: Tensor, rate: float) -> float:
        """One step of the optimiser; returns the whole batch's loss."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        loss = self._loss_of(self._outputs(images), truth)
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return self._world.mean(float(loss.detach()))

    def _outputs(self, images: Tensor) -> Tensor:
        pixels = normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._world.device.type, self._autocast, enabled=self._autocast is not None):
            outputs: Tensor = self._forward(pixels)
        return outputs.float()

    @torch.inference_mode()
    def _validate(self) -> NDArray[np.float32]:
        """Probabilities (N, L) of the validation images, each process doing its part."""
        self._forward.eval()
        cases, parts = self._validation, []
        mine = range(self._world.rank, len(cases), self._world.size)
        for start in range(0, len(mine), VALIDATION_BATCH):
            chosen = mine[start : start + VALIDATION_BATCH]
            images = np.stack([cases.read(index, self._recipe.size) for index in chosen])[:, None]
            outputs = self._outputs(torch.from_numpy(images).to(self._world.device))
            parts.append(torch.sigmoid(log_odds(outputs, cases.exclusive)))
        probabilities: NDArray[np.float32] = self._world.gather(torch.cat(parts), len(cases)).cpu().numpy()
        return probabilities


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Rate of a step, counted from 0: a linear warm-up times a cosine from the peak to zero over all steps."""
    warm = min(1.0, (step + 1) / recipe.warm_up_steps) if recipe.warm_up_steps else 1.0
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What activations are computed in, None for float32. "auto": half precision where the device is fast in it."""
    if precision != "auto":
        return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_fast_bfloat16() else None


def _has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 itself; oneDNN emulates it on others, many times slower than float32."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # no Linux
        return False


def areas_of(cases: Cases, probabilities: NDArray[np.float32]) -> dict[str, float]:
    """AUC of each label that some of `cases` have and others have not. Raises `UsageError` if there is none."""
    areas = {
        label: roc_auc(cases.truth[:, number], probabilities[:, number])
        for number, label in enumerate(cases.labels)
        if 0 < cases.truth[:, number].sum() < len(cases)
    }
    if not areas:
        raise UsageError(f"no label of {cases.name} is present in some and absent in others of {len(cases)} images")
    return areas


def thresholds_of(cases: Cases, probabilities: NDArray[np.float32]) -> dict[str, float]:
    """Youden's threshold of each label; 0.5 for labels that exclude each other, and where `cases` cannot tell."""
    thresholds = dict.fromkeys(cases.labels, 0.5)
    if not cases.exclusive:
        for number, label in enumerate(cases.labels):
            if 0 < cases.truth[:, number].sum() < len(cases):
                thresholds[label] = youden_threshold(cases.truth[:, number], probabilities[:, number])
    return thresholds


def _check(recipe: Recipe, train: Cases, validation: Cases, world: World) -> None:
    if recipe.batch % world.size:
        raise UsageError(f"a batch of {recipe.batch} cannot be shared by {world.size} processes: make it a multiple")
    if len(train) < recipe.batch or recipe.batch // world.size < 2:
        raise UsageError(
            f"{len(train)} images in batches of {recipe.batch} for {world.size} processes: expected a whole batch, and "
            "two images of it for each"
        )
    if (train.labels, train.exclusive) != (validation.labels, validation.exclusive):
        raise UsageError(f"{train.name} and {validation.name} have other labels: validate on the same data set")
    if recipe.precision == "float16" and world.device.type != "cuda":
        raise UsageError("precision float16 needs a GPU: leave it at auto, or take float32")
