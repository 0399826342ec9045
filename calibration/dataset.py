"""The images that a model is calibrated on: real ones, chosen the same way everywhere, read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.bundle import sha256_of
from edge.errors import InputRefusedError, UsageError, describe_os_error
from edge.preprocess import Preprocess, load_image

SUFFIXES = ("", ".dcm", ".dicom", ".jpeg", ".jpg", ".png")
"""Names of files that are taken for images. DICOM files often have no suffix."""


@dataclass(frozen=True)
class CalibrationSet:
    """Images in a fixed order. Iterating decodes one after the other; nothing is kept. Made by `from_files`."""

    paths: tuple[Path, ...]
    preprocess: Preprocess
    digest: str
    """SHA-256 over the sorted SHA-256s of the files' contents: the set's identity, whatever names and order."""

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Each image as (1, 1, S, S) uint8. Raises `UsageError` naming the first file that is no usable image."""
        for path in self.paths:
            try:
                image = load_image(path, self.preprocess)
            except InputRefusedError as error:
                raise UsageError(
                    f"calibration image {path}: {error}: mend the file or take it out of the set"
                ) from None
            yield image[None, None]


def from_files(paths: Sequence[Path], preprocess: Preprocess) -> CalibrationSet:
    """The set of exactly these files, sorted by path.

    Raises `UsageError` for an empty set (a model is never calibrated on made-up data), a file that cannot be read, and
    two files with one content: they would count an image twice.
    """
    if not paths:
        raise UsageError("no calibration image: name at least one radiograph like those that the network will see")
    contents: dict[str, Path] = {}
    for path in sorted(paths):
        try:
            content = sha256_of(path)
        except OSError as error:
            raise UsageError(f"calibration image cannot be read: {describe_os_error(error)}") from None
        if content in contents:
            raise UsageError(f"calibration images {contents[content]} and {path} are the same file: take one out")
        contents[content] = path
    digest = hashlib.sha256("".join(sorted(contents)).encode()).hexdigest()
    return CalibrationSet(tuple(contents.values()), preprocess, digest)


def from_folder(directory: Path, count: int, preprocess: Preprocess, seed: int = 0) -> CalibrationSet:
    """At most `count` of the images in `directory` and below it.

    Which ones depends on their names and `seed` only, not on the order in which the file system lists them. Raises
    `UsageError` as `from_files` does, and if the folder holds no image at all.
    """
    files = {
        path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if _is_image(path, directory)
    }
    if not files:
        raise UsageError(
            f"{directory} holds no image ({', '.join(filter(None, SUFFIXES))}): name a folder of radiographs"
        )
    ranked = sorted(files, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return from_files([files[name] for name in ranked[:count]], preprocess)


def _is_image(path: Path, directory: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()
