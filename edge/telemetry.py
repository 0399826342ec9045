"""What the machine is, and what it did while we measured: read from procfs and sysfs, no root rights needed.

A figure that cannot be read is "unavailable" (facts) or None (samples), never a zero. `root` is the directory that
holds ``proc``, ``sys``, ``etc`` and ``var``: tests pass a reproduced tree. No host name and no user name are read:
reports travel.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

UNAVAILABLE = "unavailable"

LIBRARIES = (
    *("numpy", "opencv-python-headless", "simplejpeg", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg"),
    *("python-gdcm", "onnxruntime", "openvino", "tensorrt", "pycuda", "cuda-bindings"),
)

_ARM_CPUS = {"0xd42": "Arm Cortex-A78AE", "0xd83": "Arm Neoverse V3AE"}
"""Names of the CPU part numbers of Jetson Orin and Thor; Arm kernels give only the number."""

_BOARD_RAILS = (("VDD_IN",), ("VIN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
"""Rails whose sum is what the module draws: Orin Nano and NX; Thor; AGX Orin (NVIDIA Jetson Linux Developer Guide,
"Software-Based Power Consumption Modeling")."""


def _text(path: Path) -> str | None:
    """Content of a small kernel file, stripped; None if it cannot be read (so does a sensor that is off)."""
    try:
        return path.read_bytes().replace(b"\0", b"").decode("utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


# What the machine is


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Identity of the machine: what a reader needs to compare two reports. Imports no library that it names."""
    return {
        "os": _os_name(root) or platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(root) or UNAVAILABLE,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": _memory_mb(root) or UNAVAILABLE,
        "jetson": _text(root / "proc/device-tree/model") or UNAVAILABLE,
        "l4t": _l4t(root) or UNAVAILABLE,
        "power_mode": power_mode(root) or UNAVAILABLE,
        "clocks": clocks(root),
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
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(root / "etc/os-release") or "", re.MULTILINE)
    return match[1] if match else None


def _cpu_model(root: Path) -> str | None:
    text = _text(root / "proc/cpuinfo") or ""
    if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return match[1]
    if match := re.search(r"^CPU part\s*:\s*(\w+)$", text, re.MULTILINE):
        return _ARM_CPUS.get(match[1].lower(), f"Arm CPU part {match[1]}")
    return None


def _memory_mb(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) // 1024 if match else None


def _l4t(root: Path) -> str | None:
    """``36.4.3`` of a first line like ``# R36 (release), REVISION: 4.3, ...``."""
    match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release") or "")
    return f"{match[1]}.{match[2]}" if match else None


def power_mode(root: Path = Path("/")) -> dict[str, Any] | None:
    """The power mode that nvpmodel set, and all it offers: ``{"id", "name", "modes": {name: id}}``; None elsewhere."""
    status = re.match(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if not status:
        return None
    mode = int(status[1])
    found = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root / "etc/nvpmodel.conf") or "", re.M)
    modes = {name: int(number) for number, name in found}
    name = next((name for name, number in modes.items() if number == mode), f"mode {mode}")
    return {"id": mode, "name": name, "modes": modes}


def clocks(root: Path = Path("/")) -> dict[str, Any]:
    """Limits of the CPU's and the GPU's clock in MHz, and whether they are locked, or "unavailable" each.

    Locked means that the clock cannot follow the load: its lower limit is its upper one (what ``jetson_clocks`` does),
    or, for a CPU, the governor is "performance".
    """
    cpu = [
        _limits(policy, "scaling_", 1e3) for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    ]
    gpu = [_limits(device, "", 1e6) for device in _gpu_devices(root)]
    return {"cpu": _merge(cpu), "gpu": _merge(gpu)}


def _gpu_devices(root: Path) -> list[Path]:
    """The GPU's devfreq folders: ``17000000.gpu`` or ``17000000.ga10b`` (Orin), ``gpu-gpc-0`` (Thor)."""
    devices = sorted((root / "sys/class/devfreq").glob("*"))
    return [device for device in devices if re.search(r"\.gpu$|\.ga10b$|^gpu-gpc", device.name)]


def _limits(folder: Path, prefix: str, per_mhz: float) -> dict[str, Any] | None:
    low, high = _number(folder / f"{prefix}min_freq"), _number(folder / f"{prefix}max_freq")
    if low is None or high is None:
        return None
    governor = _text(folder / f"{prefix}governor")
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


# What it does at this moment


def temperatures_c(root: Path) -> dict[str, float]:
    """Temperature of each thermal zone that answers, degrees Celsius. Tegra reports -256 for a sensor that is off."""
    zones = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = _text(zone / "type"), _number(zone / "temp")
        if name and value is not None and -100_000 < value < 200_000:
            zones[name] = value / 1000
    return zones


