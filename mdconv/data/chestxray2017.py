"""ChestX-ray2017: 5,856 chest radiographs of children, without or with pneumonia (Kermany et al., Cell 2018).

A folder holds `chest_xray/{train,test}/{NORMAL,PNEUMONIA}/*.jpeg`, or is that `chest_xray` itself. A later release
moved 16 images of `train` to a folder `val`: here they are trained on again, since 16 images choose nothing well. A
tenth of the patients of the training part, drawn with a fixed seed, is kept back to validate with. `test` is the test.

Whose an image is, its name says: `person17_bacteria_56.jpeg`, `person100_virus_184.jpeg`, `IM-0115-0001.jpeg`,
`NORMAL2-IM-0383-0001.jpeg` (`-0001-0002` where there are several), and in another release `BACTERIA-1008087-0001.jpeg`,
`VIRUS-...`, `NORMAL-...`. How far a number identifies a patient is nowhere written down:

- Bacterial and viral images are two series that count persons alike, and many numbers occur in both. Here a number is
  one patient whatever the kind, and so are `IM` and `NORMAL2-IM` of the same number: nobody can then be both trained
  and validated on. At worst two patients stay together.
- Numbers occur in `train` as in `test`: person100_virus_184 in the one, person100_bacteria_475 in the other. The paper
  counts the test's 624 patients apart from the training's; the names can neither show nor refute it. So the folder is
  a part of the patient's name here, and the release's own test is taken as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from edge.errors import UsageError, describe_os_error
from mdconv.data.labelled_files import LabelledFiles
from mdconv.data.split import Split, check_split, validation_patients

Task = Literal["pneumonia", "kind"]
"""Normal or pneumonia, of all images; bacterial or viral, of those with pneumonia (Table 8 of the paper)."""

NOTICE = "ChestX-ray2017 (Kermany et al., Cell 2018), research use only"
LABELS: Mapping[str, tuple[str, str]] = {"pneumonia": ("Normal", "Pneumonia"), "kind": ("Bacterial", "Viral")}
VALIDATION_SHARE = 1 / 10
"""Of the training patients."""

_FOLDERS = {"NORMAL": "normal", "PNEUMONIA": "pneumonia"}
_NAMES = (
    re.compile(r"person(?P<person>\d+)_(?P<kind>bacteria|virus)_\d+\.jpeg"),
    re.compile(r"(?:NORMAL2-)?(?P<kind>IM)-(?P<person>\d+)-\d+(?:-\d+)?\.jpeg"),
    re.compile(r"(?P<kind>BACTERIA|VIRUS|NORMAL)-(?P<person>\d+)-\d+\.jpeg"),
)
_KINDS = {"im": "normal", "normal": "normal", "bacteria": "bacterial", "virus": "viral"}


class _Image(NamedTuple):
    path: Path
    name: str
    """Within the data set."""
    patient: str
    kind: str
    """normal, bacterial or viral."""


def load(folder: Path, split: Split, task: Task) -> LabelledFiles:
    """A part of the data set in `folder`, by name; each image has one of the task's two labels.

    Raises `UsageError` if folders or images are missing, or if an image's name is of no known form or contradicts its
    folder (it is named).
    """
    check_split(split)
    if task not in LABELS:
        raise UsageError(f"no task {task!r}: expected one of {', '.join(LABELS)}")
    root = _root(folder)
    if split == "test":
        images = _list(root, "test", "test")
    else:
        images = [*_list(root, "train", "train"), *(_list(root, "val", "train") if (root / "val").exists() else [])]
        # Drawn from all images, so that both tasks keep the same patients back.
        kept_back = validation_patients((image.patient for image in images), VALIDATION_SHARE)
        images = [image for image in images if (image.patient in kept_back) == (split == "validation")]
    if task == "kind":
        images = [image for image in images if image.kind != "normal"]
    if not images:
        raise UsageError(f"{root} has no image for {split} of {task}: unpack the whole release there")
    second = np.array([image.kind == "viral" if task == "kind" else image.kind != "normal" for image in images])
    return LabelledFiles(
        name=f"chestxray2017 {task} {split}",
        labels=LABELS[task],
        exclusive=True,
        truth=np.stack([~second, second], axis=1),
        ids=tuple(image.name for image in images),
        patients=tuple(image.patient for image in images),
        notice=NOTICE,
        files=tuple(str(image.path) for image in images),
    )


def _root(folder: Path) -> Path:
    for root in (folder, folder / "chest_xray"):
        if (root / "train").is_dir() and (root / "test").is_dir():
            return root
    raise UsageError(
        f"{folder} has no folders train and test, nor has {folder / 'chest_xray'}: unpack the release there"
    )


def _list(root: Path, part: str, named: str) -> list[_Image]:
    """The images of a folder of the release, as patients of part `named`, by name."""
    images = []
    for folder, expected in _FOLDERS.items():
        place = root / part / folder
        try:
            paths = sorted(path for path in place.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise UsageError(f"the images cannot be listed: {describe_os_error(error)}") from None
        for path in paths:
            person, kind = _parse(path)
            if (kind == "normal") != (expected == "normal"):
                raise UsageError(f"{path}: the name says {kind}, the folder {expected}: put it where it belongs")
            # Of children without pneumonia numbers are a series of their own.
            patient = f"{named}/{'normal' if kind == 'normal' else 'person'}{person}"
            images.append(_Image(path, f"{part}/{folder}/{path.name}", patient, kind))
    return images


def _parse(path: Path) -> tuple[int, str]:
    """Number of the person and kind of the image, from the file's name."""
    for pattern in _NAMES:
        if match := pattern.fullmatch(path.name):
            return int(match["person"]), _KINDS[match["kind"].lower()]
    raise UsageError(
        f"{path}: the name says neither patient nor kind: expected one like person1_bacteria_2.jpeg, "
        "person1_virus_6.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-0383-0001.jpeg or VIRUS-1-0001.jpeg: take it out"
    )
