"""Samples the machine beside a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.telemetry.nvml import Nvml, open_nvml
from edge.telemetry.process import cpu_ticks, loads, rss_mb
from edge.telemetry.sysfs import readings
from edge.telemetry.tegrastats import Tegrastats, open_tegrastats


class Sampler:
    """Samples the machine on a thread of its own, from entering the ``with`` block to leaving it.

    Each sample: ``time`` (seconds of `time.monotonic`, the clock that times images too), ``cpu_load`` and
    ``other_load`` (shares of all cores since the last sample, 0 to 1: in total, and by others than this process),
    ``rss_mb``, ``temperature_c`` {zone: value}, ``gpu_mhz``, ``cpu_mhz``, ``emc_mhz``, ``power_w`` {rail: value},
    ``throttle_events`` (since boot), ``throttle_alerts`` (active ones). What cannot be read is None or empty.
    """

    def __init__(self, interval: float = 0.5, root: Path = Path("/")) -> None:
        self.samples: list[dict[str, Any]] = []
        self._interval = interval
        self._root = root
        self._stopping = threading.Event()
        self._ticks = cpu_ticks(root)
        self._others: list[Nvml | Tegrastats] = []
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Sampler:
        self._open_others()
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._take()
        for other in self._others:
            other.close()

    def _open_others(self) -> None:
        """NVML where there is a GPU's driver, and tegrastats where neither it nor the kernel's files tell."""
        nvml = open_nvml(self._root)
        if nvml is not None:
            self._others.append(nvml)
        told = self._read()
        if not (told["power_w"] and told["temperature_c"] and told["gpu_mhz"]):
            tegrastats = open_tegrastats(self._root, self._interval)
            if tegrastats is not None:
                self._others.append(tegrastats)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self._take()

    def _read(self) -> dict[str, Any]:
        found = readings(self._root)
        for other in self._others:
            _fill(found, other.read())
        return found

    def _take(self) -> None:
        before, self._ticks = self._ticks, cpu_ticks(self._root)
        total, other = loads(before, self._ticks)
        sample = {"time": time.monotonic(), "cpu_load": total, "other_load": other, "rss_mb": rss_mb(self._root)}
        self.samples.append({**sample, **self._read()})


def _fill(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add to what was `found` what only `more` tells: further rails, zones and alerts, and clocks that are missing."""
    for key, value in more.items():
        if isinstance(value, dict):
            found[key] = {**value, **found[key]}
        elif isinstance(value, list):
            found[key] = [*(found[key] or []), *value]
        elif found[key] is None:
            found[key] = value
