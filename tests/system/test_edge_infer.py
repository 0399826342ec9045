"""``edge-infer classify`` and its like as a user runs them: real processes, real files, and all that goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi_lut

EDGE_INFER = Path(sys.executable).with_name("edge-infer")
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""Takes from root the right to write where the permissions say no."""


def edge_infer(*arguments: str | Path, prefix: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*prefix, EDGE_INFER, *arguments]
    return subprocess.run(command, **{"capture_output": True, "text": True, "timeout": 120, **options})


def classify(bundle: Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return edge_infer("classify", *arguments, "--bundle", bundle, "--backend", "onnxruntime", **options)


def results(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def chances(result: dict[str, Any]) -> NDArray[np.float64]:
    assert result["status"] == "done", result["reason"]
    return np.array([entry["probability"] for entry in result["findings"].values()])


def error_line(done: subprocess.CompletedProcess[str], notice: bool = True) -> str:
    """The one line on stderr, beside the bundle's notice."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 + notice, done.stderr
    assert lines[-1].startswith("edge-infer: ")
    return lines[-1]


def real_file(name: str) -> Path:
    path = get_testdata_file(name)
    assert isinstance(path, str), f"{name} comes with pydicom-data"
    return Path(path)


@pytest.fixture(scope="session")
def chest() -> Path:
    return real_file("RG1_UNCR.dcm")


@pytest.fixture(scope="session")
def chest_png(tmp_path_factory: pytest.TempPathFactory, chest: Path) -> Path:
    """The radiograph as 8-bit PNG of full size, by way of pydicom: its window fills the range of the stored bits."""
    dataset = pydicom.dcmread(chest)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    gray = np.round(values / (2**dataset.BitsStored - 1) * 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("png") / "chest.png"
    path.write_bytes(
        cv2.imencode(".png", 255 - gray if dataset.PhotometricInterpretation == "MONOCHROME1" else gray)[1]
    )
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(2)
    paths = [folder / f"{number:02}.png" for number in range(20)]
    for number, path in enumerate(paths):
        size = (180 + 80 * (number % 5), 300)
        image = cv2.resize(rng.integers(0, 256, (8, 8), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
        path.write_bytes(cv2.imencode(".png", image)[1])
    return paths


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with no byte free."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with (directory / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


# What it gives


@pytest.mark.parametrize("bundle", ["fp32_bundle", "int8_bundle"])
def test_one_radiograph_in_three_encodings(
    bundle: str, request: pytest.FixtureRequest, chest: Path, chest_png: Path
) -> None:
    """Both DICOM files are lossless, so they hold the same pixels; the PNG has them in 8 bits.

    The guard of a network that was trained on phantoms refuses all three, rightly.
    """
    files = (chest, real_file("RG1_J2KR.dcm"), chest_png)
    done = classify(request.getfixturevalue(bundle), *files, "--json", "--no-guard")
    assert done.returncode == 0, done.stderr
    raw, jpeg2000, png = map(chances, results(done))
    np.testing.assert_allclose(raw, jpeg2000, atol=1e-6, rtol=0)
    np.testing.assert_allclose(raw, png, atol=0.02, rtol=0)
    assert done.stderr.count("\n") == 1
    assert "synthetic phantoms" in done.stderr.lower()
    assert "research use only" in done.stderr.lower()


def test_one_line_an_image_in_the_order_of_the_names(tiny_bundle_directory: Path, pictures: list[Path]) -> None:
    done = classify(tiny_bundle_directory, *pictures, "--json")
    assert [result["source"] for result in results(done)] == [str(path) for path in pictures]
    again = classify(tiny_bundle_directory, *pictures[::-1])
    assert [line.split(":")[0] for line in again.stdout.splitlines()] == [str(path) for path in pictures[::-1]]


def test_an_image_alone_or_among_others_gives_the_same(tiny_bundle_directory: Path, pictures: list[Path]) -> None:
    together = results(classify(tiny_bundle_directory, *pictures, "--json"))
    alone = results(classify(tiny_bundle_directory, pictures[7], "--json"))
    assert together[7]["findings"] == alone[0]["findings"]


def test_without_json_a_person_reads_the_positive_findings(tiny_bundle_directory: Path, pictures: list[Path]) -> None:
    (result,) = results(classify(tiny_bundle_directory, pictures[0], "--json"))
    (line,) = classify(tiny_bundle_directory, pictures[0]).stdout.splitlines()
    for label, entry in result["findings"].items():
        assert (f"{label} {entry['probability']:.2f}" in line) == entry["positive"]


def test_heat_maps_are_written(tiny_bundle_directory: Path, pictures: list[Path], tmp_path: Path) -> None:
    done = classify(tiny_bundle_directory, *pictures[:3], "--json", "--cam", tmp_path / "maps")
    assert done.returncode == 0, done.stderr
    for result in results(done):
        cam = np.load(result["cam"]["array"])
        assert cam.shape == (14, 16, 16)
        assert cv2.imread(result["cam"]["overlay"]) is not None
        assert result["cam"]["finding"] == max(
            result["findings"], key=lambda label: result["findings"][label]["probability"]
        )
    assert len(list((tmp_path / "maps").iterdir())) == 6


def test_the_module_is_the_command(tiny_bundle_directory: Path, pictures: list[Path]) -> None:
    command = [sys.executable, "-m", "edge", "classify", pictures[0], "--bundle", tiny_bundle_directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == classify(tiny_bundle_directory, pictures[0]).stdout


# Input that cannot be used


def huge_png() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels of 16 bits, 7 GB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def test_each_bad_file_is_refused_by_name_with_its_reason_and_the_others_are_done(
    tiny_bundle_directory: Path, tmp_path: Path, chest: Path
) -> None:
    bad = {
        "empty.png": (b"", "empty"),
        "text.png": (b"not an image at all\n", "text"),
        "huge.png": (huge_png(), "pixels"),
        "truncated.dcm": (chest.read_bytes()[:100_000], ""),
        "header only.dcm": (chest.read_bytes()[:132], ""),
        "slice.dcm": (real_file("CT_small.dcm").read_bytes(), "CT"),
    }
    files = []
    for number, (name, (content, _)) in enumerate(bad.items()):
        (tmp_path / name).write_bytes(content)
        good = Path(shutil.copy(chest, tmp_path / f"good {number}.dcm"))
        files += [good, tmp_path / name]
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    files += [tmp_path / "folder", tmp_path / "pipe.png", tmp_path / "missing.png"]
    said = {name: words for name, (_, words) in bad.items()}
    said |= {"folder": "folder", "pipe.png": "regular file", "missing.png": "no such file"}

    done = classify(tiny_bundle_directory, *files, "--json")
    assert done.returncode == 1
    by_name = {Path(result["source"]).name: result for result in results(done)}
    assert list(by_name) == [path.name for path in files]
    lines = done.stderr.splitlines()[1:]
    assert len(lines) == len(said)
    for (name, words), line in zip(said.items(), lines, strict=True):
        assert line.startswith(f"edge-infer: {tmp_path / name}: refused: ")
        assert by_name[name]["status"] == "refused"
        assert by_name[name]["reason"] in line
        assert words in line
    goods = [chances(result) for name, result in by_name.items() if name.startswith("good")]
    assert len(goods) == len(bad)
    assert all((good == goods[0]).all() for good in goods)


def test_a_file_that_may_not_be_read_is_refused(tiny_bundle_directory: Path, tmp_path: Path, chest: Path) -> None:
    path = Path(shutil.copy(chest, tmp_path / "a.dcm"))
    path.chmod(0)
    done = classify(tiny_bundle_directory, path, prefix=UNPRIVILEGED)
    assert done.returncode == 1
    assert "may not be read: grant read permission" in error_line(done)


def test_names_of_any_bytes_are_told(tiny_bundle_directory: Path, tmp_path: Path, pictures: list[Path]) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe\xc3\xa9.png"
    shutil.copy(pictures[0], name)
    for option in ([], ["--json"]):
        done = classify(tiny_bundle_directory, os.fsdecode(name), *option)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1


# A bundle, a machine, a disk that does not fit


@pytest.mark.parametrize("arguments", [["classify", "a.png"], ["selftest"], ["bench", "--duration", "1"]])
def test_a_missing_bundle(arguments: list[str], tmp_path: Path) -> None:
    done = edge_infer(*arguments, "--bundle", tmp_path / "nowhere")
    assert done.returncode == 3
    assert "make one with" in error_line(done, notice=False)


def test_a_flipped_byte_in_any_file_of_a_real_bundle(int8_bundle: Path, tmp_path: Path, chest: Path) -> None:
    bundle = Path(shutil.copytree(int8_bundle, tmp_path / "bundle"))
    names = sorted(path.name for path in bundle.iterdir())
    assert len(names) >= 6
    for name in names:
        content = (bundle / name).read_bytes()
        middle = len(content) // 2
        (bundle / name).write_bytes(content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :])
        done = classify(bundle, chest, "--no-guard")
        assert done.returncode == 3, name
        assert done.stdout == ""
        assert name in error_line(done, notice=False)
        (bundle / name).write_bytes(content)
    assert classify(bundle, chest, "--no-guard").returncode == 0


def test_a_place_where_nothing_may_be_written(
    tiny_bundle_directory: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    done = classify(tiny_bundle_directory, *pictures, "--cam", tmp_path / "closed", prefix=UNPRIVILEGED)
    assert done.returncode == 3
    assert "Permission denied" in error_line(done)
    assert "grant permission or choose another place" in done.stderr
    assert list((tmp_path / "closed").iterdir()) == []


def test_a_full_disk_for_heat_maps(tiny_bundle_directory: Path, full_disk: Path, pictures: list[Path]) -> None:
    done = classify(tiny_bundle_directory, *pictures, "--cam", full_disk)
    assert done.returncode == 3
    assert "free space there or choose another place" in error_line(done)


def test_a_full_disk_for_a_report(tiny_bundle_directory: Path, full_disk: Path) -> None:
    bundle = ["--bundle", tiny_bundle_directory, "--backend", "onnxruntime"]
    done = edge_infer("bench", *bundle, "--duration", "0.2", "--report", full_disk)
    assert done.returncode == 3
    assert "free space there" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [path.name for path in full_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_behind_the_output(tiny_bundle_directory: Path, pictures: list[Path], buffered: bool) -> None:
    """With a buffer the disk is found full at the last flush only, and Python itself flushes once more at exit."""
    with Path("/dev/full").open("w") as full:
        done = classify(
            tiny_bundle_directory,
            pictures[0],
            "--json",
            stdout=full,
            stderr=subprocess.PIPE,
            capture_output=False,
            env={**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"},
        )
    assert done.returncode == 3
    assert "No space left on device" in error_line(done)


def test_a_reader_that_leaves_ends_it_quietly(tiny_bundle_directory: Path, pictures: list[Path]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = classify(
        tiny_bundle_directory, *pictures, "--json", stdout=write, stderr=subprocess.PIPE, capture_output=False
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr.splitlines() == ["edge-infer: random weights, for tests only"]


def test_an_interrupt_is_one_line(tiny_bundle_directory: Path, pictures: list[Path]) -> None:
    command = [EDGE_INFER, "classify", *pictures * 200, "--bundle", tiny_bundle_directory, "--backend", "onnxruntime"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # it is at work
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[1:] == ["edge-infer: interrupted"]


def test_many_files_take_no_more_memory_than_few(tiny_bundle_directory: Path, chest: Path) -> None:
    """Forty copies of a radiograph of 3.6 million pixels: kept all at once they would be 280 MB and more."""
    peaks = []
    for count in (4, 40):
        command = [
            EDGE_INFER,
            "classify",
            *[chest] * count,
            "--bundle",
            tiny_bundle_directory,
            "--backend",
            "onnxruntime",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss / 1024)
    assert peaks[1] < peaks[0] + 100, peaks
