"""The run along its time axis: latency, clocks, temperature, power and throttling on the same seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from edge.statistics import nearest_rank
from edge.telemetry import GPU_BOARD, UNAVAILABLE, board_rails

MAX_POINTS = 240
BINS = 60

WHOLE = "the module"
"""What energy covers where the rails that feed all of it can be read."""


def time_series(done: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``{"latency": ..., "machine": ..., "throttled": ...}``, against ``t_s``: seconds since the first of them began.

    ``latency`` gathers the images by the moment at which they ended, in at most `BINS` equal bins (``t_s`` is a bin's
    middle): how many, their median and their longest total. ``machine`` holds the samples, thinned to `MAX_POINTS`; a
    quantity that was never read is "unavailable", a moment without a reading is None. ``throttled``: see `_throttled`.

    An image ended at ``ended``, on the monotonic clock of the samples. Results of a ledger have none and no samples
    either: they are placed by ``time``, the wall clock's.
    """
    ends = [result["ended"] if "ended" in result else _seconds(result["time"]) for result in done]
    totals = [float(result["timings_ms"]["total"]) for result in done]
    starts = [end - total / 1e3 for end, total in zip(ends, totals)] + [sample["time"] for sample in samples]
    if not starts:
        return {"latency": UNAVAILABLE, "machine": UNAVAILABLE, "throttled": UNAVAILABLE}
    start = min(starts)
    return {
        "latency": _latency([end - start for end in ends], totals) if done else UNAVAILABLE,
        "machine": _machine(samples[:: math.ceil(len(samples) / MAX_POINTS)], start) if samples else UNAVAILABLE,
        "throttled": _throttled(samples, start),
    }


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()


def _latency(ends: Sequence[float], totals: Sequence[float]) -> dict[str, Any]:
    last = max(ends)
    # A ledger's results carry milliseconds: narrower bins would only show the rounding.
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

    plain = ("cpu_load", "other_load", "rss_mb", "gpu_mhz", "cpu_mhz", "emc_mhz", "throttle_events", "throttle_alerts")
    return {
        "t_s": [sample["time"] - start for sample in samples],
        **{key: column(key) for key in plain},
        "temperature_c": columns("temperature_c"),
        "power_w": columns("power_w"),
    }


def _throttled(samples: Sequence[Mapping[str, Any]], start: float) -> list[dict[str, Any]] | str:
    """When the machine throttled: ``[{"from_s", "to_s", "what": [name, ...]}]``; "unavailable" if it never told.

    From all samples, not only those that are kept. A counter that rose did so at some moment since the sample before;
    an alert is active at its sample. What follows without a sample free of it is one period.
    """
    periods: list[dict[str, Any]] = []
    told = False
    count, last, throttling = None, 0.0, False
    for sample in samples:
        now, events, alerts = sample["time"] - start, sample["throttle_events"], sample["throttle_alerts"]
        told = told or alerts is not None or (count is not None and events is not None)
        rose = count is not None and events is not None and events > count
        what = [*(["throttle events"] if rose else []), *(alerts or [])]
        if what and not throttling:
            periods.append({"from_s": last if rose else now, "to_s": now, "what": []})
        if what:
            periods[-1]["to_s"] = now
            periods[-1]["what"] += [name for name in what if name not in periods[-1]["what"]]
        count, last, throttling = count if events is None else events, now, bool(what)
    return periods if told else UNAVAILABLE


def energy_j(samples: Sequence[Mapping[str, Any]], wall_seconds: float) -> dict[str, Any] | None:
    """Energy of the run: mean power (trapezoids over time) of the rails that feed the module, times the run's duration.

    None where those rails cannot be read, or read nothing, as a sensor that is off does. ``{"joules", "mean_w",
    "rails", "covers"}``. A tool that fills in for the kernel's files has no reading yet for the first sample.
    """
    readings = [(sample["time"], sample["power_w"]) for sample in samples if board_rails(sample["power_w"])]
    if not readings:
        return None
    rails = board_rails(readings[0][1])
    assert rails is not None
    points = [(time, sum(power[name] for name in rails)) for time, power in readings if board_rails(power) == rails]
    elapsed = points[-1][0] - points[0][0]
    if elapsed <= 0:
        return None
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    mean_w = area / elapsed
    if mean_w <= 0:
        return None
    covers = "the GPU board alone" if rails == (GPU_BOARD,) else WHOLE
    return {"joules": mean_w * wall_seconds, "mean_w": mean_w, "rails": list(rails), "covers": covers}
