"""Which images a build calibrates on and is judged by.

They are the user's own. Only the demo checkpoint, which was trained on synthetic phantoms, and random weights, which
were trained on nothing, may go without: phantoms are then rendered here, from seeds that training never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from calibration.choice import choose_by_finding
from calibration.dataset import CalibrationSet, from_files, from_folder, from_table
from calibration.judge import images_of, load_images
from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from edge.preprocess import Preprocess
from edge.progress import ProgressLine
from mdconv.data.phantom import CALIBRATION_SEEDS, TEST_SEEDS, labels_of
from mdconv.data.phantom.folder import phantom_name, write_folder, write_phantoms

CALIBRATION_SEED = CALIBRATION_SEEDS.start
CALIBRATION_POOL = 4096
"""How many phantoms there are to choose from: their findings are known without rendering them."""
CALIBRATION_IMAGES = 128
"""Most images to calibrate on, unless the user says otherwise."""
MINIMUM = 16
"""Least images for INT8: with fewer, a range is that of a few patients. A user who asks for fewer gets them."""
GATE_SEED = TEST_SEEDS.start
GATE_PHANTOMS = 200


class ImageFolder(NamedTuple):
    """A folder of images and what a manifest says of it (never its path, which may name a patient or a ward)."""

    directory: Path
    origin: str


class Calibration(NamedTuple):
    """The images to calibrate on and what a manifest says of where they come from (never their path)."""

    images: CalibrationSet
    origin: str


def calibration_images(
    given: Path | None, *, on_phantoms: bool, count: int | None, seed: int, preprocess: Preprocess, scratch: Path
) -> Calibration:
    """At most `count` images of the folder or table `given`, or of the phantoms, which are written under `scratch`.

    Raises `UsageError` where phantoms are no images of the checkpoint's kind and none are given, and as `from_folder`
    and `from_table` do.
    """
    count = count or CALIBRATION_IMAGES
    if given is None:
        if not on_phantoms:
            raise UsageError("no --calibration-data: name a folder of radiographs like those that the network will see")
        return _calibration_phantoms(scratch / "calibration", count, seed, preprocess)
    if given.is_dir():
        return Calibration(from_folder(given, count, preprocess, seed), "user's images")
    if given.suffix.lower() == ".csv" and given.is_file():
        return Calibration(from_table(given, count, preprocess, seed), "user's images")
    raise UsageError(
        f"--calibration-data {given} is no folder and no CSV file: name one that holds, or lists, radiographs"
    )


def check_enough(images: CalibrationSet, asked: int | None) -> None:
    """Raises `UsageError` for fewer than `MINIMUM` images to calibrate on, or than the user `asked` for if less."""
    least = min(MINIMUM, asked or MINIMUM)
    if len(images) < least:
        raise UsageError(
            f"{len(images)} images to calibrate on, INT8 needs at least {least}: add some to --calibration-data, or "
            f"say --calibration-images {len(images)} if so few are meant"
        )


def check_apart(
    calibration: CalibrationSet, given: Path | None, others: Mapping[str, Path | None], labels: Sequence[str]
) -> None:
    """Raises `UsageError` where a folder in `others`, by option, holds an image that the model is calibrated on.

    `given` is what ``--calibration-data`` named. Every image is decoded: this is said before the work, not after it.
    """
    calibrated_on = {digest: f"calibration image {path}" for digest, path in calibration.pixels.items()}
    for option, directory in others.items():
        if directory is None:
            continue
        existing_folder(directory, option)
        if given is not None and directory.samefile(given if given.is_dir() else given.parent):
            raise UsageError(
                f"--calibration-data and {option} are one folder: a model looks too good on the images that its ranges "
                "fit; split them into two folders, no patient in both"
            )
        paths = images_of(directory, labels, calibration.preprocess).paths
        with ProgressLine("checking") as progress:
            for _ in load_images(paths, calibration.preprocess, progress, option, calibrated_on):
                pass


def gate_images(given: Path | None, *, on_phantoms: bool, size: int, scratch: Path) -> ImageFolder | None:
    """The folder to judge the build by: the one `given`, or labelled phantoms, or None."""
    if given is not None:
        return ImageFolder(existing_folder(given, "--gate-data"), "user's images")
    if not on_phantoms:
        return None
    return _phantoms(scratch / "gate", GATE_SEED, GATE_PHANTOMS, size)


def existing_folder(directory: Path, option: str) -> Path:
    """`directory`, which `option` named. Raises `UsageError` if it is no folder."""
    if not directory.is_dir():
        raise UsageError(f"{option} {directory} is no folder: name one that holds radiographs")
    return directory


def _calibration_phantoms(directory: Path, count: int, seed: int, preprocess: Preprocess) -> Calibration:
    """Phantoms chosen by finding like any labelled images; only the chosen ones are rendered."""
    pool = range(CALIBRATION_SEED, CALIBRATION_SEED + max(CALIBRATION_POOL, count))
    numbers = {phantom_name(number): number for number in pool}
    findings = {
        name: [finding for finding, present in zip(CHESTXRAY14, labels_of(number)) if present]
        for name, number in numbers.items()
    }
    choice = choose_by_finding(findings, count, seed)
    write_phantoms(directory, [numbers[name] for name in choice.names], preprocess.input_size)
    images = from_files([directory / name for name in choice.names], preprocess, choice)
    return Calibration(images, f"synthetic phantoms, of seeds {pool[0]} to {pool[-1]}")


def _phantoms(directory: Path, seed: int, count: int, size: int) -> ImageFolder:
    write_folder(directory, count, seed, size)
    return ImageFolder(directory, f"synthetic phantoms, seeds {seed} to {seed + count - 1}")
