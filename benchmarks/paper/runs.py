"""One run: a network trained from a seed, and what it says about the test images. What is on disk is not done again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.experiments import Arm
from benchmarks.paper.settings import Step
from mdconv.data.cases import Cases
from mdconv.predictors import open_predictor
from mdconv.training import fit

BATCH = 16


class Run(NamedTuple):
    """What a run found."""

    directory: Path
    checkpoint: Path
    logits: dict[int, NDArray[np.float32]]
    """(N, L), of the N test images, by input size: of the network after each step."""
    seconds: float
    """Of training."""


class Split(NamedTuple):
    """The images of one data set."""

    train: Cases
    validation: Cases
    test: Cases


def carry_out(arm: Arm, seed: int, schedule: tuple[Step, ...], split: Split, directory: Path, workers: int) -> Run:
    """Train by each step of `schedule` in turn, each starting from what the one before learned; test after each.

    Raises what `fit` and `open_predictor` raise.
    """
    config = {**arm.config, "labels": len(split.train.labels)}
    logits, seconds, initial = {}, 0.0, None
    for number, (recipe, images) in enumerate(schedule):
        trained = fit(
            arm.network,
            config,
            split.train if images is None else split.train.select(range(images)),
            split.validation,
            replace(recipe, seed=seed),
            directory / f"{number}-{recipe.size}px",
            initial=initial,
            workers=workers,
        )
        initial, seconds = trained.checkpoint, seconds + trained.seconds
        logits[recipe.size] = _test(trained.checkpoint, split.test)
    assert initial is not None
    summary = {"arm": arm.slug, "seed": seed, "seconds": round(seconds), "test": split.test.name}
    (directory / "run.json").write_text(json.dumps(summary) + "\n")
    return Run(directory, initial, logits, seconds)


def _test(checkpoint: Path, cases: Cases) -> NDArray[np.float32]:
    """Logits (N, L) of the test images, kept beside the checkpoint."""
    kept = checkpoint.with_name("test.npy")
    if not kept.exists():
        with open_predictor(checkpoint) as predictor:
            size, parts = predictor.input_size, []
            for start in range(0, len(cases), BATCH):
                batch = [cases.read(index, size) for index in range(start, min(start + BATCH, len(cases)))]
                parts.append(predictor.predict(np.stack(batch)[:, None]).logits)
        partial = kept.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(parts))
        partial.replace(kept)
    return np.asarray(np.load(kept))
