"""NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients, 14 findings (Wang et al., CVPR 2017).

A folder holds what NIH distributes: `Data_Entry_2017*.csv`, `train_val_list.txt`, `test_list.txt`, perhaps
`BBox_List_2017.csv` (a CSV plain or `.gz`), and the images in `images/` or in `images_001/` to `images_012/`, there
perhaps in a folder `images/` again. NIH's lists decide what is tested on. An eighth of the patients of
`train_val_list.txt`, drawn with a fixed seed, is kept back to validate with: so the three parts are about 70, 10 and
20 % of the images, as in Wang et al.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import UsageError, describe_os_error
from edge.labels import CHESTXRAY14
from mdconv.data.cases import Box
from mdconv.data.labelled_files import LabelledFiles
from mdconv.data.nih_tables import SIDE, Table, refuse_duplicates
from mdconv.data.nih_tables import read_boxes as read_boxes
from mdconv.data.nih_tables import read_table as read_table
from mdconv.data.split import Split, check_split, validation_patients
from mdconv.data.tables import read_list

NOTICE = "NIH ChestX-ray14 (Wang et al., CVPR 2017), research use only"
TABLE, BOXES = "Data_Entry_2017*.csv", "BBox_List_2017*.csv"
TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
IMAGE_FOLDERS = ("images", *(f"images_{number:03d}" for number in range(1, 13)))
VALIDATION_SHARE = 1 / 8
"""Of the patients of `TRAIN_LIST`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChestXray14Cases(LabelledFiles):
    """A part of ChestX-ray14. Made by `load`."""

    known_boxes: Mapping[str, Sequence[Box]]
    """Boxes of the images that have some, in pixels of 1024 x 1024."""
    missing: tuple[str, ...]
    """Images of this part that the folder lacks: left out."""

    def boxes(self, index: int, size: int) -> list[Box]:
        scale = size / SIDE
        return [
            Box(box.finding, scale * box.x, scale * box.y, scale * box.width, scale * box.height)
            for box in self.known_boxes.get(self.ids[index], ())
        ]


def load(folder: Path, split: Split, *, skip_missing: bool = False) -> ChestXray14Cases:
    """A part of the data set in `folder`, in the order of its list.

    Args:
        skip_missing: images that a list names and the folder lacks are left out, logged, and counted in the name of
            the set, instead of refused.

    Raises:
        UsageError: the folder has no table or no lists; a missing image; a table, list or box that is not as NIH's
            (file and row are named); one patient's images are in both lists; no image is left.
    """
    check_split(split)
    table_path = _find(folder, TABLE)
    if table_path is None:
        raise UsageError(f"{folder} has no {TABLE}: get it from NIH's release of ChestX-ray14")
    table = read_table(table_path)
    found = _index_images(folder, set(table.images))
    listed = _read_lists(folder, table)
    _refuse_leakage(folder, table, listed)
    rows, absent = _present(folder, table, listed, split, found, refuse=not skip_missing)
    if not rows:
        raise UsageError(f"{folder} has no image for {split} ({len(absent):,} are missing): check lists and images")
    boxes = _find(folder, BOXES)
    return ChestXray14Cases(
        name=f"chestxray14 {split}" + (f", {len(absent):,} images missing" if absent else ""),
        labels=CHESTXRAY14,
        exclusive=False,
        truth=table.findings[rows],
        ids=tuple(table.images[row] for row in rows),
        patients=tuple(map(str, table.patients[rows].tolist())),
        notice=NOTICE,
        files=tuple(found[table.images[row]] for row in rows),
        known_boxes=read_boxes(boxes) if boxes else {},
        missing=absent,
    )


def _find(folder: Path, pattern: str) -> Path | None:
    """The one file of `folder` of that name, plain or `.gz`, if there is one."""
    matches = sorted([*folder.glob(pattern), *folder.glob(pattern + ".gz")])
    if len(matches) > 1:
        raise UsageError(f"{folder} has {' and '.join(match.name for match in matches)}: keep the one to use")
    return matches[0] if matches else None


