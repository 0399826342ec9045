"""``build_engine/make.py`` as a user runs it: every precision and backend, and what goes wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import onnxruntime
import pytest

from calibration.limits import NAMES
from calibration.repair_summary import summarise
from edge.backends.onnxruntime import own_model
from edge.bundle import load_bundle, sha256_of
from mdconv.checkpoint import load_checkpoint, save_checkpoint
from mdconv.data.phantom.folder import write_folder
from mdconv.weights import DEMO_CHECKPOINT
from tests.native.real_plugin import real_plugin
from tests.system.conftest import build, run_make

UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""Takes from root the right to write where the permissions say no."""


@pytest.fixture(scope="module")
def few_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("phantoms")
    write_folder(directory, 12, 4_500_000, 448)
    return directory


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, too small for any bundle."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", directory], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", directory], check=True)


def check_manifest(directory: Path) -> dict[str, object]:
    """The manifest names every file but itself, with its size and hash. Returns it."""
    manifest: dict[str, object] = json.loads((directory / "manifest.json").read_text())
    expected = {
        file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size": file.stat().st_size}
        for file in directory.iterdir()
        if file.name != "manifest.json"
    }
    assert manifest["files"] == expected
    return manifest


def test_int8_by_default_passes_its_gate_and_names_every_file(int8_bundle: Path) -> None:
    manifest = check_manifest(int8_bundle)
    assert manifest["precision"] == "int8"
    assert manifest["lowering"]["onnxruntime_model"] in manifest["files"]  # type: ignore[index,operator]
    report = json.loads((int8_bundle / "report.json").read_text())
    assert report["backend"]["model"] == own_model(load_bundle(int8_bundle)).name
    assert "synthetic phantoms" in manifest["model"]["notice"]  # type: ignore[index]
    gate = manifest["gate"]
    assert isinstance(gate, dict)
    assert (gate["verdict"], gate["images"], gate["ran_on"]) == ("pass", 200, "onnxruntime")
    assert gate["failed"] == []
    assert gate["figures"]["mean_difference"] <= 0.01 / 1.5
    assert gate["figures"]["changed_decisions"] <= 0.02 / 1.5
    assert gate["figures"]["mean_sensitivity"]["drop"] <= 0.02 / 1.5
    assert gate["figures"]["mean_auc"]["drop"] <= 0.01 / 1.5
    pixels = json.loads((int8_bundle / "calibration.json").read_text())["pixels"]
    assert len(set(pixels)) == len(pixels) == 128 and {len(digest) for digest in pixels} == {64}
    assert 0.80 <= gate["figures"]["mean_auc"]["reference"] <= 0.97
    calibration = manifest["calibration"]
    assert isinstance(calibration, dict)
    assert len(calibration["equalization"]["layers"]) == 34 and calibration["equalization"]["left"] == {}
    assert calibration["equalization"]["difference"] == 0
    assert len(calibration["bias_correction"]["layers"]) == 52  # all but the one that makes the maps
    guard = manifest["guard"]
    assert isinstance(guard, dict)
    assert guard["fitted_on"]["digest"] == calibration["digest"]
    assert guard["false_refusals"]["of"] == 128 and guard["false_refusals"]["refused"] <= 1
    assert guard["left_out"]["mean"] < 1.2 < guard["threshold"] < 4
    assert guard["file"] == "guard.npz" in manifest["files"]  # type: ignore[operator]
    load_bundle(int8_bundle)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_other_precisions(precision: str, few_phantoms: Path, tmp_path: Path) -> None:
    directory = build(
        tmp_path / "bundle", f"--{precision}", "--backend", "onnxruntime", "--gate-data", few_phantoms, "--batch", "2"
    )
    manifest = check_manifest(directory)
    assert manifest["precision"] == precision
    assert manifest["model"]["batch"] == 2  # type: ignore[index]
    assert manifest["guard"]["file"] is None  # type: ignore[index]  # its only images judge the build


