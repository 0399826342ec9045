"""`python -m mdconv.data.box_statistics`: the table against independent figures, the plot, the shipped sizes."""

from __future__ import annotations

import csv
import gzip
import math
import statistics
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from mdconv.data.box_statistics import as_text, main, read_sizes, summarise


def test_the_table_of_the_real_boxes(shared_nih: Path) -> None:
    path = shared_nih / "BBox_List_2017.csv.gz"
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.reader(file))[1:]
    summaries = summarise(read_sizes(path))
    assert [summary.finding for summary in summaries[::3]] == [
        "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax", "all",
    ]  # fmt: skip
    for summary in summaries:
        spelled = {"Infiltration": "Infiltrate"}.get(summary.finding, summary.finding)
        chosen = [row for row in rows if summary.finding == "all" or row[1] == spelled]
        sizes = [(float(row[4]), float(row[5])) for row in chosen]
        values = [
            {"width": width, "height": height, "sqrt(area)": math.sqrt(width * height)}[summary.measure]
            for width, height in sizes
        ]
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
        assert summary[2:] == pytest.approx((len(values), min(values), *quartiles, max(values)))
    assert "Nodule        sqrt(area)   79    29.1    55.5    69.3    83.3   135.8" in as_text(summaries)


def test_the_shipped_sizes_are_the_real_ones(shared_nih: Path) -> None:
    real, shipped = read_sizes(shared_nih / "BBox_List_2017.csv.gz"), read_sizes()
    assert list(real) == list(shipped)
    for finding, sizes in real.items():
        rounded = np.array(sorted(sizes.round(1).tolist()))
        np.testing.assert_allclose(np.array(sorted(shipped[finding].tolist())), rounded, atol=1e-9)


def test_the_command_prints_the_table_and_draws_the_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "figure"
    assert main(["--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(as_text(summarise(read_sizes())))
    assert "Wang et al., CVPR 2017" in printed and str(folder / "box_sizes.svg") in printed
    picture = cv2.imread(str(folder / "box_sizes.png"))
    assert picture is not None and picture.std() > 10
    drawn = (folder / "box_sizes.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert main(["--output", str(folder)]) == 0
    assert (folder / "box_sizes.svg").read_text() == drawn


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "boxes.csv"
    empty.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n")
    (tmp_path / "file").touch()
    for arguments, status, expected in (
        (["--boxes", str(tmp_path / "absent.csv")], 2, "absent.csv cannot be read"),
        (["--boxes", str(empty)], 2, "lists no box"),
        (["--output", str(tmp_path / "file")], 3, "cannot write the plot"),
    ):
        assert main(arguments) == status
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
