"""The accuracy gate as a user meets it: a failed build is kept aside, a sabotaged bundle runs by force only."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from benchmarks.gate_faults import widen_scale
from build_engine.export import export_onnx
from build_engine.make import main as make
from edge.bundle import load_bundle
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import load_checkpoint
from mdconv.data.phantom.folder import write_folder
from mdconv.weights import DEMO_CHECKPOINT
from tests.system.conftest import run_make


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("phantoms")
    write_folder(directory, 24, 4_600_000, 448)
    return directory


def edge_infer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def gate_of(directory: Path) -> dict[str, Any]:
    gate: dict[str, Any] = load_bundle(directory).manifest["gate"]
    return gate


def test_a_sabotaged_bundle_fails_and_runs_by_force_only(int8_bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    """The scale of one layer is multiplied by 8: findings rank as before, but other ones are called positive."""
    bundle = tmp_path / "bundle"
    shutil.copytree(int8_bundle, bundle)
    widen_scale(bundle, "layer1.0.expand.relu6")
    before = gate_of(bundle)
    assert before["verdict"] == "pass"

    judged = ("--gate-data", phantoms, "--backend", "onnxruntime")
    done = run_make("--regate", bundle, *judged)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1] == str(bundle)
    gate = gate_of(bundle)
    assert gate["verdict"] == "fail"
    assert gate["failed"] == ["max_mean_difference", "max_changed_decisions"]
    assert gate["figures"]["mean_auc"]["drop"] < gate["limits"]["max_auc_drop"]  # which alone would have passed it
    assert gate["figures"]["changed_decisions"] > 0.03
    assert gate["replaces"] == {key: before[key] for key in ("verdict", "reason", "ran_on", "time")}

    image = sorted(phantoms.glob("*.png"))[0]
    where = ("--bundle", bundle, "--backend", "onnxruntime")
    for arguments in (
        ("classify", image),
        ("serve", "--watch", phantoms, "--state", tmp_path / "state", "--drain"),
    ):
        refused = edge_infer(*arguments, *where)
        assert refused.returncode == 3
        (line,) = refused.stderr.splitlines()
        assert "failed its accuracy gate (mean difference of a probability" in line and "--allow-failed-gate" in line
        assert refused.stdout == ""
    assert not (tmp_path / "state").exists()

    forced = edge_infer("classify", image, *where, "--allow-failed-gate", "--json")
    assert forced.returncode == 0, forced.stderr
    assert json.loads(forced.stdout)["gate"] == "fail"
    assert "FAILED ITS ACCURACY GATE" in forced.stderr
    assert "failed its accuracy gate" in edge_infer("classify", image, *where, "--allow-failed-gate").stdout

    said = " ".join(edge_infer("passport", "--bundle", bundle).stdout.split())
    assert "beyond its limit: mean difference of a probability, share of changed decisions" in said
    assert "share of changed decisions 0.02" in said

    # The good bundle passes on the same images, with the same limits.
    good = tmp_path / "good"
    shutil.copytree(int8_bundle, good)
    done = run_make("--regate", good, *judged)
    assert done.returncode == 0, done.stderr
    assert (gate_of(good)["verdict"], gate_of(good)["failed"]) == ("pass", [])
    assert gate_of(good)["limits"] == gate["limits"]


def test_images_that_calibrate_do_not_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before the work: nothing is exported yet, and nothing is left behind."""
    images, others = tmp_path / "images", tmp_path / "others"
    write_folder(images, 20, 4_800_000, 64)
    write_folder(others, 3, 4_900_000, 64)
    small = ["--int8", "--backend", "onnxruntime", "--input-size", "64", "--output", str(tmp_path / "bundle")]
    calibrated = [*small, "--calibration-data", str(images)]
    assert make([*calibrated, "--gate-data", str(images)]) == 2
    (*_, said) = capsys.readouterr().err.splitlines()
    assert "--calibration-data and --gate-data are one folder" in said and "split them into two folders" in said

    assert make([*calibrated, "--thresholds", "youden", "--threshold-data", str(images)]) == 2
    assert "--calibration-data and --threshold-data are one folder" in capsys.readouterr().err.splitlines()[-1]

    # One picture of them, in other bytes: what counts is what the network would see.
    picture = sorted(images.glob("*.png"))[5]
    cv2.imwrite(
        str(others / "copy.png"), cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE), [cv2.IMWRITE_PNG_COMPRESSION, 0]
    )
    (others / "labels.csv").unlink()
    assert make([*calibrated, "--gate-data", str(others)]) == 2
    (*_, said) = capsys.readouterr().err.splitlines()
    assert f"image {others / 'copy.png'} of --gate-data is calibration image {picture}: take it out of one" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "others"]