@pytest.mark.parametrize("lowering", ["padded", "split"])
def test_tensorrt_rtx_engine_by_nvidias_builder(lowering: str, few_phantoms: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 only")
    directory = build(
        tmp_path / "bundle",
        *("--int8", "--backend", "tensorrt-rtx", "--lowering", lowering, "--gate-data", few_phantoms),
        *("--calibration-images", "12", *ANYTHING),
    )
    manifest = check_manifest(directory)
    assert (directory / "model.engine").stat().st_size > 1_000_000
    platform, gate = manifest["platform"], manifest["gate"]
    assert isinstance(platform, dict) and isinstance(gate, dict)
    assert platform["layers"], "the builder's layers belong into the manifest"
    assert "was not run" in gate["note"]
    assert json.loads((directory / "report.json").read_text())["layers"] != "unavailable"


@pytest.mark.parametrize(("precision", "kind"), [("int8", "Int8"), ("fp16", "Half"), ("fp32", "Float")])
def test_tensorrt_rtx_engine_with_the_plugin(
    precision: str, kind: str, few_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's builder lists one plugin layer an MD-Conv; it reads and writes the precision's type, so no Q/DQ pair."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for x86-64 only")
    monkeypatch.setenv("MDCONV_PLUGIN", str(real_plugin()))
    directory = build(
        tmp_path / "bundle",
        *(f"--{precision}", "--backend", "tensorrt-rtx", "--lowering", "plugin", "--gate-data", few_phantoms),
        *("--calibration-images", "12", *ANYTHING),
    )
    manifest: dict[str, Any] = check_manifest(directory)
    lowering, layers = manifest["lowering"], manifest["platform"]["layers"]
    assert (lowering["kind"], lowering["reason"]) == ("plugin", "asked for")
    assert lowering["builder_model"] == f"model.{precision}.plugin.onnx"
    assert lowering["fallback_model"] == f"model.{precision}.padded.onnx"
    assert lowering["plugin"] == {"sha256": sha256_of(real_plugin()), "origin": "MDCONV_PLUGIN"}
    assert manifest["files"]["libmdconv_plugin.so"]["sha256"] == lowering["plugin"]["sha256"]
    assert {lowering["builder_model"], lowering["fallback_model"]} <= set(manifest["files"])
    assert "kept_padded" not in lowering

    named = [layer for layer in layers if re.match(r"layer5\.\d\.depthwise", layer["Name"])]
    assert [layer["Name"][:18] for layer in named] == [f"layer5.{i}.depthwise" for i in range(3)]
    for layer in named:
        assert layer["LayerType"] == "custom_layer"
        assert {tensor["Datatype"] for tensor in (*layer["Inputs"], *layer["Outputs"])} == {kind}
    session = onnxruntime.InferenceSession(directory / lowering["fallback_model"])  # standard ONNX
    assert session.get_outputs()[0].name == "logits"


def test_building_twice_gives_the_same_models(fp32_bundle: Path, tmp_path: Path) -> None:
    again = build(
        tmp_path / "fp32",
        *("--fp32", "--backend", "onnxruntime", "--lowering", "padded", "--no-gate", "--calibration-images", "16"),
    )
    for name in ("model.onnx", "model.fp32.padded.onnx", "golden.npz"):
        assert (again / name).read_bytes() == (fp32_bundle / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--checkpoint", "missing.safetensors"], 2, "no checkpoint at missing.safetensors"),
        (["--calibration-data", "missing"], 2, "--calibration-data missing is no folder"),
        (["--fp16", "--gate-data", "missing"], 2, "--gate-data missing is no folder"),
        (["--batch", "0"], 2, "0 is less than 1"),
        (["--max-auc-drop", "2"], 2, "2 is not between 0 and 1"),
        (["--max-changed-decisions", "-1"], 2, "-1 is not between 0 and 1"),
        (["--backend", "tensorrt"], 3, "tensorrt"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(arguments: list[str], status: int, said: str, tmp_path: Path) -> None:
    made = run_make(*arguments, "--output", tmp_path / "bundle", cwd=tmp_path)
    assert made.returncode == status
    assert said in made.stderr.splitlines()[-1]
    assert "Traceback" not in made.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_plugin_is_told_before_any_work(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDCONV_PLUGIN", str(tmp_path / "missing.so"))
    made = run_make("--lowering", "plugin", "--backend", backend, "--output", tmp_path / "bundle")
    assert made.returncode == 3
    (line,) = made.stderr.splitlines()
    assert "missing.so, which is missing" in line
    assert list(tmp_path.iterdir()) == []


def test_an_empty_calibration_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = run_make("--calibration-data", tmp_path / "empty", "--output", tmp_path / "bundle")
    assert made.returncode == 2
    assert "holds no image" in made.stderr.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()


ANYTHING = tuple(f"--{name.replace('_', '-')}=1" for name in NAMES)
"""The gate's widest limits: 12 images calibrate too little to judge what comes of it."""
SMALL = ("--int8", "--backend", "onnxruntime", "--lowering", "padded", "--input-size", "64", "--no-gate")


def test_a_table_is_calibrated_on_by_finding_and_the_bundle_says_so(tmp_path: Path) -> None:
    table = tmp_path / "data" / "Data_Entry_2017.csv"
    write_folder(table.parent, 60, 4_500_000, 64)
    (table.parent / "labels.csv").rename(table)
    given = ("--calibration-data", table, "--calibration-images", "30", "--calibration-seed", "3")
    directory = build(tmp_path / "bundle", *SMALL, *given)
    entry: Any = check_manifest(directory)["calibration"]
    selection = entry["selection"]
    assert (entry["count"], entry["images"]) == (30, "user's images")
    assert (selection["rule"], selection["seed"], selection["offered"]) == ("stratified by finding", 3, 60)
    with table.open() as file:
        shown = [row["Finding Labels"].split("|") for row in csv.DictReader(file)]
    offered = {finding: sum(finding in row for row in shown) for row in shown for finding in row}
    assert selection["findings"].keys() == offered.keys() and "No Finding" in offered
    for finding, count in selection["findings"].items():
        assert min(offered[finding], 30 // len(offered)) <= count <= offered[finding]
    record = json.loads((directory / "calibration.json").read_text())
    assert {key: record[key] for key in entry} | summarise(record) == entry
    assert str(tmp_path) not in (directory / "manifest.json").read_text()


def test_too_few_images_for_int8_are_refused_unless_asked_for(few_phantoms: Path, tmp_path: Path) -> None:
    made = run_make(*SMALL, "--calibration-data", few_phantoms, "--output", tmp_path / "bundle")
    assert made.returncode == 2
    assert "12 images to calibrate on, INT8 needs at least 16" in made.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_one_picture_in_two_files_is_refused_by_name(few_phantoms: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(few_phantoms, images, ignore=shutil.ignore_patterns("labels.csv"))
    first = sorted(images.iterdir())[0]
    cv2.imwrite(str(images / "z.png"), cv2.imread(str(first), cv2.IMREAD_GRAYSCALE), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    given = ("--calibration-data", images, "--calibration-images", "13", "--output", tmp_path / "bundle")
    made = run_make(*SMALL, *given)
    assert made.returncode == 2
    assert f"{first} and {images / 'z.png'} are the same picture" in made.stderr.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()


def test_a_gate_image_that_is_none_is_named(few_phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(few_phantoms, tmp_path / "gate")
    broken = sorted((tmp_path / "gate").glob("*.png"))[3]
    broken.write_bytes(b"text")
    made = run_make("--fp32", "--backend", "onnxruntime", "--gate-data", tmp_path / "gate", cwd=tmp_path)
    assert made.returncode == 2
    assert str(broken) in made.stderr.splitlines()[-1]
    assert "Traceback" not in made.stderr
    assert not list((tmp_path / "out").iterdir())


def test_another_checkpoint_needs_images_of_its_own(tmp_path: Path) -> None:
    made = run_make("--checkpoint", DEMO_CHECKPOINT, "--output", tmp_path / "bundle")
    assert made.returncode == 2
    assert "no --calibration-data" in made.stderr.splitlines()[-1]


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path: Path) -> None:
    demo = load_checkpoint(DEMO_CHECKPOINT)
    save_checkpoint(replace(demo, config={**demo.config, "md_stages": ["layer2"]}), tmp_path / "a.safetensors")
    made = run_make("--checkpoint", tmp_path / "a.safetensors", "--output", tmp_path / "bundle")
    assert made.returncode == 2
    assert "its network expects" in made.stderr.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(small_disk: Path) -> None:
    (small_disk / "precious").write_bytes(b"kept")
    made = run_make("--fp32", "--backend", "onnxruntime", "--no-gate", "--output", small_disk / "bundle")
    assert made.returncode == 3
    assert "No space left on device" in made.stderr.splitlines()[-1]
    assert "Traceback" not in made.stderr
    assert [path.name for path in small_disk.iterdir()] == ["precious"]


def test_no_permission_is_one_line(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    made = run_make("--fp32", "--no-gate", "--output", locked / "bundle", prefix=UNPRIVILEGED)
    assert made.returncode == 3
    assert "Permission denied" in made.stderr.splitlines()[-1]
    assert "Traceback" not in made.stderr
