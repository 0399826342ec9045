"""What the machine is, and what it did while we measured: read beside the run, no root rights needed.

A figure that cannot be read is "unavailable" (facts) or None (samples), never a zero. `root` is the directory that
holds ``proc``, ``sys``, ``etc``, ``var`` and ``usr``: tests pass a reproduced tree. No host name and no user name are
read: reports travel.

`machine` reads what stays the same, `sysfs` what changes; where the kernel's files do not tell, `tegrastats` (Jetson)
and `nvml` (other NVIDIA GPUs) fill in. `sampler` samples them all on one monotonic clock.
"""

from __future__ import annotations

from edge.telemetry.files import UNAVAILABLE
from edge.telemetry.machine import clocks, machine_facts, power_mode
from edge.telemetry.process import rss_mb
from edge.telemetry.sampler import Sampler
from edge.telemetry.sysfs import (
    GPU_BOARD,
    board_rails,
    cpu_mhz,
    emc_mhz,
    gpu_mhz,
    rails_w,
    temperatures_c,
    throttle_alerts,
    throttle_events,
)

__all__ = [
    "GPU_BOARD",
    "UNAVAILABLE",
    "Sampler",
    "board_rails",
    "clocks",
    "cpu_mhz",
    "emc_mhz",
    "gpu_mhz",
    "machine_facts",
    "power_mode",
    "rails_w",
    "rss_mb",
    "temperatures_c",
    "throttle_alerts",
    "throttle_events",
]
