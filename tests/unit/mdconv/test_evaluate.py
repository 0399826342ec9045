"""Evaluation: areas, thresholds, folders in ChestX-ray14's layout, and the shipped checkpoint's own claim."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from build_engine.export import export_onnx
from edge.errors import MachineError, UsageError
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.data.cases import read_all
from mdconv.data.labelled_folder import labelled_folder
from mdconv.data.phantom import TEST_SEEDS, render
from mdconv.data.phantom.folder import write_folder
from mdconv.data.phantom.on_demand import PhantomsOnDemand, phantoms_on_demand
from mdconv.data.phantom.sets import phantom_cases
from mdconv.demo_recipe import predict
from mdconv.evaluate import main
from mdconv.evaluation import Judged, describe, difference, judge
from mdconv.metrics import area_per_finding, patient_weights, resampled_areas
from mdconv.networks import build, normalise
from mdconv.predictors import Prediction
from mdconv.weights import DEMO_CHECKPOINT
from tests.unit.build_engine.random_networks import randomise


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Path:
    """An untrained network of 64 pixels."""
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    thresholds = dict.fromkeys(CHESTXRAY14, 0.5)
    network: Any = build("mobilenet_v2")
    randomise(network)
    network.classifier.weight.data *= 0.02  # no probability is so near 0 or 1 that two images tie
    save_checkpoint(Checkpoint(network, "mobilenet_v2", {}, CHESTXRAY14, 64, thresholds, "for a test"), path)
    return path


def test_predictions_do_not_depend_on_the_batch(small_checkpoint: Path) -> None:
    model = load_checkpoint(small_checkpoint).model
    images = read_all(phantoms_on_demand(range(19)), 64)
    together = predict(model, images)
    alone = np.concatenate([predict(model, images[i : i + 1]) for i in range(19)])
    assert together.shape == (19, 14) and np.allclose(together, alone, atol=1e-5)


def test_a_folder_is_read_like_its_phantoms(tmp_path: Path) -> None:
    write_folder(tmp_path, 6, 500, 64)
    cases = labelled_folder(tmp_path, tmp_path / "labels.csv")
    for index in range(6):
        phantom = render(500 + index, 64)
        assert np.array_equal(cases.read(index, 64), phantom.image) and tuple(cases.truth[index]) == phantom.labels
    assert cases.patients == tuple(f"phantom-{seed:07d}" for seed in range(500, 506))


def test_rows_without_their_image_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, 500, 64)
    (tmp_path / "phantom-0000501.png").unlink()
    assert len(labelled_folder(tmp_path, tmp_path / "labels.csv")) == 2


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
        labelled_folder(tmp_path, tmp_path / "labels.csv")


def test_the_command_reports_a_folder_and_phantoms(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "set", 24, TEST_SEEDS.start, 64)
    assert main(["--checkpoint", str(small_checkpoint), "--images", str(tmp_path / "set"), "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)
    assert main(["--checkpoint", str(small_checkpoint), "--phantoms", "24", "--json"]) == 0
    phantoms = json.loads(capsys.readouterr().out)
    assert folder["models"] == phantoms["models"] and folder["positive"] == phantoms["positive"]
    assert folder["images"] == folder["patients"] == 24
    assert phantoms["notice"] == "synthetic phantoms, research use only; for a test"
    (model,) = folder["models"]
    assert model["mean_auc"] == pytest.approx(np.mean(list(model["auc"].values())))
    checkpoint = load_checkpoint(small_checkpoint)
    cases = phantoms_on_demand(TEST_SEEDS[:24])
    images, labels = read_all(cases, 64), cases.truth
    with torch.inference_mode():
        logits = checkpoint.model(normalise(torch.from_numpy(images))).numpy()
    assert model["auc"] == pytest.approx(area_per_finding(labels, logits))
    for label, area in model["auc"].items():
        low, high = model["auc_interval"][label]
        assert low <= area <= high
    assert main(["--checkpoint", str(small_checkpoint), "--phantoms", "24"]) == 0
    assert "for a test" in capsys.readouterr().out


def test_two_models_side_by_side_and_what_is_written(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint and its own ONNX file: the same figures by the same code, and no difference between them."""
    export_onnx(load_checkpoint(small_checkpoint), tmp_path / "model.onnx")
    arguments = ["--model", str(small_checkpoint), "--model", str(tmp_path / "model.onnx"), "--phantoms", "30"]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    checkpoint, exported = shown["models"]
    assert (checkpoint["kind"], exported["kind"]) == ("checkpoint", "onnx")
    assert exported["auc"] == pytest.approx(checkpoint["auc"], abs=0.02), "rounding may exchange two images"
    (found,) = shown["differences"]
    assert found["mean_auc_difference"] == pytest.approx(0, abs=0.01)
    assert found["interval"] == pytest.approx([0, 0], abs=0.01)

    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == shown
    with (tmp_path / "out" / "model-2-predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"phantom-{seed:07d}" for seed in TEST_SEEDS[:30]]
    truth = np.array([[row[f"true {label}"] == "1" for label in CHESTXRAY14] for row in rows])
    scores = np.array([[float(row[label]) for label in CHESTXRAY14] for row in rows], np.float32)
    assert area_per_finding(truth, scores) == pytest.approx(exported["auc"], abs=0.02), "six digits may tie"
    drawn = (tmp_path / "out" / "model-1-roc.svg").read_text()
    for text in ("synthetic phantoms, research use only", "Pneumothorax", "sensitivity", "small.safetensors"):
        assert text in drawn
    picture = cv2.imread(str(tmp_path / "out" / "model-1-roc.png"))
    assert picture is not None and picture.shape[0] > 500

    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "mean AUC of model 2 less that of model 1: " in text


def two_labels(truth: np.ndarray) -> PhantomsOnDemand:
    cases = replace(phantoms_on_demand(range(len(truth))), labels=("Normal", "Pneumonia"), exclusive=True)
    return replace(cases, truth=truth, patients=tuple("aabcd"))


def test_exclusive_labels_are_counted_by_the_likeliest_too() -> None:
    """Normal or pneumonia: the figures of Table 8, counted by hand from probabilities that are known."""
    truth = np.eye(2, dtype=bool)[[0, 0, 0, 1, 1]]
    chance = np.array([0.2, 0.4, 0.7, 0.6, 0.9])  # of pneumonia
    cases = two_labels(truth)
    log_odds = np.log(chance / (1 - chance)).astype(np.float32)
    logits = np.stack([-log_odds, log_odds], axis=1)
    areas = resampled_areas(truth, logits, cases.patients)
    thresholds = {"Normal": 0.2, "Pneumonia": 0.8}
    figures = describe(Judged({"file": "x"}, 32, thresholds, "", logits, areas), cases)
    expected = {"sensitivity": 1 / 2, "specificity": 1, "accuracy": 4 / 5, "threshold": 0.8}
    assert figures["operating_points"]["Pneumonia"] == pytest.approx(expected)
    expected = {"sensitivity": 1, "specificity": 2 / 3, "accuracy": 4 / 5}
    assert figures["likeliest"]["Pneumonia"] == pytest.approx(expected)
    expected = {"sensitivity": 2 / 3, "specificity": 1, "accuracy": 4 / 5}
    assert figures["likeliest"]["Normal"] == pytest.approx(expected)
    assert figures["auc"]["Pneumonia"] == figures["auc"]["Normal"] == pytest.approx(5 / 6)


class Saying:
    """A model that says `logits` (N, L) of N images, in their order."""

    input_size, notice = 32, "for a test"

    def __init__(self, labels: tuple[str, ...], logits: np.ndarray) -> None:
        self.labels, self.logits, self.said = labels, logits.astype(np.float32), 0
        self.thresholds, self.identity = dict.fromkeys(labels, 0.5), {"file": "said"}

    def predict(self, images: np.ndarray) -> Prediction:
        self.said += len(images)
        return Prediction(self.logits[self.said - len(images) : self.said], None)

    def __enter__(self) -> Saying:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to free."""


def test_labels_are_matched_by_name() -> None:
    cases = phantoms_on_demand(TEST_SEEDS[:40])
    logits = np.random.default_rng(0).normal(size=(40, 14)) + 2 * cases.truth
    straight = describe(judge(Saying(CHESTXRAY14, logits), cases, draws=20), cases)
    turned = describe(judge(Saying(CHESTXRAY14[::-1], logits[:, ::-1]), cases, draws=20), cases)
    assert straight == turned
    assert straight["auc"] == pytest.approx(area_per_finding(cases.truth, logits))


def test_areas_are_of_logits_that_no_probability_can_tell_apart() -> None:
    logits = np.array([[50, -50], [60, -60], [70, -70], [80, -80], [90, -90]])
    truth = np.eye(2, dtype=bool)[[1, 0, 1, 0, 0]]
    assert judge(Saying(("Normal", "Pneumonia"), logits), two_labels(truth), draws=5).areas.all == pytest.approx(5 / 6)


def test_an_output_that_is_no_number_is_refused_by_its_image() -> None:
    cases = phantoms_on_demand(TEST_SEEDS[:20])
    logits = np.zeros((20, 14))
    logits[17, 3] = np.nan
    with pytest.raises(MachineError, match="said gives phantom-2000017 no finite number"):
        judge(Saying(CHESTXRAY14, logits), cases)


def test_the_difference_is_paired() -> None:
    """Against the means of explicit resamples: much narrower than two intervals of their own would have it."""
    cases = replace(phantoms_on_demand(TEST_SEEDS[:60]), patients=tuple(str(i // 2) for i in range(60)))
    rng = np.random.default_rng(1)
    one = rng.normal(size=(60, 14)) + cases.truth
    other = one + 0.2 * rng.normal(size=(60, 14))
    first, second = (judge(Saying(CHESTXRAY14, logits), cases, draws=50, seed=3) for logits in (one, other))
    found = difference(second, first)
    gains = []
    for row in patient_weights(cases.patients, 50, np.random.default_rng(3)):
        drawn = np.repeat(np.arange(60), row)
        means = [
            np.mean(list(area_per_finding(cases.truth[drawn], logits[drawn].astype(np.float32)).values()))
            for logits in (one, other)
        ]
        gains.append(means[1] - means[0])
    assert found["interval"] == pytest.approx(np.percentile(gains, [2.5, 97.5]))
    low, high = describe(second, cases)["mean_auc_interval"]
    assert found["interval"][1] - found["interval"][0] < (high - low) / 2


def test_phantoms_on_demand_are_those_of_the_set() -> None:
    ready, drawn = phantom_cases(TEST_SEEDS[:5], 48), phantoms_on_demand(TEST_SEEDS[:5])
    assert np.array_equal(read_all(drawn, 48), ready.images) and np.array_equal(drawn.truth, ready.truth)
    assert (drawn.name, drawn.ids, drawn.notice) == (ready.name, ready.ids, ready.notice)
    chosen = drawn.select([3, 1])
    assert chosen.ids == (drawn.ids[3], drawn.ids[1]) and np.array_equal(chosen.read(0, 48), drawn.read(3, 48))
    assert np.array_equal(chosen.truth, drawn.truth[[3, 1]])
    assert chosen.boxes(1, 48) == ready.boxes(1, 48)


@pytest.fixture
def pneumonia_checkpoint(tmp_path: Path) -> Path:
    """An untrained network of 64 pixels, normal or pneumonia."""
    torch.manual_seed(0)
    path = tmp_path / "two.safetensors"
    labels = ("Normal", "Pneumonia")
    network = build("mobilenet_v2", labels=2)
    randomise(network)
    thresholds = dict.fromkeys(labels, 0.5)
    save_checkpoint(
        Checkpoint(network, "mobilenet_v2", {"labels": 2}, labels, 64, thresholds, "for a test", exclusive=True), path
    )
    return path


def test_the_command_on_two_labels(
    pneumonia_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ChestX-ray2017's layout; two labels, of which 0.5 is the threshold: as the likeliest one decides."""
    for number in range(12):
        sick = number % 3 == 0
        name = f"person{number}_virus_1.jpeg" if sick else f"IM-{number:04d}-0001.jpeg"
        folder = tmp_path / "kermany" / "test" / ("PNEUMONIA" if sick else "NORMAL")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), render(number, 64).image)
    (tmp_path / "kermany" / "train").mkdir()
    arguments = ["--model", str(pneumonia_checkpoint), "--chestxray2017", str(tmp_path / "kermany")]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 12 and result["positive"] == {"Normal": 8, "Pneumonia": 4}
    assert result["notice"] == "ChestX-ray2017 (Kermany et al., Cell 2018), research use only; for a test"
    (model,) = result["models"]
    for label, other in (("Normal", "Pneumonia"), ("Pneumonia", "Normal")):
        point = model["likeliest"][label]
        assert point == {key: model["operating_points"][label][key] for key in point}
        assert point["sensitivity"] == model["likeliest"][other]["specificity"]
    assert model["auc"]["Normal"] == model["auc"]["Pneumonia"] == pytest.approx(model["mean_auc"])
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "likeliest label" in text and f"Normal{'':23}  {model['likeliest']['Normal']['sensitivity']:.3f}" in text
    assert main([*arguments, "--task", "kind"]) == 2
    assert "reports Normal, Pneumonia; chestxray2017 kind test has Bacterial, Viral" in capsys.readouterr().err


