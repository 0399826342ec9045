"""The command on real models and images: what it draws, scores, writes and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from build_engine.export import export_onnx
from edge.heatmap import overlay
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.data.cases import Box
from mdconv.data.phantom import NOTICE, TEST_SEEDS, render
from mdconv.evidence import open_explainer
from mdconv.explain import main
from mdconv.explain_picture import OWN_COLOUR, TRUE_COLOUR, caption_height, draw
from mdconv.localisation import Located, locate
from mdconv.localisation_table import as_text, summarise
from mdconv.networks import build

SIZE = 64


def write_checkpoint(path: Path, network: str, labels: tuple[str, ...] = CHESTXRAY14) -> Path:
    torch.manual_seed(0)
    model = build(network, labels=len(labels))
    if isinstance(model.classifier, torch.nn.Linear):
        torch.nn.init.normal_(model.classifier.weight)  # probabilities that differ
    config = {"labels": len(labels)}
    thresholds = dict.fromkeys(labels, 0.5)
    save_checkpoint(Checkpoint(model, network, config, labels, SIZE, thresholds, "random weights, for tests"), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("linear") / "linear.safetensors", "mobilenet_v2")


@pytest.fixture(scope="module")
def hidden_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without class activation maps."""
    return write_checkpoint(tmp_path_factory.mktemp("hidden") / "hidden.safetensors", "mobilenet_v3")


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    return render(TEST_SEEDS[0], SIZE).image


def test_every_form_of_a_model_has_the_same_evidence(checkpoint: Path, chest: np.ndarray, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(checkpoint), tmp_path / "model.onnx")
    found = []
    for path, method in [(checkpoint, "cam"), (tmp_path / "model.onnx", "cam"), (checkpoint, "grad-cam")]:
        with open_explainer(path, method) as explainer:
            assert (explainer.labels, explainer.input_size) == (CHESTXRAY14, SIZE)
            assert explainer.notice == "random weights, for tests"
            assert explainer.identity["method"] == method
            found.append(explainer.explain(chest, ["Mass", "Effusion"]))
    assert [list(one.maps) for one in found] == [["Mass", "Effusion"]] * 3
    cam, onnx, grad_cam = found
    for finding in ("Mass", "Effusion"):
        scale = np.abs(cam.maps[finding]).max()
        np.testing.assert_allclose(onnx.maps[finding], cam.maps[finding], atol=1e-4 * scale)
        # 2 x 2 positions
        np.testing.assert_allclose(4 * grad_cam.maps[finding], cam.maps[finding], atol=1e-4 * scale)
    for other in (onnx, grad_cam):
        assert other.probabilities == pytest.approx(cam.probabilities, abs=1e-4)


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_the_likeliest_finding_is_explained_if_none_is_named(checkpoint: Path, chest: np.ndarray, method: str) -> None:
    with open_explainer(checkpoint, method) as explainer:
        evidence = explainer.explain(chest, None)
    likeliest = max(evidence.probabilities, key=evidence.probabilities.__getitem__)
    assert list(evidence.maps) == [likeliest]