def _read_lists(folder: Path, table: Table) -> dict[str, list[int]]:
    """Rows of `table` of the images that each list names, in the list's order."""
    row_of = {name: row for row, name in enumerate(table.images)}
    listed = {}
    for path in (folder / TRAIN_LIST, folder / TEST_LIST):
        if not path.exists():
            raise UsageError(
                f"{folder} has no {path.name}, which says whose images are tested on: get it from NIH's release"
            )
        names = read_list(path)
        refuse_duplicates(path, names, first_line=1)
        for line, name in enumerate(names, 1):
            if name not in row_of:
                raise UsageError(f"{path}, row {line}: {name!r} is not in {table.path}: use files of one release")
        listed[path.name] = [row_of[name] for name in names]
    return listed


def _refuse_leakage(folder: Path, table: Table, listed: Mapping[str, list[int]]) -> None:
    """A patient whom the network has seen in training makes a test easier than the next patient will be."""
    patients = {name: table.patients[rows] for name, rows in listed.items()}
    shared = np.intersect1d(patients[TRAIN_LIST], patients[TEST_LIST])
    if len(shared):
        places = [f"{folder / name}, row {np.argmax(patients[name] == shared[0]) + 1}" for name in patients]
        raise UsageError(
            f"patient {shared[0]} is in {' and in '.join(places)} ({len(shared):,} patients are in both lists): "
            "use NIH's own lists, or take each patient out of one"
        )


def _choose(table: Table, listed: Mapping[str, list[int]], split: Split) -> list[int]:
    """Rows of the part. Whom validation gets depends on the list alone, not on which images are there."""
    if split == "test":
        return listed[TEST_LIST]
    patients: NDArray[np.int64] = table.patients[listed[TRAIN_LIST]]
    kept_back = validation_patients(map(str, patients.tolist()), VALIDATION_SHARE)
    return [
        row
        for row, patient in zip(listed[TRAIN_LIST], patients.tolist())
        if (str(patient) in kept_back) == (split == "validation")
    ]


def _present(
    folder: Path, table: Table, listed: Mapping[str, list[int]], split: Split, found: Mapping[str, str], *, refuse: bool
) -> tuple[list[int], tuple[str, ...]]:
    """Rows of the part whose images are there, and the names of the others: refused, or logged."""
    rows = _choose(table, listed, split)
    absent = [row for row in rows if table.images[row] not in found]
    if not absent:
        return rows, ()
    names = tuple(table.images[row] for row in absent)
    text = f"{len(absent):,} of {len(rows):,} images for {split} are missing"
    if refuse:
        source = TEST_LIST if split == "test" else TRAIN_LIST
        raise UsageError(
            f"{folder / source}, row {listed[source].index(absent[0]) + 1}: no {names[0]} in images/ or images_001/ to "
            f"images_012/ of {folder} ({text}): unpack all archives there, or add --skip-missing"
        )
    _log.warning("%s: %s and left out: %s%s", folder, text, ", ".join(names[:5]), ", ..." if len(names) > 5 else "")
    return [row for row in rows if table.images[row] in found], names


def _index_images(folder: Path, wanted: Collection[str]) -> dict[str, str]:
    """Path of each image by its name, from one listing a folder: none of 112,120 files is asked for by itself."""
    found: dict[str, str] = {}
    for name in IMAGE_FOLDERS:
        for place in (folder / name, folder / name / "images"):
            try:
                with os.scandir(place) as entries:
                    files = [(entry.name, entry.path) for entry in entries if entry.name in wanted and entry.is_file()]
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise UsageError(f"the images cannot be listed: {describe_os_error(error)}") from None
            for image, path in files:
                if image in found:
                    raise UsageError(f"{found[image]} and {path} are both {image}: keep one of them")
                found[image] = path
    return found
