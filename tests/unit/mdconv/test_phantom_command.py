"""`python -m mdconv.data.phantom`, and sets of phantoms kept in files."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.errors import MachineError
from mdconv.data.phantom import render
from mdconv.data.phantom.__main__ import main
from mdconv.data.phantom.sets import phantom_set


def test_the_command_writes_a_folder_like_chestxray14(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "phantoms"
    command = [sys.executable, "-m", "mdconv.data.phantom", "--output", str(folder)]
    done = subprocess.run(
        [*command, "--count", "3", "--seed", "4000000", "--size", "128"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "research use only" in done.stdout
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for number, row in enumerate(rows):
        image = cv2.imread(str(folder / row["Image Index"]), cv2.IMREAD_UNCHANGED)
        expected = render(4_000_000 + number, 128)
        assert np.array_equal(image, expected.image)
        assert row["Finding Labels"] == ("|".join(expected.findings) or "No Finding")
        assert row["Patient ID"].startswith("phantom-")


@pytest.mark.parametrize(
    "wrong", [["--count", "0"], ["--count", "1", "--size", "9999"], ["--count", "1", "--seed", "-3"]]
)
def test_wrong_use_is_one_line(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--output", str(tmp_path / "file"), "--count", "1"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_kept_set_is_the_rendered_one(tmp_path: Path) -> None:
    seeds = range(100, 109)
    images, labels = phantom_set(seeds, 64)
    assert images.shape == (9, 1, 64, 64) and labels.shape == (9, 14)
    for index, seed in enumerate(seeds):
        assert np.array_equal(images[index, 0], render(seed, 64).image)
        assert tuple(labels[index]) == render(seed, 64).labels
    for _ in range(2):  # made, then read back
        kept, truth = phantom_set(seeds, 64, tmp_path / "cache")
        assert np.array_equal(kept, images) and np.array_equal(truth, labels)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot keep phantoms"):
        phantom_set(range(2), 32, tmp_path / "file")
