"""What the machine does at this moment, by the kernel's own files.

Layouts, besides NVIDIA's Jetson Linux Developer Guides 36.4 and 38.4 ("Platform Power and Performance") and the
kernel's hwmon documents of ina3221 and ina238, as owners of the boards describe them in public: the README of
swsususu/ThorFAN for an AGX Thor under 38.4 (rails, zones, throttle alerts, caps of the GPU's clock, the sensor of a GPU
without power, which does not answer). None of it was read on a board of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edge.telemetry.files import emc_clock, gpu_clocks, number_in, text_of

GPU_BOARD = "GPU board"
"""The rail that NVML reports: the graphics card alone."""

_BOARD_RAILS = (("VDD_IN",), ("VIN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), (GPU_BOARD,))
"""Rails whose sum is what the module draws: Orin Nano and NX; Thor; AGX Orin (NVIDIA Jetson Linux Developer Guide,
"Software-Based Power Consumption Modeling"). Elsewhere the card's own."""


def readings(root: Path) -> dict[str, Any]:
    """All of this module, as `edge.telemetry.sampler.Sampler` keeps it."""
    return {
        "temperature_c": temperatures_c(root),
        "gpu_mhz": gpu_mhz(root),
        "cpu_mhz": cpu_mhz(root),
        "emc_mhz": emc_mhz(root),
        "power_w": rails_w(root),
        "throttle_events": throttle_events(root),
        "throttle_alerts": throttle_alerts(root),
    }


def temperatures_c(root: Path) -> dict[str, float]:
    """Temperature of each thermal zone that answers, degrees Celsius. Tegra reports -256 for a sensor that is off."""
    zones = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = text_of(zone / "type"), number_in(zone / "temp")
        if name and value is not None and -100_000 < value < 200_000:
            zones[name] = value / 1000
    return zones


def rails_w(root: Path) -> dict[str, float]:
    """Power of each labelled rail, watts: INA3221 (mV times mA, channels 1 to 3) and INA238 (microwatts)."""
    rails = {}
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = text_of(monitor / "name")
        if name == "ina238":
            power = number_in(monitor / "power1_input")
            if power is not None:
                label = text_of(monitor / "in1_label") or text_of(monitor / "label")
                rails[label or "VIN"] = power / 1e6
        elif name == "ina3221":
            for channel in (1, 2, 3):
                label = text_of(monitor / f"in{channel}_label")
                volts, amperes = number_in(monitor / f"in{channel}_input"), number_in(monitor / f"curr{channel}_input")
                if label and label != "NC" and volts is not None and amperes is not None:
                    rails[label] = volts * amperes / 1e6
    return rails


def board_rails(rails: dict[str, float]) -> tuple[str, ...] | None:
    """The rails among `rails` whose sum is what the whole module draws, or None if that cannot be said."""
    return next((names for names in _BOARD_RAILS if all(name in rails for name in names)), None)


def gpu_mhz(root: Path) -> float | None:
    for device in gpu_clocks(root):
        if (value := number_in(device / "cur_freq")) is not None:
            return value / 1e6
    return None


def emc_mhz(root: Path) -> float | None:
    """Clock of a Jetson's memory controller, MHz: by devfreq, else by the boot processor's debugfs, which is root's."""
    places = (emc_clock(root) / "cur_freq", root / "sys/kernel/debug/bpmp/debug/clk/emc/rate")
    values = (number_in(place) for place in places)
    return next((value / 1e6 for value in values if value is not None), None)


def cpu_mhz(root: Path) -> float | None:
    """Mean current clock of the CPU's frequency domains, MHz."""
    policies = (root / "sys/devices/system/cpu/cpufreq").glob("policy*")
    values = [value for policy in policies if (value := number_in(policy / "scaling_cur_freq")) is not None]
    return sum(values) / len(values) / 1e3 if values else None


def throttle_events(root: Path) -> int | None:
    """Throttle events since boot: over-current and under-voltage (Tegra), thermal (x86). None if none are counted."""
    counters = [
        *(root / "sys/class/hwmon").glob("hwmon*/oc[0-9]_event_cnt"),
        *(root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"),
        # Each CPU shows its package's counter; one of them is enough.
        *(root / "sys/devices/system/cpu").glob("cpu0/thermal_throttle/package_throttle_count"),
    ]
    values = [value for counter in counters if (value := number_in(counter)) is not None]
    return int(sum(values)) if values else None


def throttle_alerts(root: Path) -> list[str] | None:
    """Names of the kernel's cooling devices that throttle at this moment; None if it has none to ask.

    These are Tegra's alerts (``gpu-throttle-alert``) and caps on a clock (``devfreq-gpu-gpc-0``, ``cpufreq-cpu0``);
    fans are no throttling.
    """
    devices = {}
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name, state = text_of(device / "type") or "", number_in(device / "cur_state")
        if state is not None and re.search(r"-throttle-alert$|^devfreq-|^cpufreq-", name):
            devices[name] = state
    return [name for name, state in devices.items() if state > 0] if devices else None