def test_without_class_activation_maps_grad_cam_of_the_checkpoint_is_recommended_and_works(
    hidden_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_onnx(load_checkpoint(hidden_head), tmp_path / "hidden.onnx")
    for model in (hidden_head, tmp_path / "hidden.onnx"):
        assert main(["--model", str(model), "--phantoms", "1", "--output", str(tmp_path)]) == 2
        assert "--method grad-cam on the checkpoint" in capsys.readouterr().err
    command = ["--model", str(hidden_head), "--phantoms", "1", "--output", str(tmp_path), "--method", "grad-cam"]
    assert main([*command, "--layer", "layer4"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_a_bundle_is_explained_and_has_no_grad_cam(
    tiny_bundle_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", str(tiny_bundle_directory), "--phantoms", "1", "--output", str(tmp_path)]
    assert main(command) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1
    capsys.readouterr()
    assert main([*command, "--method", "grad-cam"]) == 2
    assert "needs gradients, so a checkpoint" in capsys.readouterr().err


def test_the_frames_lie_on_the_boxes_outermost_pixels() -> None:
    pixels = np.full((40, 40), 90, np.uint8)
    cam = np.zeros((5, 5), np.float32)
    cam[1, 1] = 1.0
    true, own = Box("Mass", 20, 25, 10.2, 6), Box("Mass", 3, 2, 12, 9)
    picture = draw(pixels, cam, boxes=[true], own=own, caption=["Mass 0.50", "a notice"])
    assert picture.shape == (40 + caption_height(2), 40, 3)
    expected = overlay(pixels, cam)
    for (left, top, right, bottom), colour in (((20, 25, 29, 30), TRUE_COLOUR), ((3, 2, 14, 10), OWN_COLOUR)):
        expected[[top, bottom], left : right + 1] = colour
        expected[top : bottom + 1, [left, right]] = colour
    np.testing.assert_array_equal(picture[:40], expected)
    assert picture[40:58].any()
    assert picture[58:].any()


def test_phantoms_are_drawn_with_what_they_hold_and_that_they_are_phantoms(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", str(checkpoint), "--phantoms", "3", "--output", str(tmp_path / "out"), "--json"]
    assert main([*command, "--finding", "Pneumothorax", "--share", "0.5"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["id"] for entry in entries] == [f"phantom-{seed}" for seed in TEST_SEEDS[:3]]
    boxes = 0
    with open_explainer(checkpoint) as explainer:
        for entry, seed in zip(entries, TEST_SEEDS):
            phantom = render(seed, SIZE)
            evidence = explainer.explain(phantom.image, ["Pneumothorax"])
            assert entry["notice"] == f"random weights, for tests; {NOTICE}"
            assert entry["probability"] == evidence.probabilities["Pneumothorax"]
            assert entry["true_boxes"] == [list(box[1:]) for box in phantom.boxes if box[0] == "Pneumothorax"]
            picture = cv2.imread(entry["picture"])
            assert picture is not None
            plain = overlay(phantom.image, evidence.maps["Pneumothorax"])
            changed = (picture[:SIZE] != plain).any(axis=2)
            frames = [*entry["true_boxes"], *([entry["own_box"]] if entry["own_box"] else [])]
            assert changed.any() == bool(frames)
            boxes += len(entry["true_boxes"])
    assert boxes > 0


def test_files_are_drawn_and_one_that_cannot_be_read_does_not_stop_the_others(
    checkpoint: Path, chest: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    good, same_name, bad = tmp_path / "chest.png", tmp_path / "a" / "chest.png", tmp_path / "bad.png"
    for path in (good, same_name):
        cv2.imwrite(str(path), chest)
    bad.write_bytes(b"no image")
    command = ["--model", str(checkpoint), str(good), str(bad), str(same_name), "--output", str(tmp_path / "out")]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert f"refused: {bad}: " in err
    assert len(out.splitlines()) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000-chest.png", "00002-chest.png"]


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_the_score_is_that_of_every_box(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    command = ["--model", str(checkpoint), "--phantoms", "8", "--score", "--output", str(tmp_path), "--method", method]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "localisation.json").read_text())
    assert (report["images"], report["model"]["method"]) == (8, method)

    expected = []
    with open_explainer(checkpoint) as explainer:
        for seed in TEST_SEEDS[:8]:
            phantom = render(seed, SIZE)
            names = sorted(box[0] for box in phantom.boxes)
            evidence = explainer.explain(phantom.image, names)
            expected += [
                locate(evidence.maps[name], [Box(*box) for box in phantom.boxes if box[0] == name], SIZE)
                for name in names
            ]
    with (tmp_path / "localisation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected) > 5
    for row, one in zip(rows, expected):
        assert (row["finding"], row["hit"], row["near"]) == (one.finding, str(int(one.hit)), str(int(one.near)))
        assert float(row["overlap"]) == pytest.approx(one.overlap, abs=1e-6)
        assert float(row["side_px"]) == pytest.approx(one.side * SIZE, abs=0.01)
    everything = report["sizes"]["all"]["all findings"]
    assert everything["hit"]["held"] == sum(one.hit for one in expected)
    assert everything["overlap_above"]["0.1"]["held"] == sum(one.overlap > 0.1 for one in expected)


def test_the_table_sorts_by_finding_and_size_and_averages_findings() -> None:
    large, small = 64.5 / 448, 64 / 448
    located = [
        Located("Mass", large, True, True, 0.6),
        Located("Mass", small, False, True, 0.2),
        Located("Nodule", small, False, False, 0.0),
        *[Located("Effusion", large, False, False, 0.0)] * 3,
    ]
    table = summarise(located, 448)
    assert {name: group["all findings"]["hit"]["of"] for name, group in table["sizes"].items()} == {
        "all": 6,
        "large": 4,
        "small": 2,
    }
    assert table["sizes"]["all"]["by finding"]["Mass"]["hit"]["rate"] == 0.5
    assert table["sizes"]["large"]["mean_hit_rate"] == pytest.approx((1 + 0) / 2)
    assert table["sizes"]["all"]["all findings"]["overlap_above"]["0.1"]["held"] == 2
    text = as_text(table)
    lines = {line[:34].strip(): line for line in text.splitlines()}
    assert lines["Mass, side > 64 px"].split()[5:8] == ["1", "1.000", "(0.21"]
    assert lines["mean of findings, all"].split()[-1] == f"{0.5 / 3:.3f}"
    json.dumps(table, allow_nan=False)
    empty = summarise(located[:1], 448)
    json.dumps(empty, allow_nan=False)
    assert empty["sizes"]["small"]["mean_hit_rate"] is None
    assert lines.keys() >= {"Nodule, side <= 64 px", "all findings, side > 64 px"}


def test_chestxray14_is_scored_on_its_boxes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    names = ["00000001_000.png", "00000002_000.png", "00000003_000.png"]
    for name, seed in zip(names, TEST_SEEDS):
        cv2.imwrite(str(tmp_path / "images" / name), render(seed, 128).image)
    columns = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    rows = [f"{name},Mass,0,{patient},57,M,PA" for patient, name in enumerate(names, 1)]
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join([columns, *rows, ""]))
    (tmp_path / "train_val_list.txt").write_text(names[0] + "\n")
    (tmp_path / "test_list.txt").write_text("\n".join(names[1:]) + "\n")
    command = ["--model", str(checkpoint), "--chestxray14", str(tmp_path), "--json"]
    assert main([*command, "--score"]) == 2
    assert "no boxes of its test images" in capsys.readouterr().err

    boxes = f"Image Index,Finding Label,Bbox [x,y,w,h],,,\n{names[2]},Mass,256,128,512,256\n"
    (tmp_path / "BBox_List_2017.csv").write_text(boxes)
    assert main([*command, "--score"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 1
    assert report["sizes"]["large"]["by finding"]["Mass"]["hit"]["of"] == 1
    assert main([*command, "--finding", "Mass", "--output", str(tmp_path / "out")]) == 0
    entry: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert entry["id"] == names[2]
    assert entry["true_boxes"] == [[16, 8, 32, 16]]  # 1024 to 64 pixels
    assert "ChestX-ray14" in entry["notice"]
    assert main([*command, "--score", "--finding", "Nodule"]) == 2
    assert "has a box of Nodule" in capsys.readouterr().err

    (tmp_path / "images" / names[1]).unlink()
    assert main([*command, "--score"]) == 2
    assert "add --skip-missing" in capsys.readouterr().err
    assert main([*command, "--score", "--skip-missing"]) == 0
    assert json.loads(capsys.readouterr().out)["of"].endswith("test, 1 images missing")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "no images given"),
        (["--phantoms", "1", "--chestxray14", "x"], "phantoms and chestxray14 given"),
        (["chest.png", "--score"], "--score needs boxes"),
        (["--phantoms", "1"], "add --output DIR, or --score"),
        (["--phantoms", "1", "--score", "--skip-missing"], "--skip-missing is about the images of --chestxray14"),
        (["--phantoms", "0", "--score"], "--phantoms 0: expected 1 to"),
        (["--phantoms", "1", "--score", "--share", "0"], "--share 0: expected more than 0"),
        (
            ["--phantoms", "1", "--score", "--finding", "Fracture"],
            "--finding Fracture: the model reports Atelectasis, ",
        ),
        (["--phantoms", "1", "--score", "--layer", "layer3"], "add --method grad-cam"),
        (["--phantoms", "2", "--score", "--method", "grad-cam", "--layer", "layer9"], "no layer 'layer9'"),
        (["--phantoms", "1", "--score", "--model", "nowhere.onnx"], "no model at nowhere.onnx"),
    ],
)
def test_wrong_use_is_one_line_with_status_2(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([*(["--model", str(checkpoint)] if "--model" not in arguments else []), *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.splitlines()[-1].startswith("error: ")


def test_an_output_that_cannot_be_written_is_status_3(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    command = ["--model", str(checkpoint), "--phantoms", "2", "--output", str(tmp_path / "file")]
    assert main(command) == 3
    assert "cannot write a picture" in capsys.readouterr().err
    assert main([*command, "--score"]) == 3
    assert "cannot write the score" in capsys.readouterr().err
