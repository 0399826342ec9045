"""Thresholds chosen on a folder of labelled images, against counting."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from build_engine.export import export_onnx
from build_engine.thresholds import check_threshold_options, choose_thresholds, parse_rule
from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from edge.preprocess import Preprocess
from edge.results import probabilities
from mdconv.checkpoint import Checkpoint, load_checkpoint
from mdconv.weights import DEMO_CHECKPOINT

SIZE, IMAGES = 32, 30


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return replace(load_checkpoint(DEMO_CHECKPOINT), thresholds=dict.fromkeys(CHESTXRAY14, 0.123))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_onnx(checkpoint, path, 1, SIZE)
    return path


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    found = np.random.default_rng(3).random((IMAGES, len(CHESTXRAY14))) < 0.4
    found[:, 2], found[:, 5] = False, True
    found[:2, [i for i in range(14) if i not in (2, 5)]] = [[True], [False]]
    return found


@pytest.fixture(scope="module")
def images(truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(4).integers(0, 256, (IMAGES, SIZE, SIZE), np.uint8)
    with (directory / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Image Index", "Finding Labels"])
        for number, row in enumerate(truth):
            cv2.imwrite(str(directory / f"{number}.png"), pixels[number])
            table.writerow([f"{number}.png", "|".join(np.array(CHESTXRAY14)[row]) or "No Finding"])
    return directory


def chances_of(model: Path, images: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(model)
    read = [cv2.imread(str(images / f"{i}.png"), cv2.IMREAD_GRAYSCALE)[None, None] for i in range(IMAGES)]
    return probabilities(np.concatenate([session.run(["logits"], {"image": image})[0] for image in read]))


@pytest.mark.parametrize("rule", ["youden", "sensitivity=0.9", "sensitivity=1"])
def test_each_finding_is_at_its_operating_point(
    rule: str, model: Path, images: Path, truth: np.ndarray, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = choose_thresholds(model, rule, images, Preprocess(SIZE), checkpoint)
    chances = chances_of(model, images)
    kept = [CHESTXRAY14[2], CHESTXRAY14[5]]
    for i, label in enumerate(CHESTXRAY14):
        present, scores, cut = truth[:, i], chances[:, i], chosen.thresholds[label]
        if label in kept:
            assert cut == 0.123
            continue
        cuts = [*np.unique(scores), 2.0]
        rates = {c: ((scores[present] >= c).mean(), (scores[~present] < c).mean()) for c in (*cuts, cut)}
        if rule == "youden":
            assert sum(rates[cut]) == pytest.approx(max(map(sum, rates.values())))
        else:
            wanted = float(rule.split("=")[1])
            assert rates[cut][0] >= wanted
            assert rates[cut][1] == max(specificity for reached, specificity in rates.values() if reached >= wanted)
    assert chosen.account["rule"] == rule and chosen.account["images"] == IMAGES
    assert chosen.account["kept_from_checkpoint"] == kept
    assert chosen.account["positives"] == {name: int(truth[:, i].sum()) for i, name in enumerate(CHESTXRAY14)}
    assert f"all images have or lack {', '.join(kept)}: the checkpoint's threshold is kept" in capsys.readouterr().err


def test_images_that_tell_nothing_are_refused(
    model: Path, images: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((SIZE, SIZE), np.uint8))
    (tmp_path / "labels.csv").write_text("Image Index,Finding Labels\na.png,Mass\n")
    with pytest.raises(UsageError, match="no finding that some of its images have and others lack"):
        choose_thresholds(model, "youden", tmp_path, Preprocess(SIZE), checkpoint)
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(UsageError, match=r"a\.png: .*--threshold-data"):
        choose_thresholds(model, "youden", tmp_path, Preprocess(SIZE), checkpoint)


def test_rules() -> None:
    assert parse_rule("youden") == "youden"
    assert parse_rule("sensitivity=0.85") == 0.85
    for text in ("", "sensitivity", "sensitivity=0", "sensitivity=1.1", "sensitivity=nan", "specificity=0.9", "0.9"):
        with pytest.raises(ValueError):
            parse_rule(text)


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    check_threshold_options(None, None, tmp_path)
    check_threshold_options("youden", tmp_path, tmp_path / "other")
    for rule, directory, gate_data, said in (
        ("youden", None, None, "go together"),
        (None, tmp_path, None, "go together"),
        ("youden", tmp_path / "missing", None, "is no folder"),
        ("youden", tmp_path, tmp_path / "." / "", "are one folder"),
    ):
        with pytest.raises(UsageError, match=said):
            check_threshold_options(rule, directory, gate_data)
