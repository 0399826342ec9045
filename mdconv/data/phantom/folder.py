"""Phantoms as files, in the layout of ChestX-ray14."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2

from edge.errors import MachineError, describe_os_error
from mdconv.data.phantom import render


def write_folder(output: Path, count: int, seed: int, size: int) -> None:
    """Write `count` PNGs and `labels.csv` into `output`, made if needed. Raises `MachineError` if that fails."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with (output / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("Image Index", "Finding Labels", "Patient ID"))
            for number in range(seed, seed + count):
                phantom = render(number, size)
                name = f"phantom-{number:07d}.png"
                _, png = cv2.imencode(".png", phantom.image)
                (output / name).write_bytes(png.tobytes())
                table.writerow((name, "|".join(phantom.findings) or "No Finding", f"phantom-{number:07d}"))
    except OSError as error:
        raise MachineError(f"cannot write phantoms: {describe_os_error(error)}") from error
