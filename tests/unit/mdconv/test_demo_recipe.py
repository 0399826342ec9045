"""The demo recipe: the schedule, the batches, and a whole run in small that learns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.labels import CHESTXRAY14
from mdconv import demo_recipe as training
from mdconv.checkpoint import load_checkpoint
from mdconv.data.phantom import render
from mdconv.demo_recipe import Part, Recipe, Stage, learning_rates, make_batches, resized, run
from mdconv.networks import normalise


def recipe_of(*parts: tuple[Stage, ...], warm_up_steps: int, location_weight: float = 0.0) -> Recipe:
    """The parts, of which the last also learns where lesions are."""
    weights = [0.0] * (len(parts) - 1) + [location_weight]
    stages = tuple(Part(part, 1.5e-3, warm_up_steps, weight) for part, weight in zip(parts, weights))
    return Recipe(stages, md_stages=("layer2",))


TINY = recipe_of((Stage(size=48, images=64, epochs=2, batch=16, render_size=96),), warm_up_steps=2)
TWO_PARTS = recipe_of(
    (Stage(size=64, images=32, epochs=1, batch=8, render_size=64),),
    (Stage(size=96, images=32, epochs=2, batch=8, render_size=96, first=32),),
    warm_up_steps=2,
    location_weight=0.3,
)


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the demo network, and few images to validate on, where a test is about the loop."""
    monkeypatch.setattr(training, "NETWORK", "shufflenet_v2")
    monkeypatch.setattr(training, "CONFIG", {"labels": 14, "width": 0.5})
    monkeypatch.setattr(training, "VALIDATION_COUNT", 16)
    monkeypatch.setattr(training, "INPUT_SIZE", 48)


@pytest.mark.parametrize("part", Recipe().parts)
def test_the_learning_rate_warms_up_and_ends_near_zero(part: Part) -> None:
    rates = learning_rates(part)
    assert len(rates) == sum(stage.epochs * (stage.images // stage.batch) for stage in part.stages)
    assert 0 < rates[0] <= part.learning_rate / part.warm_up_steps
    assert max(rates) <= part.learning_rate and max(rates) > 0.9 * part.learning_rate
    after = rates[part.warm_up_steps :]
    assert all(earlier >= later for earlier, later in itertools.pairwise(after))
    assert rates[-1] < 1e-3 * part.learning_rate


def test_the_cosine_runs_over_pixels() -> None:
    """Half of the pixels done means half of the peak, however few the steps."""
    part = Part(
        stages=(
            Stage(size=100, images=1600, epochs=1, batch=16, render_size=100),
            Stage(size=200, images=400, epochs=1, batch=16, render_size=200),
        ),
        learning_rate=1.5e-3,
        warm_up_steps=1,
    )
    rates = learning_rates(part)
    assert len(rates) == 125
    assert rates[100] == pytest.approx(part.learning_rate / 2)
    assert rates[50] == pytest.approx(part.learning_rate * 0.5 * (1 + math.cos(math.pi / 4)))


def test_no_phantom_is_seen_by_two_parts() -> None:
    """What the second part learns of boxes must not lean on images that the first knows by heart."""
    first, second = ({stage.first for stage in part.stages} for part in Recipe().parts)
    assert min(second) >= max(first) + max(stage.images for stage in Recipe().parts[0].stages)


def test_an_epoch_shows_each_image_once_some_mirrored() -> None:
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] + np.array([0, 100], np.uint8).reshape(1, 1, 1, 2)
    labels = np.zeros((40, 14), bool)
    labels[:, 2] = np.arange(40) % 2 == 0
    seen, mirrored = [], 0
    for pixels, truth, indices, turned in make_batches(images, labels, 8, np.random.default_rng(0)):
        assert pixels.shape == (8, 1, 1, 2) and truth.shape == (8, 14) and truth.dtype == torch.float32
        numbers = pixels.amin(dim=(1, 2, 3))
        assert torch.equal(truth[:, 2], (numbers % 2 == 0).float())  # images and labels stay together
        assert numbers.tolist() == indices.tolist()
        assert ((pixels[:, 0, 0, 0] > pixels[:, 0, 0, 1]).numpy() == turned).all()
        mirrored += int(turned.sum())
        seen += numbers.tolist()
    assert sorted(seen) == list(range(40))
    assert 8 < mirrored < 32


def test_an_incomplete_batch_is_left_out() -> None:
    images, labels = np.zeros((21, 1, 4, 4), np.uint8), np.zeros((21, 14), bool)
    assert len(list(make_batches(images, labels, 8, np.random.default_rng(0)))) == 2


def test_resizing_averages_areas() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 24, 24), np.uint8)
    small = resized(images, 12)
    expected = images.reshape(3, 1, 12, 2, 12, 2).astype(float).mean((3, 5))
    assert np.abs(small - expected).max() <= 0.5
    assert resized(images, 24) is images


