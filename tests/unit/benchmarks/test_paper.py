"""The paper's experiments: whole, on a few small phantoms; and their statistics against what is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.__main__ import run
from benchmarks.paper.experiments import EXPERIMENTS, Arm, Experiment
from benchmarks.paper.settings import Paper, Reduced, Step
from benchmarks.paper.tables import Result, difference
from edge.statistics import roc_auc
from mdconv.data.cases import Cases
from mdconv.data.phantom.sets import phantom_cases
from mdconv.networks import build
from mdconv.training import Recipe


@dataclass(frozen=True)
class Tiny:
    """Two steps at 32 and 64 pixels."""

    name: str = "tiny"
    seeds: int | None = 1

    def schedules(self, sizes: tuple[int, ...]) -> tuple[tuple[Step, ...], ...]:
        recipe = Recipe(size=32, epochs=1, batch=8, learning_rate=1e-3, augment=False)
        return ((Step(recipe), Step(Recipe(size=64, epochs=1, batch=8, augment=False), images=8)),)

    def cases(self, data: str, split: str) -> Cases:
        return phantom_cases({"train": range(16), "validation": range(20, 40), "test": range(50, 90)}[split], 64)


def test_an_experiment_from_training_to_table(tmp_path: Path) -> None:
    """Each network is trained and tested once; what the table says is the areas of the logits that are kept."""
    arms = (Arm("plain", "mobilenet_v2"), Arm("MD", "mobilenet_v2", ("layer5",)))
    experiment = Experiment("try", "two networks", arms, "plain", (448,), by_finding=True)
    text = run(experiment, Tiny(), 1, tmp_path, 0)
    assert "synthetic phantoms, research use only" in text
    assert "Trained on 16 images at 32 px, then 8 images at 64 px; tested on 40 (" in text
    kept = sorted(tmp_path.glob("runs/tiny-chestxray14/*/1-64px/test.npy"))
    assert len(kept) == 2
    truth = Tiny().cases("", "test").truth
    known = [i for i in range(14) if 0 < truth[:, i].sum() < len(truth)]
    rows = {tuple(cells[:2]): cells for cells in (line.strip("| ").split(" | ") for line in text.splitlines())}
    for label, slug in (("plain", "mobilenet_v2."), ("MD", "mobilenet_v2.layer5.")):
        means = [
            np.mean([roc_auc(truth[:, i], np.load(path)[:, i]) for i in known])
            for path in kept
            if path.parts[-3].startswith(slug + ("32" if label == "plain" else "3x1"))
        ]
        assert len(means) == 1
        assert float(rows[label, "64"][5]) == pytest.approx(np.mean(means), abs=6e-5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert run(experiment, Tiny(), 1, tmp_path, 0) == text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before, "nothing done again"


def test_the_interval_over_runs_is_students() -> None:
    """Differences 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, t of 2 degrees of freedom 4.303."""
    areas = np.array([[0.70], [0.71], [0.69]])
    resampled = np.full((3, 10, 1), 0.7)
    reference = Result("a", 224, areas, resampled)
    better = Result("b", 224, areas + [[0.01], [0.02], [0.03]], resampled + 0.05)
    found = difference(better, reference)
    assert found.value == pytest.approx(0.02)
    half = 4.303 * 0.01 / 3**0.5
    assert found.over_runs == pytest.approx((0.02 - half, 0.02 + half))
    assert found.over_images == pytest.approx((0.05, 0.05))
    alone = Result("a", 224, areas[:1], resampled[:1])
    assert difference(alone, alone).over_runs is None


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_arm_can_be_built(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert experiment.reference in {arm.label for arm in experiment.arms}
    assert len({arm.slug for arm in experiment.arms}) == len(experiment.arms)
    for arm in experiment.arms:
        build(arm.network, **arm.config)
    assert all(steps for steps in Reduced(Path()).schedules(experiment.sizes))
    for (step,) in Paper(None, None).schedules(experiment.sizes):
        recipe = step.recipe
        assert (recipe.epochs, recipe.batch, recipe.learning_rate, recipe.weight_decay) == (100, 64, 1e-4, 1e-4)


def test_the_stand_in_for_two_kinds_of_pneumonia_is_exclusive(tmp_path: Path) -> None:
    cases = Reduced(tmp_path, images=12).cases("kind", "train")
    assert cases.labels == ("Bacterial", "Viral") and cases.exclusive and "synthetic" in cases.notice
    assert (cases.truth.sum(axis=1) == 1).all() and cases.truth[:, 1].sum() == 3