def test_a_build_that_fails_is_kept_aside(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    """Ranges from black images clip everything that a radiograph holds: such a network must not take a bundle's place.

    Float32 is right by definition here, so that whatever is lost shows.
    """
    output, aside, gate_data = tmp_path / "bundle", tmp_path / "bundle.failed", tmp_path / "gate"
    for directory in (output, aside):
        shutil.copytree(tiny_bundle_directory, directory)
    before = (output / "manifest.json").read_bytes()
    write_folder(gate_data, 40, 4_700_000, 64)
    label_by_float32(gate_data)
    threshold_data = Path(shutil.copytree(gate_data, tmp_path / "thresholds"))
    black = tmp_path / "black"
    black.mkdir()
    for level in range(4):
        cv2.imwrite(str(black / f"{level}.png"), np.full((64, 64), level, np.uint8))

    made = run_make(
        *("--int8", "--backend", "onnxruntime", "--lowering", "padded", "--input-size", "64"),
        *("--calibration-data", black, "--calibration-images", "4", "--gate-data", gate_data, "--output", output),
        *("--thresholds", "sensitivity=0.8", "--threshold-data", threshold_data, "--mixed-precision", "off"),
    )
    assert made.returncode == 3
    assert "Traceback" not in made.stderr
    assert made.stdout == ""
    assert f"the build is kept in {aside}, marked as failed" in made.stderr.splitlines()[-1]
    assert (output / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "black",
        "bundle",
        "bundle.failed",
        "gate",
        "thresholds",
    ]
    gate = gate_of(aside)
    assert (gate["verdict"], gate["figures"]["mean_auc"]["reference"]) == ("fail", 1)
    assert gate["figures"]["mean_auc"]["interval"][0] > 0.01
    model = load_bundle(aside).manifest["model"]
    assert model["threshold_choice"]["rule"] == "sensitivity=0.8"
    for name, found in gate["figures"]["findings"].items():
        assert found["sensitivity"]["reference"] == 0.8  # 16 of 20
        assert found["threshold"] == model["thresholds"][name]
    facts = onnxruntime.InferenceSession(aside / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(facts["thresholds"]) == model["thresholds"]
    assert edge_infer("selftest", "--bundle", aside).returncode == 3


def label_by_float32(images: Path) -> None:
    """Write ``labels.csv`` anew: a finding is in the images of the upper half of the demo network's own logits."""
    paths = sorted(images.glob("*.png"))
    export_onnx(load_checkpoint(DEMO_CHECKPOINT), images / "model.onnx", 1, 64)
    session = onnxruntime.InferenceSession(images / "model.onnx")
    pixels = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[None, None] for path in paths]
    logits = np.concatenate([session.run(["logits"], {"image": image})[0] for image in pixels])
    with (images / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Image Index", "Finding Labels"])
        for path, row in zip(paths, logits > np.median(logits, axis=0)):
            found = "|".join(name for name, present in zip(CHESTXRAY14, row) if present)
            table.writerow([path.name, found or "No Finding"])


def test_what_stands_where_a_failed_build_would_go_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle.failed").mkdir()
    (tmp_path / "bundle.failed" / "mine").write_bytes(b"dear")
    assert make(["--output", str(tmp_path / "bundle")]) == 2
    assert "bundle.failed holds files but no bundle" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "bundle.failed" / "mine").read_bytes() == b"dear"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--regate", "missing", "--fp16"], "takes no option about precision"),
        (["--regate", "missing", "--no-gate", "--batch", "2"], "takes no option about batch, gate"),
    ],
)
def test_regate_builds_nothing(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_regate_names_what_is_missing(
    tiny_bundle_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(["--regate", str(tmp_path / "missing")]) == 3
    assert "no bundle at" in capsys.readouterr().err
    assert make(["--regate", str(tiny_bundle_directory)]) == 2  # of other weights than the demo's: no phantoms for it
    assert "no --gate-data" in capsys.readouterr().err
    assert make(["--regate", str(tiny_bundle_directory), "--gate-data", str(tmp_path / "missing")]) == 2
    assert "is no folder" in capsys.readouterr().err
