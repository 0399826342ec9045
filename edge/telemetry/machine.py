"""What the machine is: identity, power mode, and how far its clocks may move."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from edge.telemetry.files import UNAVAILABLE, emc_clock, gpu_clocks, is_jetson, number_in, text_of
from edge.telemetry.nvml import gpu_facts

LIBRARIES = (
    *("numpy", "opencv-python-headless", "simplejpeg", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg"),
    *("python-gdcm", "onnxruntime", "openvino", "tensorrt", "pycuda", "cuda-bindings"),
)

_ARM_CPUS = {"0xd42": "Arm Cortex-A78AE", "0xd83": "Arm Neoverse V3AE"}
"""Names of the CPU part numbers of Jetson Orin and Thor; Arm kernels give only the number."""


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Identity of the machine: what a reader needs to compare two reports. Imports no library that it names."""
    return {
        "os": _os_name(root) or platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(root) or UNAVAILABLE,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": _memory_mb(root) or UNAVAILABLE,
        "jetson": text_of(root / "proc/device-tree/model") or UNAVAILABLE,
        "l4t": _l4t(root) or UNAVAILABLE,
        "power_mode": power_mode(root) or UNAVAILABLE,
        "clocks": clocks(root),
        "jetson_clocks": _jetson_clocks(root) or UNAVAILABLE,
        "gpu": gpu_facts(root) or UNAVAILABLE,
        "python": platform.python_version(),
        "libraries": dict(_installed()),
    }


def _installed() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _os_name(root: Path) -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', text_of(root / "etc/os-release") or "", re.MULTILINE)
    return match[1] if match else None


def _cpu_model(root: Path) -> str | None:
    text = text_of(root / "proc/cpuinfo") or ""
    if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return match[1]
    if match := re.search(r"^CPU part\s*:\s*(\w+)$", text, re.MULTILINE):
        return _ARM_CPUS.get(match[1].lower(), f"Arm CPU part {match[1]}")
    return None


def _memory_mb(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", text_of(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) // 1024 if match else None


def _l4t(root: Path) -> str | None:
    """``36.4.3`` of a first line like ``# R36 (release), REVISION: 4.3, ...``."""
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text_of(root / "etc/nv_tegra_release") or "")
    return f"{match[1]}.{match[2]}" if match else None


def power_mode(root: Path = Path("/")) -> dict[str, Any] | None:
    """The power mode that nvpmodel set, and all it offers: ``{"id", "name", "modes": {name: id}}``; None elsewhere."""
    status = re.match(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status") or "")
    if not status:
        return None
    mode = int(status[1])
    found = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text_of(root / "etc/nvpmodel.conf") or "", re.M)
    modes = {name: int(number) for number, name in found}
    name = next((name for name, number in modes.items() if number == mode), f"mode {mode}")
    return {"id": mode, "name": name, "modes": modes}


def clocks(root: Path = Path("/")) -> dict[str, Any]:
    """Limits of the CPU's, the GPU's and the memory's clock in MHz, and whether they are locked, or "unavailable" each.

    Locked means that the clock cannot follow the load: its lower limit is its upper one (what ``jetson_clocks`` does),
    or, for a CPU, the governor is "performance".
    """
    cpu = [
        _limits(policy, "scaling_", 1e3) for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    ]
    gpu = [_limits(device, "", 1e6) for device in gpu_clocks(root)]
    return {"cpu": _merge(cpu), "gpu": _merge(gpu), "emc": _merge([_limits(emc_clock(root), "", 1e6)])}


def _jetson_clocks(root: Path) -> str | None:
    """Whether ``jetson_clocks`` is "on" or "off": on, each clock's lower limit is its upper one. None elsewhere.

    The tool itself tells it only to root.
    """
    known = [limits for limits in clocks(root).values() if limits != UNAVAILABLE]
    if not is_jetson(root) or not known:
        return None
    return "on" if all(limits["min_mhz"] == limits["max_mhz"] for limits in known) else "off"


def _limits(folder: Path, prefix: str, per_mhz: float) -> dict[str, Any] | None:
    low, high = number_in(folder / f"{prefix}min_freq"), number_in(folder / f"{prefix}max_freq")
    if low is None or high is None:
        return None
    governor = text_of(folder / f"{prefix}governor")
    return {
        "min_mhz": low / per_mhz,
        "max_mhz": high / per_mhz,
        "governor": governor or UNAVAILABLE,
        "locked": low == high or governor == "performance",
    }


def _merge(limits: list[dict[str, Any] | None]) -> dict[str, Any] | str:
    """One entry for several clock domains: the widest limits; locked only if all are."""
    known = [entry for entry in limits if entry is not None]
    if not known:
        return UNAVAILABLE
    return {
        "min_mhz": min(entry["min_mhz"] for entry in known),
        "max_mhz": max(entry["max_mhz"] for entry in known),
        "governor": ", ".join(sorted({entry["governor"] for entry in known})),
        "locked": all(entry["locked"] for entry in known),
    }
