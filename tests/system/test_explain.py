"""The demo network's maps against the phantoms' known boxes, by the command, in float32 and in INT8."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

PHANTOMS = 100


class Scored(NamedTuple):
    report: dict[str, Any]
    rows: list[dict[str, str]]


def scored(bundle: Path, directory: Path) -> Scored:
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "mdconv.explain",
        "--model",
        bundle,
        "--phantoms",
        str(PHANTOMS),
        "--score",
    ]
    subprocess.run([*command, "--output", directory], capture_output=True, timeout=300, check=True)
    with (directory / "localisation.csv").open(newline="") as file:
        return Scored(json.loads((directory / "localisation.json").read_text()), list(csv.DictReader(file)))


@pytest.fixture(scope="module")
def fp32(fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return scored(fp32_bundle, tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="module")
def int8(int8_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return scored(int8_bundle, tmp_path_factory.mktemp("int8"))


def test_int8_points_where_float32_points(fp32: Scored, int8: Scored) -> None:
    where = [[(row["image"], row["finding"], row["side_px"]) for row in one.rows] for one in (fp32, int8)]
    assert where[0] == where[1]
    assert len(where[0]) > 60
    for name, least in (("hit", 0.85), ("near", 0.85)):
        same = [a[name] == b[name] for a, b in zip(fp32.rows, int8.rows)]
        assert np.mean(same) >= least
    overlaps = np.array([[float(row["overlap"]) for row in one.rows] for one in (fp32, int8)])
    assert np.abs(overlaps[0] - overlaps[1]).mean() < 0.05
    assert (fp32.report["model"]["precision"], int8.report["model"]["precision"]) == ("fp32", "int8")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_maps_point_at_four_of_five_lesions_above_64_pixels(precision: str, request: pytest.FixtureRequest) -> None:
    """The pointing game without tolerance, over findings; a map that points nowhere hits what its box covers, a tenth."""
    report = request.getfixturevalue(precision).report
    hit = report["sizes"]["large"]["all findings"]["hit"]
    assert hit["of"] > 50
    assert hit["rate"] >= 0.8
