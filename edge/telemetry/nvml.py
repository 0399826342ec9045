"""NVIDIA GPUs of PCs by NVML: clocks, power, temperature and why they throttle (extra ``nvml``, nvidia-ml-py).

It is asked only where NVIDIA's driver is loaded, and the library is imported only then. Of several GPUs the first one
is read. Names and units: NVIDIA's NVML API Reference Guide, "Device Queries" and "NvmlClocksEventReasons"; those have
their older names here ("throttle reasons"), which drivers and libraries of any age know.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.telemetry.sysfs import GPU_BOARD

DRIVER = "proc/driver/nvidia/version"

THROTTLING = {
    "SwPowerCap": "GPU at its power limit",
    "HwSlowdown": "GPU slowed down by hardware",
    "SwThermalSlowdown": "GPU slowed down by heat (driver)",
    "HwThermalSlowdown": "GPU slowed down by heat (hardware)",
    "HwPowerBrakeSlowdown": "GPU slowed down by the power supply",
}
"""The reasons for a lower clock that are throttling; others are idleness and settings."""


class Nvml:
    """The library, initialised, and the first GPU."""

    def __init__(self, library: Any) -> None:
        """Raises the library's ``NVMLError`` where it cannot be used or finds no GPU."""
        self._library = library
        library.nvmlInit()
        try:
            self._gpu = library.nvmlDeviceGetHandleByIndex(0)
        except library.NVMLError:
            library.nvmlShutdown()
            raise

    def _ask(self, query: Callable[..., Any], *arguments: Any) -> Any:
        """What a query answers; None where this GPU or driver does not support it."""
        try:
            return query(self._gpu, *arguments)
        except self._library.NVMLError:
            return None

    def read(self) -> dict[str, Any]:
        """In the units and by the names of `edge.telemetry.sysfs.readings`; what cannot be read is left out."""
        nvml = self._library
        clock = self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM)
        milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage)
        degrees = self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
        found = {
            "gpu_mhz": None if clock is None else float(clock),
            "power_w": None if milliwatts is None else {GPU_BOARD: milliwatts / 1e3},
            "temperature_c": None if degrees is None else {"GPU": float(degrees)},
            "throttle_alerts": self._throttling(),
        }
        return {key: value for key, value in found.items() if value is not None}

    def _throttling(self) -> list[str] | None:
        reasons = self._ask(self._library.nvmlDeviceGetCurrentClocksThrottleReasons)
        if reasons is None:
            return None
        bits = {name: getattr(self._library, f"nvmlClocksThrottleReason{name}") for name in THROTTLING}
        return [text for name, text in THROTTLING.items() if reasons & bits[name]]

    def facts(self) -> dict[str, Any]:
        nvml = self._library
        count = nvml.nvmlDeviceGetCount()
        name = self._ask(nvml.nvmlDeviceGetName)
        facts = {"name": name, "driver": nvml.nvmlSystemGetDriverVersion()}
        return {**facts, "note": f"the first of {count} GPUs"} if count > 1 else facts

    def close(self) -> None:
        self._library.nvmlShutdown()


def open_nvml(root: Path) -> Nvml | None:
    """NVML with the first GPU of the machine at `root`; None without NVIDIA's driver, the library, or a GPU."""
    if not (root / DRIVER).is_file():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return Nvml(pynvml)
    except pynvml.NVMLError:
        return None


def gpu_facts(root: Path) -> dict[str, Any] | None:
    """Name and driver of the first GPU, and a note where there are more; None where NVML does not tell."""
    nvml = open_nvml(root)
    if nvml is None:
        return None
    try:
        return nvml.facts()
    finally:
        nvml.close()
