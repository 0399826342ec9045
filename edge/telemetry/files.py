"""Small files of the kernel: procfs and sysfs."""

from __future__ import annotations

import re
from pathlib import Path

UNAVAILABLE = "unavailable"


def text_of(path: Path) -> str | None:
    """Content of a small kernel file, stripped; None if it cannot be read (so does a sensor that is off)."""
    try:
        return path.read_bytes().replace(b"\0", b"").decode("utf-8", errors="replace").strip()
    except OSError:
        return None


def number_in(path: Path) -> float | None:
    """The number in a small kernel file; None if it cannot be read or is none."""
    try:
        return float(text_of(path) or "")
    except ValueError:
        return None


def is_jetson(root: Path) -> bool:
    return bool(re.search("jetson", text_of(root / "proc/device-tree/model") or "", re.IGNORECASE))


def gpu_clocks(root: Path) -> list[Path]:
    """The GPU's devfreq folders: ``17000000.gpu`` or ``17000000.ga10b`` (Orin), ``gpu-gpc-0`` (Thor)."""
    devices = sorted((root / "sys/class/devfreq").glob("*"))
    return [device for device in devices if re.search(r"\.gpu$|\.ga10b$|^gpu-gpc", device.name)]


def emc_clock(root: Path) -> Path:
    """The memory clock's devfreq folder, which newer Jetson Linux has (the bandwidth manager, on Orin and Thor)."""
    return root / "sys/class/devfreq/bwmgr"
