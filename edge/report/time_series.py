"""The run along its time axis: latency, clocks, temperature and power on the same seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from edge.statistics import nearest_rank
from edge.telemetry import UNAVAILABLE, board_rails

MAX_POINTS = 240
BINS = 60


def time_series(done: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``{"latency": ..., "machine": ...}``, both against ``t_s``: seconds since the first of them began.

    ``latency`` gathers the images by the moment at which they ended, in at most `BINS` equal bins (``t_s`` is a bin's
    middle): how many, their median and their longest total. ``machine`` holds the samples, thinned to `MAX_POINTS`; a
    quantity that was never read is "unavailable", a moment without a reading is None.
    """
    ends = [_seconds(result["time"]) for result in done]
    totals = [float(result["timings_ms"]["total"]) for result in done]
    starts = [end - total / 1e3 for end, total in zip(ends, totals)] + [sample["time"] for sample in samples]
    if not starts:
        return {"latency": UNAVAILABLE, "machine": UNAVAILABLE}
    start = min(starts)
    return {
        "latency": _latency([end - start for end in ends], totals) if done else UNAVAILABLE,
        "machine": _machine(samples[:: math.ceil(len(samples) / MAX_POINTS)], start) if samples else UNAVAILABLE,
    }


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()


def _latency(ends: Sequence[float], totals: Sequence[float]) -> dict[str, Any]:
    last = max(ends)
    # Results carry milliseconds: narrower bins would only show the rounding.
    width = max(last / BINS, 1e-3)
    bins: dict[int, list[float]] = {}
    for end, total in zip(ends, totals):
        bins.setdefault(min(int(end / width), BINS - 1), []).append(total)
    filled = {index: sorted(bins[index]) for index in sorted(bins)}
    return {
        "t_s": [(index + 0.5) * width for index in filled],
        "bin_s": width,
        "count": [len(values) for values in filled.values()],
        "p50": [nearest_rank(values, "50") for values in filled.values()],
        "max": [values[-1] for values in filled.values()],
    }


def _machine(samples: Sequence[Mapping[str, Any]], start: float) -> dict[str, Any]:
    def column(key: str) -> list[Any] | str:
        values = [sample[key] for sample in samples]
        return values if any(value is not None for value in values) else UNAVAILABLE

    def columns(key: str) -> dict[str, list[Any]] | str:
        names = sorted({name for sample in samples for name in sample[key]})
        return {name: [sample[key].get(name) for sample in samples] for name in names} or UNAVAILABLE

    plain = ("cpu_load", "other_load", "rss_mb", "gpu_mhz", "cpu_mhz", "throttle_events", "throttle_alerts")
    return {
        "t_s": [sample["time"] - start for sample in samples],
        **{key: column(key) for key in plain},
        "temperature_c": columns("temperature_c"),
        "power_w": columns("power_w"),
    }


def energy_j(samples: Sequence[Mapping[str, Any]], wall_seconds: float) -> dict[str, Any] | None:
    """Energy of the run: mean power (trapezoids over time) of the rails that feed the module, times the run's duration.

    None where those rails cannot be read. ``{"joules", "mean_w", "rails"}``.
    """
    readings = [(sample["time"], sample["power_w"]) for sample in samples]
    rails = board_rails(readings[0][1]) if readings else None
    if rails is None:
        return None
    points = [(time, sum(power[name] for name in rails)) for time, power in readings if board_rails(power) == rails]
    elapsed = points[-1][0] - points[0][0]
    if elapsed <= 0:
        return None
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    mean_w = area / elapsed
    return {"joules": mean_w * wall_seconds, "mean_w": mean_w, "rails": list(rails)}
