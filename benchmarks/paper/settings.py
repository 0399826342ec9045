"""How a run is trained: the paper's setting on the real images, and the reduced one on phantoms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, cast, get_args

import numpy as np

from mdconv.data.cases import Cases
from mdconv.data.phantom import NOTICE, TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS, render
from mdconv.data.phantom.sets import PhantomCases, phantom_cases
from mdconv.data.split import Split
from mdconv.training import Recipe

SPLITS: tuple[Split, ...] = get_args(Split)


class Step(NamedTuple):
    """A recipe, and how many of the training images it is given: the first so many, or all."""

    recipe: Recipe
    images: int | None = None


class Setting(Protocol):
    """Where images come from, and by which recipes a network learns on them, one after the other."""

    @property
    def name(self) -> str:
        """Of the folder that its runs are kept in."""
        ...

    @property
    def seeds(self) -> int | None:
        """Runs an arm; None leaves it to the experiment."""
        ...

    def schedules(self, sizes: tuple[int, ...]) -> tuple[tuple[Step, ...], ...]:
        """The ways to train: each a row of steps, the next starting from what the one before learned."""
        ...

    def cases(self, data: str, split: Split) -> Cases: ...


@dataclass(frozen=True)
class Paper:
    """The paper's setting (section IV-B): 100 epochs at the full size, from random weights."""

    chestxray14: Path | None
    chestxray2017: Path | None
    name: str = "paper"
    seeds: int | None = 1

    def schedules(self, sizes: tuple[int, ...]) -> tuple[tuple[Step, ...], ...]:
        return tuple((Step(Recipe(size=size)),) for size in sizes)

    def cases(self, data: str, split: Split) -> Cases:
        from mdconv.data import chestxray14, chestxray2017

        if data == "chestxray14":
            assert self.chestxray14 is not None
            return chestxray14.load(self.chestxray14, split)
        assert self.chestxray2017 is not None
        return chestxray2017.load(self.chestxray2017, split, cast("chestxray2017.Task", data))


@dataclass(frozen=True)
class Reduced:
    """Phantoms, few and small: what two cores train in minutes. It shows that the comparison runs, and little else."""

    cache: Path
    images: int = 12_000
    validation: int = 300
    test: int = 1000
    name: str = "reduced"
    seeds: int | None = None

    def schedules(self, sizes: tuple[int, ...]) -> tuple[tuple[Step, ...], ...]:
        """Once over the phantoms at 112 pixels; where the paper's size is 224, then over a quarter of them at that."""
        small = Recipe(size=112, epochs=1, batch=16, learning_rate=1e-3, warm_up_steps=100, patience=0, augment=False)
        if 224 not in sizes:
            return ((Step(small, self.images // 2),),)
        large = replace(small, size=224, learning_rate=5e-4, warm_up_steps=20)
        return ((Step(small), Step(large, self.images // 4)),)

    def cases(self, data: str, split: Split) -> Cases:
        first = {"train": TRAIN_SEEDS, "validation": VALIDATION_SEEDS, "test": TEST_SEEDS}[split]
        count = {"train": self.images, "validation": self.validation, "test": self.test}[split]
        if data == "chestxray14":
            return phantom_cases(first[:count], 224, self.cache)
        return _two_kinds(data, first[: count // 2], 112)


def _two_kinds(task: str, seeds: range, size: int) -> PhantomCases:
    """Phantoms that stand in for ChestX-ray2017: every other one shows the second label's finding, no one another.

    Consolidating pneumonia stands for bacterial, streaky infiltration for viral: a likeness in pattern, nothing more.
    """
    labels, findings = {
        "pneumonia": (("Normal", "Pneumonia"), ((), ("Pneumonia",))),
        "kind": (("Bacterial", "Viral"), (("Pneumonia",), ("Infiltration",))),
    }[task]
    phantoms = [render(seed, size, findings=findings[index % 2]) for index, seed in enumerate(seeds)]
    names = tuple(f"phantom-{seed:07d}" for seed in seeds)
    return PhantomCases(
        name=f"phantoms of {' and '.join(labels).lower()}",
        labels=labels,
        exclusive=True,
        truth=np.eye(2, dtype=bool)[np.arange(len(seeds)) % 2],
        ids=names,
        patients=names,
        notice=NOTICE,
        images=np.stack([phantom.image[None] for phantom in phantoms]),
        seeds=tuple(seeds),
    )
