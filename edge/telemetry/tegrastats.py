"""NVIDIA's ``tegrastats``, for a Jetson whose kernel files do not tell.

Fields as in NVIDIA's Jetson Linux Developer Guides 36.4 and 38.4, "Tegrastats Utility". JetPack 7 may leave out
``GR3D_FREQ`` and ``EMC_FREQ``, may give three clocks of the GPU, and a third figure (the peak) of a rail, as lines from
owners of a Thor show; without root rights the clocks may be missing everywhere.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

PLACE = "usr/bin/tegrastats"

_OFF_C = -100.0
"""Tegra reports -256 degrees for a sensor that is off."""


def parse(line: str) -> dict[str, Any]:
    """What one line tells, in the units and by the names of `edge.telemetry.sysfs.readings`.

    Clocks are MHz, rails watts (the first figure: now), zones degrees Celsius. What the line does not tell is left out.
    """
    found: dict[str, Any] = {
        "power_w": {
            rail: int(milliwatts) / 1e3
            for rail, milliwatts in re.findall(r"\b([A-Z][A-Z0-9_]+) (-?\d+)mW\b", line)
            if rail != "NC"
        },
        "temperature_c": {
            f"{zone}-thermal".lower(): float(degrees)
            for zone, degrees in re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b", line)
            if float(degrees) > _OFF_C
        },
    }
    if cpus := re.search(r"\bCPU \[([^\]]*)\]", line):
        clocks = [int(clock) for clock in re.findall(r"@(\d+)", cpus[1])]  # a core that is off shows none
        found["cpu_mhz"] = sum(clocks) / len(clocks) if clocks else None
    for key, name in (("gpu_mhz", "GR3D_FREQ"), ("emc_mhz", "EMC_FREQ")):
        if clock := re.search(rf"\b{name} (?:\d+%)?@\[?(\d+)", line):
            found[key] = float(clock[1])
    return {key: value for key, value in found.items() if value}


class Tegrastats:
    """The running tool: `read` gives its last line, parsed, or nothing if that is old."""

    def __init__(self, program: Path, interval: float) -> None:
        """Start it. Raises `OSError` if it cannot be started."""
        self._last: tuple[float, dict[str, Any]] = (0.0, {})
        self._fresh_for = 3 * interval
        command = [str(program), "--interval", str(max(1, round(interval * 1e3)))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._thread = threading.Thread(target=self._listen, name="tegrastats", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = (time.monotonic(), parse(line))

    def read(self) -> dict[str, Any]:
        at, found = self._last
        return found if time.monotonic() - at <= self._fresh_for else {}

    def close(self) -> None:
        self._process.kill()  # it only prints: there is nothing to finish
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def open_tegrastats(root: Path, interval: float) -> Tegrastats | None:
    """Start the tool of the machine at `root`; None where there is none, or it does not start."""
    program = root / PLACE
    try:
        return Tegrastats(program, interval) if program.is_file() else None
    except OSError:
        return None
