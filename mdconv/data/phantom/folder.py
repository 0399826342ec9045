"""Phantoms as files, in the layout of ChestX-ray14."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import cv2

from edge.errors import MachineError, describe_os_error
from mdconv.data.phantom import render


def write_folder(output: Path, count: int, seed: int, size: int) -> None:
    """Write the phantoms of `count` seeds from `seed` on: see `write_phantoms`."""
    write_phantoms(output, range(seed, seed + count), size)


def phantom_name(seed: int) -> str:
    """The file's name of the phantom of a seed."""
    return f"phantom-{seed:07d}.png"


def write_phantoms(output: Path, seeds: Iterable[int], size: int) -> None:
    """Write a PNG a seed, and `labels.csv`, into `output`, made if needed. Raises `MachineError` if that fails."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (output / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("Image Index", "Finding Labels", "Patient ID"))
            for number in seeds:
                phantom = render(number, size)
                name = phantom_name(number)
                _, png = cv2.imencode(".png", phantom.image)
                (output / name).write_bytes(png.tobytes())
                table.writerow((name, "|".join(phantom.findings) or "No Finding", Path(name).stem))
    except OSError as error:
        raise MachineError(f"cannot write phantoms: {describe_os_error(error)}") from error
