"""The report's time line: a lane a quantity on one axis of seconds, throttling marked through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from edge.report.svg import LEFT, RIGHT, WIDTH, figure_text, line, path, rect, svg, text, tick_text, ticks
from edge.telemetry import UNAVAILABLE

LANE, GAP = 64.0, 30.0

Series = Sequence[tuple[float, float | None]]
"""(seconds, value) in order of time; None where there was no reading."""


class Lane(NamedTuple):
    """One quantity over time."""

    name: str
    lines: Mapping[str, Series]
    """Name of each line and what it holds; the first is the main one."""
    from_zero: bool = True


def time_line_plot(series: Mapping[str, Any]) -> str:
    """Latency, throughput and what the machine reported, one lane each; a quantity without readings is left out."""
    lanes = [lane for lane in [*_latency_lanes(series["latency"]), *_machine_lanes(series["machine"])] if lane.lines]
    end = max((t for lane in lanes for values in lane.lines.values() for t, _ in values), default=0.0)
    if end <= 0:
        return ""
    top, right = 28.0, WIDTH - RIGHT

    def x(seconds: float) -> float:
        return LEFT + (right - LEFT) * seconds / end

    body: list[str] = []
    base = top
    for index, lane in enumerate(lanes):
        base = top + index * (LANE + GAP) + LANE
        body += _lane(lane, x, base)
    throttled = [] if series["throttled"] == UNAVAILABLE else series["throttled"]
    body = [*_bands(throttled, x, top - 14, base), *body]
    for tick in ticks(0, end, 10):
        body += [line(x(tick), base, x(tick), base + 4, "axis")]
        body += [text(x(tick), base + 18, tick_text(tick), "tick", "middle")]
    body += [text((LEFT + right) / 2, base + 40, "seconds since the run began", "label", "middle")]
    words = "; ".join(f"{lane.name}: {_range(lane)}" for lane in lanes)
    if throttled:
        words += f"; throttled {len(throttled)} times, first at {figure_text(throttled[0]['from_s'])} s"
    return svg("time", base + 48, "The run over time", f"{words}.", body)


def unread(series: Mapping[str, Any]) -> list[str]:
    """Names of the quantities that this machine did not show."""
    names = {
        "temperature_c": "temperature",
        "gpu_mhz": "GPU clock",
        "cpu_mhz": "CPU clock",
        "emc_mhz": "memory clock",
        "power_w": "power",
        "throttle_events": "throttle events",
        "cpu_load": "CPU load",
    }
    machine = series["machine"]
    return [name for key, name in names.items() if machine == UNAVAILABLE or machine[key] == UNAVAILABLE]


def _latency_lanes(latency: Any) -> list[Lane]:
    if latency == UNAVAILABLE or len(latency["t_s"]) < 2:
        return []
    seconds = latency["t_s"]
    speed = [count / latency["bin_s"] for count in latency["count"]]
    return [
        Lane(
            "latency, ms", {"median": list(zip(seconds, latency["p50"])), "longest": list(zip(seconds, latency["max"]))}
        ),
        Lane("images/s", {"images/s": list(zip(seconds, speed))}),
    ]


def _machine_lanes(machine: Any) -> list[Lane]:
    if machine == UNAVAILABLE:
        return []
    seconds = machine["t_s"]

    def plain(key: str, scale: float = 1.0) -> Series:
        return [(t, None if value is None else value * scale) for t, value in zip(seconds, machine[key])]

    lanes = []
    if machine["cpu_load"] != UNAVAILABLE:
        lines = {"all": plain("cpu_load", 100), "other programs": plain("other_load", 100)}
        lanes += [Lane("CPU load, %", lines)]
    if machine["temperature_c"] != UNAVAILABLE:
        lanes += [
            Lane("hottest zone, °C", {"hottest zone": list(zip(seconds, _over(machine["temperature_c"], max)))}, False)
        ]
    for key, name in (("gpu_mhz", "GPU clock, MHz"), ("cpu_mhz", "CPU clock, MHz"), ("emc_mhz", "memory clock, MHz")):
        if machine[key] != UNAVAILABLE:
            lanes += [Lane(name, {name: plain(key)})]
    if machine["power_w"] != UNAVAILABLE:
        lanes += [Lane("power, W", {rail: list(zip(seconds, values)) for rail, values in machine["power_w"].items()})]
    return lanes


def _over(
    columns: Mapping[str, Sequence[float | None]], choose: Callable[[Iterable[float]], float]
) -> list[float | None]:
    rows = zip(*columns.values())
    return [choose(known) if (known := [value for value in row if value is not None]) else None for row in rows]


def _bands(throttled: Sequence[Mapping[str, Any]], x: Callable[[float], float], top: float, base: float) -> list[str]:
    """Each period of throttling as a band behind all lanes, the first with its name."""
    body = []
    for period in throttled:
        left, right = x(period["from_s"]), x(period["to_s"])
        tip = f"throttled: {', '.join(period['what'])}"
        body += [rect(left, top, max(right - left, 2.0), base - top, "throttled", tip)]
        body += [line(left, top, left, base, "alarm")]
    if throttled:
        left = x(throttled[0]["from_s"])
        at_the_edge = left > WIDTH - RIGHT - 60
        body += [text(left, 10, "throttled", "tick alarm-text", "end" if at_the_edge else "start")]
    return body


def _lane(lane: Lane, x: Callable[[float], float], base: float) -> list[str]:
    values = [value for series in lane.lines.values() for _, value in series if value is not None]
    high = max(values, default=0.0) or 1.0
    low = 0.0 if lane.from_zero else min(values, default=0.0)
    span = (high - low) or 1.0
    body = [line(LEFT, base, WIDTH - RIGHT, base, "axis"), line(LEFT, base - LANE, WIDTH - RIGHT, base - LANE, "grid")]
    body += [
        text(LEFT - 8, base + 4, figure_text(low), "tick", "end"),
        text(LEFT - 8, base - LANE + 4, figure_text(high), "tick", "end"),
    ]
    body += [text(LEFT, base - LANE - 8, lane.name, "label")]
    legend = WIDTH - RIGHT
    for index, (name, series) in reversed(list(enumerate(lane.lines.items()))):
        kind = f"line{min(index, 3)}"
        points = [(x(t), base - LANE * (value - low) / span) for t, value in series if value is not None]
        if len(points) > 1:
            body += [path(points, kind)]
        if len(lane.lines) > 1:
            body += [text(legend, base - LANE - 8, name, "tick", "end")]
            legend -= sum(8.4 if letter.isupper() else 7.0 for letter in name) + 8
            body += [line(legend - 18, base - LANE - 12, legend - 2, base - LANE - 12, kind)]
            legend -= 36
    return body


def _range(lane: Lane) -> str:
    values = [value for _, value in next(iter(lane.lines.values())) if value is not None]
    return f"{figure_text(min(values))} to {figure_text(max(values))}" if values else "no reading"
