"""The images that a model is calibrated on: real ones, chosen the same way everywhere, read one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.choice import Choice, choose_by_finding, choose_by_name
from calibration.finding_table import read_rows
from calibration.gate import FINDINGS_COLUMN, IMAGE_COLUMN, LABELS_FILE, NO_FINDING
from edge.bundle import sha256_of
from edge.errors import InputRefusedError, UsageError, describe_os_error
from edge.preprocess import Preprocess, load_image

SUFFIXES = ("", ".dcm", ".dicom", ".jpeg", ".jpg", ".png")
"""Names of files that are taken for images. DICOM files often have no suffix."""


@dataclass(frozen=True)
class CalibrationSet:
    """Images in a fixed order. Iterating decodes one after the other; nothing is kept. Made by the functions below."""

    paths: tuple[Path, ...]
    preprocess: Preprocess
    digest: str
    """SHA-256 over the sorted SHA-256s of the files' contents: the set's identity, whatever names and order."""
    choice: Choice | None = None
    """How they were chosen; None where exactly these files were named."""

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Each image as (1, 1, S, S) uint8.

        Raises `UsageError` naming the first file that is no usable image, or the first two that are one picture: the
        same in DICOM and PNG, say. Of each image a digest is kept for that.
        """
        seen: dict[str, Path] = {}
        for path in self.paths:
            try:
                image = load_image(path, self.preprocess)
            except InputRefusedError as error:
                raise UsageError(
                    f"calibration image {path}: {error}: mend the file or take it out of the set"
                ) from None
            first = seen.setdefault(pixel_digest(image), path)
            if first != path:
                raise UsageError(f"calibration images {first} and {path} are the same picture: take one out of the set")
            yield image[None, None]

    @cached_property
    def pixels(self) -> dict[str, Path]:
        """File of each image, by its `pixel_digest`. Reads all of them, once; raises as iterating does."""
        return {pixel_digest(image): path for path, image in zip(self.paths, self)}


def pixel_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of the pixels that a network gets, (..., S, S) uint8: the same for one picture in DICOM and PNG."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def from_files(paths: Sequence[Path], preprocess: Preprocess, choice: Choice | None = None) -> CalibrationSet:
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
    return CalibrationSet(tuple(contents.values()), preprocess, digest, choice)


def from_folder(directory: Path, count: int, preprocess: Preprocess, seed: int = 0) -> CalibrationSet:
    """At most `count` of the images in `directory` and below it: see `from_table` where it holds ``labels.csv``.

    Which ones depends on their names and `seed` only, not on the order in which the file system lists them. Raises
    `UsageError` as `from_files` does, and if the folder holds no image at all.
    """
    if (directory / LABELS_FILE).is_file():
        return from_table(directory / LABELS_FILE, count, preprocess, seed)
    files = {
        path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if _is_image(path, directory)
    }
    if not files:
        raise UsageError(
            f"{directory} holds no image ({', '.join(filter(None, SUFFIXES))}): name a folder of radiographs"
        )
    choice = choose_by_name(files, count, seed)
    return from_files([files[name] for name in choice.names], preprocess, choice)


def from_table(table: Path, count: int, preprocess: Preprocess, seed: int = 0) -> CalibrationSet:
    """At most `count` of the images that `table` lists, stratified by finding (`choose_by_finding`).

    `table` has ChestX-ray14's columns; an image lies in its folder or anywhere below it. Which ones are chosen depends
    on the table and `seed` only. Raises `UsageError` as `from_files` does, and naming the row for an image that is
    missing, listed twice or there twice, and for a row without image or findings.
    """
    findings: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for line, row in read_rows(table, (IMAGE_COLUMN, FINDINGS_COLUMN)):
        name, joined = row[IMAGE_COLUMN], row[FINDINGS_COLUMN]
        shown = [finding.strip() for finding in (joined or "").split("|") if finding.strip()]
        if not name or not shown:
            raise UsageError(
                f"{table}, row {line}: image {name!r} and findings {joined!r}, expected both ({NO_FINDING!r} for none)"
            )
        if name in findings:
            raise UsageError(f"{table}, row {line}: {name} was listed before, in row {lines[name]}: keep one of them")
        findings[name], lines[name] = [finding for finding in shown if finding != NO_FINDING], line
    if not findings:
        raise UsageError(f"{table} lists no image: add one row an image")
    files = _locate(table, lines)
    choice = choose_by_finding(findings, count, seed)
    return from_files([files[name] for name in choice.names], preprocess, choice)


def _locate(table: Path, lines: Mapping[str, int]) -> dict[str, Path]:
    """The file of each image that `table` lists, `lines` being the images' rows."""
    folder = table.parent
    files = {name: folder / name for name in lines if (folder / name).is_file()}
    if len(files) < len(lines):
        for path in sorted(folder.rglob("*")):
            name = path.name
            if name not in lines or files.get(name) == folder / name or not path.is_file():
                continue
            if name in files:
                raise UsageError(
                    f"{table}, row {lines[name]}: {files[name]} and {path} are both {name}: keep one of them"
                )
            files[name] = path
    absent = [name for name in lines if name not in files]
    if absent:
        raise UsageError(
            f"{table}, row {lines[absent[0]]}: no file {absent[0]} in {folder} or below it ({len(absent)} of "
            f"{len(lines)} images are missing): copy them there or take their rows out"
        )
    return files


def _is_image(path: Path, directory: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()