def test_a_model_of_other_labels_is_refused(pneumonia_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pneumonia_checkpoint
    assert main(["--model", str(path), "--phantoms", "4"]) == 2
    assert "two.safetensors reports Normal, Pneumonia" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--phantoms", "0"],
        ["--phantoms", "1"],
        ["--images", "nowhere"],
        ["--chestxray14", "nowhere"],
        ["--chestxray2017", "nowhere", "--task", "kind"],
        ["--phantoms", "4", "--labels", "labels.csv"],
        ["--phantoms", "4", "--task", "kind"],
        ["--images", "nowhere", "--split", "test"],
        ["--phantoms", "4", "--skip-missing"],
    ],
)
def test_wrong_use_is_one_line(wrong: list[str], small_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(small_checkpoint), *wrong]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and all(line.startswith("evaluating ") for line in progress)


def test_the_card_says_what_the_weights_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Its mean AUC, from 1,000 held-out phantoms, lies in the interval that 100 of them give."""
    claimed = load_checkpoint(DEMO_CHECKPOINT).card["mean_auc"]
    assert 0.80 <= claimed <= 0.97
    assert main(["--phantoms", "100", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["file"] == DEMO_CHECKPOINT.name and model["input_size"] == 448
    assert len(model["auc"]) == 14
    low, high = model["mean_auc_interval"]
    assert low < claimed < high and high - low < 0.08


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