def test_a_small_run_learns_and_writes_all_that_gives_weights_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "VALIDATION_COUNT", 120)
    monkeypatch.setattr(training, "TEST_COUNT", 120)
    monkeypatch.setattr(training, "INPUT_SIZE", 48)
    output = tmp_path / "tiny.safetensors"
    run(TINY, output, tmp_path / "cache", "the command")
    checkpoint = load_checkpoint(output)
    assert checkpoint.labels == CHESTXRAY14 and checkpoint.notice == "synthetic phantoms, research use only"
    card = checkpoint.card
    assert card["recipe"]["parts"][0]["stages"][0]["images"] == 64 and card["recipe"]["seed"] == 0
    assert card["parts"][0]["precision"] in ("float32", "bfloat16")
    assert card["data"]["test_seeds"] == [2_000_000, 120]
    assert card["mean_auc"] == pytest.approx(np.mean(list(card["auc"].values())), abs=1e-3)
    assert "made by: `the command`" in (tmp_path / "CARD.md").read_text("utf-8")
    assert set(checkpoint.thresholds) == set(CHESTXRAY14)
    printed = capsys.readouterr().out
    assert "validation mean AUC" in printed and "research use only" in printed


@pytest.mark.usefixtures("small_network")
def test_training_fits_what_it_sees(tmp_path: Path) -> None:
    """It separates the findings of the images that it trained on."""
    stage = Stage(size=48, images=24, epochs=25, batch=8, render_size=48)
    model = training.train(recipe_of((stage,), warm_up_steps=4), tmp_path).model
    assert not model.training
    images, labels = training.phantom_set(training.TRAIN_SEEDS[:24], 48, tmp_path)
    areas = training.area_per_finding(labels, training.predict(model, images))
    assert np.mean(list(areas.values())) > 0.8


@pytest.mark.usefixtures("small_network")
def test_the_location_loss_moves_the_maps_into_the_boxes(tmp_path: Path) -> None:
    """Of the images that it trained on: an even map has as much in its boxes as they cover, a taught one more."""
    shares = []
    for weight in (0.0, 1.0):
        stage = Stage(size=96, images=24, epochs=20, batch=8, render_size=96, first=5)
        recipe = recipe_of((stage,), warm_up_steps=4, location_weight=weight)
        model = training.train(recipe, tmp_path / str(weight)).model
        images, _ = training.phantom_set(training.TRAIN_SEEDS[5:29], 96, tmp_path / str(weight))
        with torch.inference_mode():
            features = model.features(normalise(torch.from_numpy(np.array(images))))
            cam = torch.einsum("nchw,lc->nlhw", features, model.classifier.weight).numpy()
        inside = []
        for seed, maps in zip(training.TRAIN_SEEDS[5:29], cam):
            for finding, x, y, width, height in render(seed, 96).boxes:
                row, column = np.unravel_index(maps[CHESTXRAY14.index(finding)].argmax(), (3, 3))
                centre = (32 * column + 16, 32 * row + 16)
                inside.append(x <= centre[0] < x + width and y <= centre[1] < y + height)
        assert len(inside) > 10
        shares.append(np.mean(inside))
    assert shares[1] > shares[0] + 0.2


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("recipe", [TINY, TWO_PARTS])
def test_the_same_seed_trains_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    first, second = (training.train(recipe, tmp_path / name).model.state_dict() for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("small_network")
def test_a_part_that_was_trained_is_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After an interruption in the second part: the same weights, and the first part's record."""
    whole = training.train(TWO_PARTS, tmp_path)
    assert "stage 64 px" in capsys.readouterr().out
    resumed = training.train(TWO_PARTS, tmp_path)
    printed = capsys.readouterr().out
    assert "part 1: taken from" in printed and "stage 64 px" not in printed
    assert resumed.parts[0] == whole.parts[0] and len(resumed.parts) == 2
    before, after = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    training.train(replace(TWO_PARTS, seed=1), tmp_path)
    assert "stage 64 px" in capsys.readouterr().out, "another recipe takes nothing up"
