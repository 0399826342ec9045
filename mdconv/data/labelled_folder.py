"""A folder of images with a table in the layout of ChestX-ray14, as a hospital would hand its own test set over."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from edge.errors import UsageError, describe_os_error
from edge.labels import CHESTXRAY14
from mdconv.data.labelled_files import LabelledFiles

IMAGE, FINDINGS, PATIENT = "Image Index", "Finding Labels", "Patient ID"


def labelled_folder(folder: Path, table: Path, notice: str = "") -> LabelledFiles:
    """The images of `folder` that `table` lists, with the 14 findings of ChestX-ray14.

    Rows whose image is not in the folder are left out: the table usually covers more than one folder. Without a column
    of patients each image is its own. Raises `UsageError` for an unreadable table, an unknown finding or no image.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [(row[IMAGE], row[FINDINGS], row.get(PATIENT)) for row in csv.DictReader(file)]
    except OSError as error:
        raise UsageError(f"cannot read the labels: {describe_os_error(error)}") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{table} is not in ChestX-ray14's layout ({error!r}): expected columns {IMAGE!r} and {FINDINGS!r}"
        ) from error
    rows = [row for row in rows if (folder / row[0]).is_file()]
    if not rows:
        raise UsageError(f"none of the images that {table} lists is in {folder}: check both paths")
    truth = np.zeros((len(rows), len(CHESTXRAY14)), bool)
    for index, (name, text, _) in enumerate(rows):
        for finding in text.split("|"):
            if finding == "No Finding":
                continue
            if finding not in CHESTXRAY14:
                raise UsageError(f"{table}: {name} has {finding!r}, expected findings of ChestX-ray14")
            truth[index, CHESTXRAY14.index(finding)] = True
    return LabelledFiles(
        name="a folder of images",
        labels=CHESTXRAY14,
        exclusive=False,
        truth=truth,
        ids=tuple(name for name, _, _ in rows),
        patients=tuple(patient or name for name, _, patient in rows),
        notice=notice,
        files=tuple(str(folder / name) for name, _, _ in rows),
    )
