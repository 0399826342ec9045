"""Which images a build calibrates on and is judged by.

They are the user's own. Only the demo checkpoint, which was trained on synthetic phantoms, and random weights, which
were trained on nothing, may go without: phantoms are then rendered here, from seeds that training never saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edge.errors import UsageError
from mdconv.data.phantom.folder import write_folder

CALIBRATION_SEED = 3_000_000
GATE_SEED = 2_000_000
GATE_PHANTOMS = 200


class ImageFolder(NamedTuple):
    """A folder of images and what a manifest says of it (never its path, which may name a patient or a ward)."""

    directory: Path
    origin: str


def calibration_images(given: Path | None, *, on_phantoms: bool, count: int, size: int, scratch: Path) -> ImageFolder:
    """The folder to calibrate on: the one `given`, or `count` phantoms written under `scratch`.

    Raises `UsageError` where phantoms are no images of the checkpoint's kind and none are given.
    """
    if given is not None:
        return ImageFolder(_existing(given, "--calibration-data"), "user's images")
    if not on_phantoms:
        raise UsageError("no --calibration-data: name a folder of radiographs like those that the network will see")
    return _phantoms(scratch / "calibration", CALIBRATION_SEED, count, size)


def gate_images(given: Path | None, *, on_phantoms: bool, size: int, scratch: Path) -> ImageFolder | None:
    """The folder to judge the build by: the one `given`, or labelled phantoms, or None."""
    if given is not None:
        return ImageFolder(_existing(given, "--gate-data"), "user's images")
    if not on_phantoms:
        return None
    return _phantoms(scratch / "gate", GATE_SEED, GATE_PHANTOMS, size)


def _existing(directory: Path, option: str) -> Path:
    if not directory.is_dir():
        raise UsageError(f"{option} {directory} is no folder: name one that holds radiographs")
    return directory


def _phantoms(directory: Path, seed: int, count: int, size: int) -> ImageFolder:
    write_folder(directory, count, seed, size)
    return ImageFolder(directory, f"synthetic phantoms, seeds {seed} to {seed + count - 1}")