def rails_w(root: Path) -> dict[str, float]:
    """Power of each labelled rail, watts: INA3221 (mV times mA, channels 1 to 3) and INA238 (microwatts)."""
    rails = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = _text(monitor / "name")
        if name == "ina238":
            power = _number(monitor / "power1_input")
            if power is not None:
                rails[_text(monitor / "in1_label") or "VIN"] = power / 1e6
        elif name == "ina3221":
            for channel in (1, 2, 3):
                label = _text(monitor / f"in{channel}_label")
                volts, amperes = _number(monitor / f"in{channel}_input"), _number(monitor / f"curr{channel}_input")
                if label and volts is not None and amperes is not None:
                    rails[label] = volts * amperes / 1e6
    return rails


def board_rails(rails: dict[str, float]) -> tuple[str, ...] | None:
    """The rails among `rails` whose sum is what the whole module draws, or None if that cannot be said."""
    return next((names for names in _BOARD_RAILS if all(name in rails for name in names)), None)


def gpu_mhz(root: Path) -> float | None:
    for device in _gpu_devices(root):
        if (value := _number(device / "cur_freq")) is not None:
            return value / 1e6
    return None


def cpu_mhz(root: Path) -> float | None:
    """Mean current clock of the CPU's frequency domains, MHz."""
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*")
    values = [value for policy in policies if (value := _number(policy / "scaling_cur_freq")) is not None]
    return sum(values) / len(values) / 1e3 if values else None


def throttle_events(root: Path) -> int | None:
    """Throttle events since boot: over-current and under-voltage (Tegra), thermal (x86). None if none are counted."""
    counters = [
        *(root / "sys/class/hwmon").glob("hwmon*/oc[0-9]_event_cnt"),
        *(root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"),
    ]
    values = [value for counter in counters if (value := _number(counter)) is not None]
    return int(sum(values)) if values else None


def throttle_alerts(root: Path) -> list[str] | None:
    """Names of the kernel's throttle alerts that are active (``gpu-throttle-alert``); None if it has none to ask."""
    alerts = {}
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name, state = _text(device / "type") or "", _number(device / "cur_state")
        if name.endswith("-throttle-alert") and state is not None:
            alerts[name] = state
    return [name for name, state in alerts.items() if state > 0] if alerts else None


def rss_mb(root: Path = Path("/")) -> float | None:
    """Resident memory of this process, megabytes; None if it cannot be read."""
    match = re.search(r"^VmRSS:\s*(\d+) kB", _text(root / "proc/self/status") or "", re.MULTILINE)
    return int(match[1]) / 1024 if match else None


def _cpu_ticks(root: Path) -> tuple[int, int, int] | None:
    """Clock ticks since boot: of all CPUs, of those not idle, and of this process with its finished children."""
    whole = re.match(r"cpu +([\d ]+)", _text(root / "proc/stat") or "")
    own = (_text(root / "proc/self/stat") or "").rpartition(")")[2].split()
    if not whole or len(own) < 15:
        return None
    # user nice system idle iowait irq softirq steal; guest time is within user. Stolen time is another's load: busy.
    ticks = [int(value) for value in whole[1].split()[:8]]
    return sum(ticks), sum(ticks) - sum(ticks[3:5]), sum(int(value) for value in own[11:15])


class Sampler:
    """Samples the machine on a thread of its own, from entering the ``with`` block to leaving it.

    Each sample: ``time`` (seconds since the epoch), ``cpu_load`` and ``other_load`` (shares of all cores since the last
    sample, 0 to 1: in total, and by others than this process), ``rss_mb``, ``temperature_c`` {zone: value},
    ``gpu_mhz``, ``cpu_mhz``, ``power_w`` {rail: value}, ``throttle_events`` (since boot), ``throttle_alerts`` (active
    ones). What cannot be read is None or empty.
    """

    def __init__(self, interval: float = 0.5, root: Path = Path("/")) -> None:
        self.samples: list[dict[str, Any]] = []
        self._interval = interval
        self._root = root
        self._stopping = threading.Event()
        self._ticks = _cpu_ticks(root)
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Sampler:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._take()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self._take()

    def _take(self) -> None:
        root = self._root
        total, other = self._loads()
        self.samples.append(
            {
                "time": time.time(),
                "cpu_load": total,
                "other_load": other,
                "rss_mb": rss_mb(root),
                "temperature_c": temperatures_c(root),
                "gpu_mhz": gpu_mhz(root),
                "cpu_mhz": cpu_mhz(root),
                "power_w": rails_w(root),
                "throttle_events": throttle_events(root),
                "throttle_alerts": throttle_alerts(root),
            }
        )

    def _loads(self) -> tuple[float | None, float | None]:
        before, now = self._ticks, _cpu_ticks(self._root)
        self._ticks = now
        if before is None or now is None or now[0] <= before[0]:
            return None, None
        elapsed, busy, own = (b - a for a, b in zip(before, now))
        return min(1.0, busy / elapsed), min(1.0, max(0, busy - own) / elapsed)
