"""The demo bundle's guard, as users meet it: real commands on phantoms and on real images of other kinds."""

from __future__ import annotations

import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import load_bundle
from edge.guard import Guard
from edge.preprocess import Preprocess, decode
from mdconv.data.phantom import DEMO_SEEDS
from mdconv.data.phantom import render as render_phantom
from tests.unit.edge.dicom_writer import to_bytes, without_scope

EDGE_INFER = Path(sys.executable).with_name("edge-infer")
IMAGE = (
    "SOPClassUID SOPInstanceUID Modality SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated "
    "BitsStored HighBit PixelRepresentation WindowCenter WindowWidth PixelData"
)
"""All that is left of a DICOM that was stripped."""
FRESH = DEMO_SEEDS.start + 700_000


def real(name: str) -> Path:
    path = get_testdata_file(name)
    assert isinstance(path, str), f"{name} comes with pydicom-data"
    return Path(path)


def stripped(path: Path) -> bytes:
    full, bare = pydicom.dcmread(path), Dataset()
    for keyword in IMAGE.split():
        if keyword in full:
            bare[keyword] = full[keyword]
    return to_bytes(bare)


def classify(bundle: Path, *arguments: str | Path, status: int) -> list[dict[str, Any]]:
    command = [EDGE_INFER, "classify", *arguments, "--bundle", bundle, "--backend", "onnxruntime", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of seeds that training, calibration and gate do not use, at a radiograph's size."""
    folder = tmp_path_factory.mktemp("phantoms")
    paths = [folder / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(cv2.imencode(".png", render_phantom(FRESH + number, 900).image)[1].tobytes())
    return paths


def test_phantoms_pass(int8_bundle: Path, phantoms: list[Path]) -> None:
    threshold = load_bundle(int8_bundle).manifest["guard"]["threshold"]
    for result in classify(int8_bundle, *phantoms, status=0):
        assert result["status"] == "done"
        assert 0.4 < result["guard"]["score"] <= threshold == result["guard"]["threshold"]
        assert result["guard"]["refused"] is result["guard"]["off"] is False


@pytest.mark.parametrize("name", ["RG3_UNCR.dcm", "RG3_J2KR.dcm"])
def test_an_extremity_is_refused_by_its_tags(int8_bundle: Path, name: str) -> None:
    (result,) = classify(int8_bundle, real(name), status=1)
    assert "Body Part Examined is EXTREMITY, expected the chest" in result["reason"]
    assert result["findings"] is result["guard"] is None


def test_an_extremity_is_refused_when_its_tags_are_gone(int8_bundle: Path, tmp_path: Path) -> None:
    """As a stripped DICOM, as PNG, as JPEG, turned and cut."""
    gray = decode(without_scope(real("RG3_UNCR.dcm")), Preprocess(448))
    pictures = {
        "bare.dcm": stripped(real("RG3_UNCR.dcm")),
        "plain.png": cv2.imencode(".png", gray)[1].tobytes(),
        "plain.jpg": cv2.imencode(".jpg", gray)[1].tobytes(),
        "turned.png": cv2.imencode(".png", np.rot90(gray))[1].tobytes(),
        "mirrored.png": cv2.imencode(".png", gray[:, ::-1])[1].tobytes(),
        "cut.png": cv2.imencode(".png", gray[350:1400, 350:1400])[1].tobytes(),
        "negative.png": cv2.imencode(".png", 255 - gray)[1].tobytes(),
    }
    for name, content in pictures.items():
        (tmp_path / name).write_bytes(content)
    results = classify(int8_bundle, *(tmp_path / name for name in pictures), status=1)
    assert len(results) == len(pictures)
    for result in results:
        assert result["status"] == "refused", result
        assert "unlike those that the guard was fitted on" in result["reason"]
        assert result["guard"]["score"] > 1.3 * result["guard"]["threshold"]
        assert result["findings"] is None
    dicom, png = results[:2]
    assert dicom["guard"]["score"] == pytest.approx(png["guard"]["score"], abs=0.05)


def test_a_real_chest_is_unlike_the_phantoms_too_and_says_so(int8_bundle: Path) -> None:
    """The demo network never saw a patient. Whoever wants its answer all the same asks for it."""
    chest = real("RG1_UNCR.dcm")
    (refused,) = classify(int8_bundle, chest, status=1)
    assert refused["guard"]["score"] > refused["guard"]["threshold"]
    (asked,) = classify(int8_bundle, chest, "--no-guard", status=0)
    assert asked["status"] == "done"
    assert asked["guard"] == {"score": None, "threshold": None, "refused": False, "off": True}
    command = [EDGE_INFER, "classify", chest, "--bundle", int8_bundle, "--no-guard"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert said.stdout.rstrip().endswith("[the guard is off]")


def test_no_guard_does_not_read_what_the_tags_rule_out(int8_bundle: Path) -> None:
    (result,) = classify(int8_bundle, real("RG3_UNCR.dcm"), "--no-guard", status=1)
    assert "EXTREMITY" in result["reason"]
    assert result["guard"]["off"]


def test_other_kinds_of_image_are_refused(int8_bundle: Path) -> None:
    """Through the guard itself: phantoms made strange, noise, and other modalities as gray pictures."""
    bundle = load_bundle(int8_bundle)
    guard = Guard.from_bundle(bundle)
    rng = np.random.default_rng(4)
    kinds: dict[str, list[Any]] = {"noise": [rng.integers(0, 256, (448, 448))]}
    for number in range(10):
        phantom = render_phantom(FRESH + 100 + number, 448).image
        kinds.setdefault("negative", []).append(255 - phantom)
        for quarters, kind in ((1, "turned"), (2, "upside down"), (3, "turned back")):
            kinds.setdefault(kind, []).append(np.rot90(phantom, quarters))
    for name, kind in (("CT_small.dcm", "CT"), ("693_UNCR.dcm", "CT"), ("MR2_UNCR.dcm", "MR"), ("MR_small.dcm", "MR")):
        values = pydicom.dcmread(real(name)).pixel_array.astype(float)
        low, high = np.percentile(values, (1, 99))
        picture = np.clip((values - low) / (high - low) * 255, 0, 255).astype(np.uint8)
        kinds.setdefault(kind, []).append(cv2.resize(picture, (448, 448)))
    with OnnxRuntimeBackend(bundle) as backend:
        for kind, pictures in kinds.items():
            for picture in pictures:
                pixels = np.ascontiguousarray(picture, np.uint8)
                outputs = backend.infer(pixels[None, None])
                assert outputs.cam is not None
                verdict = guard.check(pixels, outputs.logits[0], outputs.cam[0])
                assert verdict is not None
                assert verdict["refused"], (kind, verdict)


def test_the_daemon_refuses_alike(int8_bundle: Path, phantoms: list[Path], tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "phantom.png").write_bytes(phantoms[0].read_bytes())
    (inbox / "hand.dcm").write_bytes(real("RG3_UNCR.dcm").read_bytes())
    (inbox / "bare.dcm").write_bytes(stripped(real("RG3_UNCR.dcm")))
    command = [EDGE_INFER, "serve", "--bundle", int8_bundle, "--watch", inbox, "--state", tmp_path / "state", "--drain"]
    done = subprocess.run([*command, "--backend", "onnxruntime"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    rows = sqlite3.connect(tmp_path / "state" / "ledger.sqlite").execute("SELECT result FROM runs").fetchall()
    results = [json.loads(row[0]) for row in rows]
    (done_one,) = (result for result in results if result["status"] == "done")
    assert done_one["guard"]["score"] <= done_one["guard"]["threshold"]
    by_tag, by_score = sorted((result["reason"] for result in results if result is not done_one), key=len)
    assert "Body Part Examined is EXTREMITY" in by_tag
    assert "unlike those that the guard was fitted on" in by_score


def test_a_stripped_dicom_is_what_this_file_says() -> None:
    bare = pydicom.dcmread(io.BytesIO(stripped(real("RG3_UNCR.dcm"))))
    assert {element.keyword for element in bare} <= set(IMAGE.split())
    assert not bare.get("BodyPartExamined")
