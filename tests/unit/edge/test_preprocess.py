"""Reading by content, the bounds, and the resize; the formats have tests of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.errors import BundleError, InputRefusedError
from edge.preprocess import PREPROCESS_VERSION, Preprocess, decode, load_image, resize
from tests.unit.edge.dicom_writer import REAL

PREPROCESS = Preprocess(input_size=448)


def refusal(source, preprocess=PREPROCESS):
    with pytest.raises(InputRefusedError) as caught:
        decode(source, preprocess)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_manifest_holds_every_parameter_and_comes_back():
    preprocess = Preprocess(input_size=320, max_pixels=5_000_000)
    manifest = json.loads(json.dumps(preprocess.to_manifest()))
    assert manifest["version"] == PREPROCESS_VERSION == 1
    assert (manifest["input_size"], manifest["max_pixels"]) == (320, 5_000_000)
    assert Preprocess.from_manifest(manifest) == preprocess


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 2), ("resize", "cropped"), ("input_size", 0), ("input_size", "448"), ("max_pixels", True)],
)
def test_a_manifest_of_other_preprocessing_is_refused(key, value):
    with pytest.raises(BundleError, match=key):
        Preprocess.from_manifest({**PREPROCESS.to_manifest(), key: value})
    without = PREPROCESS.to_manifest()
    del without[key]
    with pytest.raises(BundleError, match=key):
        Preprocess.from_manifest(without)


def area_average(gray, size):
    """Exact area average, by an integral along each axis: an independent reference of INTER_AREA."""
    for axis in (0, 1):
        length = gray.shape[axis]
        integral = np.concatenate([np.zeros_like(np.take(gray, [0], axis)), np.cumsum(gray, axis)], axis)
        edges = np.arange(size + 1) * (length / size)
        whole = np.minimum(edges.astype(int), length - 1)
        rest = np.expand_dims(edges - whole, 1 - axis)
        at_edges = np.take(integral, whole, axis) + rest * np.take(gray, whole, axis)
        gray = np.diff(at_edges, axis=axis) * (size / length)
    return gray


@pytest.mark.parametrize("shape", [(448, 448), (449, 448), (449, 451), (896, 896), (1955, 1841), (3001, 457)])
def test_shrinking_averages_areas(shape):
    gray = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    result = resize(gray, PREPROCESS)
    assert result.shape == (448, 448) and result.dtype == np.uint8
    assert np.abs(result - area_average(gray.astype(float), 448)).max() <= 1


def test_growing_interpolates_and_keeps_what_fits():
    gray = np.array([[0, 100], [200, 40]], np.uint8)
    grown = resize(gray, Preprocess(input_size=4))
    # OpenCV's pixel centres: output i lies at (i + 0.5) / 2 - 0.5 of the input, clamped to its ends
    weights = np.clip((np.arange(4) + 0.5) / 2 - 0.5, 0, 1)
    rows = gray[0] * (1 - weights[:, None]) + gray[1] * weights[:, None]
    expected = rows[:, :1] * (1 - weights) + rows[:, 1:] * weights
    assert np.abs(grown - expected).max() <= 1
    assert (resize(np.eye(448, dtype=np.uint8), PREPROCESS) == np.eye(448)).all()


def test_one_side_shrinks_while_the_other_grows():
    stripes = np.tile(np.array([0, 255], np.uint8), (100, 2000))  # finer than the output can show
    result = resize(stripes, Preprocess(input_size=400))
    assert np.abs(result.astype(int) - 127).max() <= 1  # an average; sampling would show moiré


def test_load_image_is_decode_then_resize():
    path = REAL / "RG1_UNCR.dcm"
    assert (load_image(path, PREPROCESS) == resize(decode(path, PREPROCESS), PREPROCESS)).all()
    assert (decode(path.read_bytes(), PREPROCESS) == decode(path, PREPROCESS)).all()


def test_an_8_bit_png_of_the_radiograph_is_the_same_image(tmp_path):
    gray = decode(REAL / "RG1_UNCR.dcm", PREPROCESS)
    cv2.imwrite(str(tmp_path / "chest.png"), gray)
    assert (load_image(tmp_path / "chest.png", PREPROCESS) == load_image(REAL / "RG1_UNCR.dcm", PREPROCESS)).all()


def test_the_name_does_not_matter(tmp_path):
    wrong = tmp_path / "image.png"
    wrong.write_bytes((REAL / "RG1_UNCR.dcm").read_bytes())
    assert decode(wrong, PREPROCESS).shape == (1955, 1841)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"Name: Doe, Jane\nBorn: 1970\n", "text"),
        (b"GIF89a" + b"\0" * 50, "GIF"),
        (b"II*\0" + b"\0" * 50, "TIFF"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0" * 4096, "unknown kind"),
        (bytes(range(256)) * 20, "unknown kind"),
        (b"\x89PNG\r\n", "unknown kind"),
    ],
)
def test_other_content_is_named_not_shown(tmp_path, content, kind):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    message = refusal(path)
    assert kind in message and "expected" in message
    assert "Doe" not in message and str(path) not in message


def test_paths_that_are_no_readable_file(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "missing.png")
    assert "no regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")
    assert "no regular file" in refusal(Path("/dev/zero"))


def test_a_file_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "huge.dcm"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse
    assert "1,000,000,000,000 bytes" in refusal(path)
    assert "bytes" in refusal(b"\x89PNG\r\n\x1a\n" + b"\0" * 16_100_000, Preprocess(input_size=64, max_pixels=10))


def test_decoding_takes_little_more_memory_than_the_image():
    content = (REAL / "RG1_UNCR.dcm").read_bytes()
    decode(content, PREPROCESS)
    tracemalloc.start()
    try:
        gray = decode(content, PREPROCESS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * gray.nbytes + 8_000_000


def test_a_png_loads_no_dicom_code():
    program = (
        "import sys, cv2, numpy as np; from edge.preprocess import Preprocess, decode\n"
        "ok, png = cv2.imencode('.png', np.zeros((5, 5), np.uint8)); decode(png.tobytes(), Preprocess(64))\n"
        "print(*(name for name in sys.modules if 'dicom' in name or name in ('jpeg_ls', 'openjpeg')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
