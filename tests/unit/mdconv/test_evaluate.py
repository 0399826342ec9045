"""Evaluation: areas, thresholds, folders in ChestX-ray14's layout, and the shipped checkpoint's own claim."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.data.phantom import TEST_SEEDS, render
from mdconv.data.phantom.folder import write_folder
from mdconv.data.phantom.sets import phantom_set
from mdconv.evaluate import area_per_finding, folder_set, main, predict, youden_thresholds
from mdconv.networks import build
from mdconv.weights import DEMO_CHECKPOINT


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Path:
    """An untrained network of 64 pixels."""
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    thresholds = dict.fromkeys(CHESTXRAY14, 0.5)
    save_checkpoint(
        Checkpoint(build("mobilenet_v2"), "mobilenet_v2", {}, CHESTXRAY14, 64, thresholds, "for a test"), path
    )
    return path


def brute_force_youden(truth: np.ndarray, scores: np.ndarray) -> float:
    """The best sensitivity + specificity over all cuts, by counting."""
    cuts = [*np.unique(scores), np.inf]
    return max((scores[truth] >= cut).mean() + (scores[~truth] < cut).mean() for cut in cuts)


@pytest.mark.parametrize("seed", range(5))
def test_youden_thresholds_reach_the_best_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.random((60, 14)) < 0.3
    labels[:2] = [[True], [False]]
    scores = (0.2 * labels + rng.random((60, 14)).round(2) * 0.8).astype(np.float32)
    for index, (name, cut) in enumerate(youden_thresholds(labels, scores).items()):
        truth, values = labels[:, index], scores[:, index]
        reached = (values[truth] >= cut).mean() + (values[~truth] < cut).mean()
        assert name == CHESTXRAY14[index] and 0 <= cut <= 1
        assert reached == pytest.approx(brute_force_youden(truth, values))


def test_a_threshold_needs_both_kinds_of_case() -> None:
    labels = np.ones((5, 14), bool)
    with pytest.raises(ValueError, match="Atelectasis"):
        youden_thresholds(labels, np.zeros((5, 14), np.float32))


def test_findings_without_both_kinds_have_no_area() -> None:
    labels = np.zeros((4, 14), bool)
    labels[:2, 3] = True
    assert area_per_finding(labels, np.tile(np.array([[0.9], [0.8], [0.1], [0.2]], np.float32), 14)) == {
        "Infiltration": 1.0
    }


def test_predictions_do_not_depend_on_the_batch(small_checkpoint: Path) -> None:
    model = load_checkpoint(small_checkpoint).model
    images, _ = phantom_set(range(19), 64)
    together = predict(model, images)
    alone = np.concatenate([predict(model, images[i : i + 1]) for i in range(19)])
    assert together.shape == (19, 14) and np.allclose(together, alone, atol=1e-5)


def test_a_folder_is_read_like_its_phantoms(tmp_path: Path) -> None:
    write_folder(tmp_path, 6, 500, 64)
    images, labels = folder_set(tmp_path, tmp_path / "labels.csv", 64)
    for index in range(6):
        phantom = render(500 + index, 64)
        assert np.array_equal(images[index, 0], phantom.image) and tuple(labels[index]) == phantom.labels


def test_rows_without_their_image_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, 500, 64)
    (tmp_path / "phantom-0000501.png").unlink()
    images, _ = folder_set(tmp_path, tmp_path / "labels.csv", 64)
    assert len(images) == 2


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (None, "cannot read the labels"),
        ("a,b\n1,2\n", "layout"),
        ("Image Index,Finding Labels\nother.png,Mass\n", "none of the images"),
        ("Image Index,Finding Labels\nx.png,Cold\n", "'Cold'"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, table: str | None, reason: str) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), render(1, 64).image)
    if table is not None:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(UsageError, match=reason):
        folder_set(tmp_path, tmp_path / "labels.csv", 64)


def test_the_command_reports_a_folder_and_phantoms(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "set", 24, TEST_SEEDS.start, 64)
    assert main(["--checkpoint", str(small_checkpoint), "--images", str(tmp_path / "set"), "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)
    assert main(["--checkpoint", str(small_checkpoint), "--phantoms", "24", "--json"]) == 0
    phantoms = json.loads(capsys.readouterr().out)
    assert folder == phantoms
    assert folder["images"] == 24 and folder["notice"] == "for a test"
    assert folder["mean_auc"] == pytest.approx(np.mean(list(folder["auc"].values())))
    assert main(["--checkpoint", str(small_checkpoint), "--phantoms", "24"]) == 0
    assert "for a test" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--phantoms", "0"], ["--phantoms", "1"], ["--images", "nowhere"]])
def test_wrong_use_is_one_line(wrong: list[str], small_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(small_checkpoint), *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_the_card_says_what_the_weights_do() -> None:
    """Mean AUC on 200 held-out phantoms, within the statistical tolerance of so few, and in the promised band."""
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    claimed = checkpoint.card["mean_auc"]
    assert 0.80 <= claimed <= 0.97
    images, labels = phantom_set(TEST_SEEDS[:200], checkpoint.input_size)
    areas = area_per_finding(labels, predict(checkpoint.model, images))
    assert len(areas) == 14
    # One AUC from 20 positives has a standard error of about 0.05, their mean over 14 findings about 0.014.
    assert abs(np.mean(list(areas.values())) - claimed) < 0.045


def test_the_shipped_checkpoint_and_its_card_agree() -> None:
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    assert checkpoint.notice == checkpoint.card["notice"] == "synthetic phantoms, research use only"
    assert checkpoint.labels == CHESTXRAY14
    assert set(CHESTXRAY14) == set(checkpoint.card["auc"]) == set(checkpoint.thresholds)
    assert checkpoint.input_size == 448
    assert all(0 < threshold < 1 for threshold in checkpoint.thresholds.values())
    card = DEMO_CHECKPOINT.with_name("CARD.md").read_text("utf-8")
    assert checkpoint.notice in card.lower() and checkpoint.card["command"] in card and checkpoint.sha256 in card
    rows = {
        cells[0]: cells
        for cells in (line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| "))
    }
    for label in CHESTXRAY14:
        assert float(rows[label][1]) == pytest.approx(checkpoint.card["auc"][label], abs=5e-4)
        assert float(rows[label][2]) == pytest.approx(checkpoint.thresholds[label], abs=5e-4)
    assert float(rows["mean"][1]) == pytest.approx(checkpoint.card["mean_auc"], abs=5e-4)
