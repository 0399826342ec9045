"""The two tables of ChestX-ray14 as NIH distributes them: findings and patients, and boxes. Checked in every row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from mdconv.data.cases import Box
from mdconv.data.tables import read_rows

SIDE = 1024
"""Pixels a side of NIH's images, which boxes are given in."""

_NO_FINDING = "No Finding"
_COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Sex", "View Position")
_OTHER_NAMES = {"Patient Gender": "Patient Sex"}
"""Columns that one release names otherwise."""
_BOX_COLUMNS = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
_BOX_SPELLING = {"Infiltrate": "Infiltration"}
"""What the list of boxes spells otherwise than the table."""
_INTEGER = re.compile(r"[0-9]{1,18}")
_AGE = re.compile(r"([0-9]{1,4})([YMD]?)")
_AGES_A_YEAR = {"": 1, "Y": 1, "M": 12, "D": 365}


@dataclass(frozen=True)
class Table:
    """The N rows of `Data_Entry_2017*.csv`, in the file's order; row i is line i + 2 of the file."""

    path: Path
    images: tuple[str, ...]
    """File names."""
    findings: NDArray[np.bool_]
    """(N, 14), in the order of `edge.labels.CHESTXRAY14`."""
    patients: NDArray[np.int64]
    follow_ups: NDArray[np.int64]
    ages: NDArray[np.int64]
    """Whole years, as the file has them."""
    sexes: NDArray[np.str_]
    """M or F."""
    views: NDArray[np.str_]
    """PA or AP."""

    def __len__(self) -> int:
        return len(self.images)


def read_table(path: Path) -> Table:
    """All rows of `Data_Entry_2017*.csv`, of either release, plain or `.gz`.

    Raises `UsageError` naming file and row for other columns, a row of another length, an image listed twice, an
    unknown finding, or a number that is none.
    """
    header, *rows = read_rows(path)
    names = [_OTHER_NAMES.get(name, name) for name in _without_trailing(header)]
    for column in _COLUMNS:
        if names.count(column) != 1:
            raise UsageError(f"{path}, row 1: the columns are {header}, expected one {column!r} among them")
    width = len(names)
    for line, row in enumerate(rows, 2):
        if len(row) < width or any(row[width:]):
            raise UsageError(f"{path}, row {line}: {len(row)} values, expected {width}: get the file again")
    columns = [tuple(row[names.index(column)] for row in rows) for column in _COLUMNS]
    images, labels, follow_ups, patients, ages, sexes, views = columns
    refuse_duplicates(path, images, first_line=2)
    return Table(
        path=path,
        images=images,
        findings=_parse_findings(path, labels),
        patients=_parse_integers(path, "Patient ID", patients),
        follow_ups=_parse_integers(path, "Follow-up #", follow_ups),
        ages=_parse_ages(path, ages),
        sexes=np.array(sexes, np.str_),
        views=np.array(views, np.str_),
    )


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """The boxes of `BBox_List_2017.csv`, plain or `.gz`, by image, in pixels of 1024 x 1024.

    Raises `UsageError` naming file and row for other columns, a row of another length, an unknown finding, or a box
    that is none or not within the image.
    """
    header, *rows = read_rows(path)
    if _without_trailing(header) != _BOX_COLUMNS:  # the header ends in three commas more than the rows have
        raise UsageError(f"{path}, row 1: the columns are {header}, expected {','.join(_BOX_COLUMNS)}")
    boxes: dict[str, list[Box]] = {}
    for line, row in enumerate(map(_without_trailing, rows), 2):
        if len(row) != len(_BOX_COLUMNS):
            raise UsageError(f"{path}, row {line}: {len(row)} values, expected {len(_BOX_COLUMNS)}: get the file again")
        image, spelled, *corner_and_size = row
        finding = _BOX_SPELLING.get(spelled, spelled)
        if finding not in CHESTXRAY14:
            raise UsageError(f"{path}, row {line}: unknown finding {spelled!r}: expected one of ChestX-ray14's")
        try:
            x, y, width, height = map(float, corner_and_size)
        except ValueError:
            x = y = width = height = math.nan
        if not (0 <= x < x + width <= SIDE and 0 <= y < y + height <= SIDE):
            raise UsageError(
                f"{path}, row {line}: the box is {corner_and_size}, expected x, y, width and height within "
                f"{SIDE} x {SIDE} pixels"
            )
        boxes.setdefault(image, []).append(Box(finding, x, y, width, height))
    return boxes


def refuse_duplicates(path: Path, names: Sequence[str], first_line: int) -> None:
    """Raise `UsageError` if one of `names`, from line `first_line` of a file on, stands there twice."""
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for line, name in enumerate(names, first_line):
        if name in first:
            raise UsageError(f"{path}, row {line}: {name} is in row {first[name]} too: keep one of the rows")
        first[name] = line


def _without_trailing(row: list[str]) -> list[str]:
    """A row without the empty values at its end: some releases end their lines in commas."""
    width = len(row)
    while width and not row[width - 1]:
        width -= 1
    return row[:width]


def _parse_findings(path: Path, labels: Sequence[str]) -> NDArray[np.bool_]:
    """(N, 14) from texts like "Mass|Nodule" or "No Finding": of N, few are different."""
    number: dict[str, int] = {}
    codes = np.array([number.setdefault(text, len(number)) for text in labels], np.int64)
    known = np.zeros((len(number), len(CHESTXRAY14)), np.bool_)
    for text, code in number.items():
        findings = text.split("|")
        for finding in [] if findings == [_NO_FINDING] else findings:
            if finding not in CHESTXRAY14:
                line = labels.index(text) + 2
                raise UsageError(
                    f"{path}, row {line}: unknown finding {finding!r} in {text!r}: expected {_NO_FINDING!r} alone, or "
                    f"of ChestX-ray14's {', '.join(CHESTXRAY14)}"
                )
            known[code, CHESTXRAY14.index(finding)] = True
    return known[codes]


def _parse_integers(path: Path, column: str, values: Sequence[str]) -> NDArray[np.int64]:
    for line, value in enumerate(values, 2):
        if not _INTEGER.fullmatch(value):
            raise UsageError(f"{path}, row {line}: {column} is {value!r}, expected a number: get the file again")
    return np.array(values, np.str_).astype(np.int64) if values else np.empty(0, np.int64)


def _parse_ages(path: Path, values: Sequence[str]) -> NDArray[np.int64]:
    """Years from "58", or as the first release has them from "058Y", "013M" (months), "021D" (days)."""
    years: dict[str, int] = {}
    for text in set(values):
        match = _AGE.fullmatch(text)
        if not match:
            line = values.index(text) + 2
            raise UsageError(f"{path}, row {line}: Patient Age is {text!r}, expected years: get the file again")
        years[text] = int(match[1]) // _AGES_A_YEAR[match[2]]
    return np.array([years[text] for text in values], np.int64)
