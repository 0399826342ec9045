"""The demo recipe: the schedule, the batches, and a whole run in small that learns."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.labels import CHESTXRAY14
from mdconv import demo_recipe as training
from mdconv.checkpoint import load_checkpoint
from mdconv.demo_recipe import Recipe, Stage, learning_rates, make_batches, resized, run

SMALL_NETWORK = ("shufflenet_v2", {"labels": 14, "md_stages": ["layer2"], "width": 0.5})
"""In place of the demo network, where a test is about the loop."""

TINY = Recipe(stages=(Stage(size=48, images=64, epochs=2, batch=16, render_size=96),), warm_up_steps=2)


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    recipe = Recipe()
    rates = learning_rates(recipe)
    assert len(rates) == sum(stage.epochs * (stage.images // stage.batch) for stage in recipe.stages)
    assert 0 < rates[0] < 0.02 * recipe.learning_rate
    assert max(rates) <= recipe.learning_rate and max(rates) > 0.9 * recipe.learning_rate
    after = rates[recipe.warm_up_steps :]
    assert all(earlier >= later for earlier, later in itertools.pairwise(after))
    assert rates[-1] < 1e-3 * recipe.learning_rate


def test_the_cosine_runs_over_pixels() -> None:
    """Half of the pixels done means half of the peak, however few the steps."""
    recipe = Recipe(
        stages=(
            Stage(size=100, images=1600, epochs=1, batch=16, render_size=100),
            Stage(size=200, images=400, epochs=1, batch=16, render_size=200),
        ),
        warm_up_steps=1,
    )
    rates = learning_rates(recipe)
    assert len(rates) == 125
    assert rates[100] == pytest.approx(recipe.learning_rate / 2)
    assert rates[50] == pytest.approx(recipe.learning_rate * 0.5 * (1 + math.cos(math.pi / 4)))


def test_an_epoch_shows_each_image_once_some_mirrored() -> None:
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] + np.array([0, 100], np.uint8).reshape(1, 1, 1, 2)
    labels = np.zeros((40, 14), bool)
    labels[:, 2] = np.arange(40) % 2 == 0
    seen, mirrored = [], 0
    for pixels, truth in make_batches(images, labels, 8, np.random.default_rng(0)):
        assert pixels.shape == (8, 1, 1, 2) and truth.shape == (8, 14) and truth.dtype == torch.float32
        numbers = pixels.amin(dim=(1, 2, 3))
        assert torch.equal(truth[:, 2], (numbers % 2 == 0).float())  # images and labels stay together
        mirrored += int((pixels[:, 0, 0, 0] > pixels[:, 0, 0, 1]).sum())
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
    run(TINY, output, tmp_path / "cache")
    checkpoint = load_checkpoint(output)
    assert checkpoint.labels == CHESTXRAY14 and checkpoint.notice == "synthetic phantoms, research use only"
    card = checkpoint.card
    assert card["recipe"]["stages"][0]["images"] == 64 and card["recipe"]["seed"] == 0
    assert card["data"]["train_seeds"] == [0, 64] and card["data"]["test_seeds"] == [2_000_000, 120]
    assert card["mean_auc"] == pytest.approx(np.mean(list(card["auc"].values())), abs=1e-3)
    assert card["command"] in (tmp_path / "CARD.md").read_text("utf-8")
    assert set(checkpoint.thresholds) == set(CHESTXRAY14)
    printed = capsys.readouterr().out
    assert "validation mean AUC" in printed and "research use only" in printed


def test_training_fits_what_it_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It separates the findings of the images that it trained on."""
    monkeypatch.setattr(training, "NETWORK", SMALL_NETWORK[0])
    monkeypatch.setattr(training, "CONFIG", SMALL_NETWORK[1])
    monkeypatch.setattr(training, "VALIDATION_COUNT", 16)
    monkeypatch.setattr(training, "INPUT_SIZE", 48)
    recipe = Recipe(stages=(Stage(size=48, images=24, epochs=25, batch=8, render_size=48),), warm_up_steps=4)
    model = training.train(recipe, tmp_path)
    assert not model.training
    images, labels = training.phantom_set(training.TRAIN_SEEDS[:24], 48, tmp_path)
    areas = training.area_per_finding(labels, training.predict(model, images))
    assert np.mean(list(areas.values())) > 0.8


def test_the_same_seed_trains_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "NETWORK", SMALL_NETWORK[0])
    monkeypatch.setattr(training, "CONFIG", SMALL_NETWORK[1])
    monkeypatch.setattr(training, "VALIDATION_COUNT", 16)
    monkeypatch.setattr(training, "INPUT_SIZE", 48)
    first, second = (training.train(TINY, tmp_path).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
