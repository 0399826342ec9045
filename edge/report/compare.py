"""Two reports against each other: ratios B / A with their intervals, and what forbids to believe them blindly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.intervals import (
    BLOCKS,
    CONFIDENCE,
    LEAST_VALUES,
    Interval,
    Spread,
    Statistic,
    mean,
    percentile_of,
    spread,
    unpaired,
)
from edge.report.time_series import BINS
from edge.telemetry import UNAVAILABLE

COMPARISON_VERSION = 1

IDENTITY = ("network", "input_size", "batch", "precision", "lowering", "built_for", "gate")
"""What is told of two bundles that differ, beside their names."""

OUTCOMES = ("duration_s", "due", "sent", "tried", "sessions")
"""Settings that say how long a run was or how it went: they may differ."""

REASONS = ("chosen_because",)

MOST_SHOWN = 8
"""Differences of one kind that are spelled out."""


def comparison_of(
    sides: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    paired: bool,
    verdict: str,
    warnings: Sequence[str],
    notes: Sequence[str],
    **more: Any,
) -> dict[str, Any]:
    """What a comparison's JSON holds. `sides` are "a" and "b", each with ``notice``, ``bundle``, ``backend`` and so on;
    a row is `row`'s; `more` is what only one kind of comparison has."""
    return {
        "schema_version": COMPARISON_VERSION,
        "kind": "comparison",
        "paired": paired,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "notice": "; ".join(dict.fromkeys(str(side["notice"]) for side in sides.values())),
        "confidence": CONFIDENCE,
        "verdict": verdict,
        **more,
        **sides,
        "rows": list(rows),
        "warnings": list(warnings),
        "notes": list(notes),
    }


def row(what: str, unit: str, a: float, b: float, interval: Interval | None, better: str = "lower") -> dict[str, Any]:
    """One figure of both: `a` and `b` in `unit`, their ratio b / a, and its interval's ends, None where it has none.

    The ratio is the interval's own where there is one: the middle of the pairs is not the ratio of two middles.
    `better` says which is the better one, the "lower" or the "higher" figure.
    """
    return {
        **{"what": what, "unit": unit, "better": better, "a": a, "b": b},
        "ratio": interval.ratio if interval else b / a if a > 0 else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
    }


def compare_reports(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison of two reports (`edge.report.read.read_report`) of runs that were made apart."""
    rows = list(_rows(a, b))
    warnings = [*differences(a, b), *_tainted(a, b)]
    notes = [
        "the two runs were made apart: an interval covers what varied within each of them, and not what differs "
        "between two runs (placement in memory, temperature, what else the machine did); edge-infer bench --against "
        "measures two bundles side by side",
        f"intervals come from blocks of neighbouring images, a tenth of the run each; below {LEAST_VALUES} images, and "
        "for energy and queries, there is none",
    ]
    return comparison_of(
        {"a": _side(a), "b": _side(b)},
        rows,
        paired=False,
        verdict=_verdict(rows, warnings),
        warnings=warnings,
        notes=notes,
    )


def _side(report: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("notice", "kind", "created", "scenario", "settings", "counts", "bundle", "backend", "machine", "verdict")
    return {key: report[key] for key in kept}


def _rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Latency end to end first, then each stage, then what the run did as a whole."""

    def stage_row(stage: str, name: str, statistic: Statistic) -> Iterator[dict[str, Any]]:
        figures = [_stages(report).get(stage, {}).get(name) for report in (a, b)]
        if None not in figures:
            chances = [_chance(report, stage, statistic) for report in (a, b)]
            yield _apart(f"{stage}, {name}", "ms", figures, chances)

    for percentile in (50, 90):
        yield from stage_row("total", f"p{percentile}", percentile_of(percentile))
    yield from stage_row("total", "mean", mean)
    for stage in _stages(a):
        if stage != "total":
            yield from stage_row(stage, "p50", percentile_of(50))
    for name in ("p50", "p90"):
        if a["query"] and b["query"] and a["query"][name] is not None and b["query"][name] is not None:
            yield row(f"query, {name}", "ms", a["query"][name], b["query"][name], None)
    if a["throughput"] and b["throughput"]:
        chances = [_throughput_chance(report) for report in (a, b)]
        yield _apart("throughput", "images/s", [a["throughput"], b["throughput"]], chances, "higher")
    energies = [report["energy_per_image_j"] for report in (a, b)]
    covered = [report["energy"]["covers"] for report in (a, b) if report["energy"] != UNAVAILABLE]
    if UNAVAILABLE not in energies and len(set(covered)) == 1:
        yield row("energy per image", "J", energies[0], energies[1], None)


def _apart(
    what: str, unit: str, figures: Sequence[float], chances: Sequence[Spread | None], better: str = "lower"
) -> dict[str, Any]:
    first, second = figures
    interval = unpaired(second / first, chances[0], chances[1]) if first > 0 else None
    return row(what, unit, first, second, interval, better)


def _stages(report: Mapping[str, Any]) -> dict[str, Any]:
    gpu = report["gpu_ms"]
    return {**report["stages"], **({} if gpu == UNAVAILABLE else {"gpu": gpu})}


def _chance(report: Mapping[str, Any], stage: str, statistic: Statistic) -> Spread | None:
    values = [value for value in report["images"]["ms"].get(stage, []) if value is not None]
    return spread(np.array(values), statistic)


def _throughput_chance(report: Mapping[str, Any]) -> Spread | None:
    """From the images done in each bin of the time series; bins without an image are not listed there."""
    latency = report["time_series"]["latency"]
    if latency == UNAVAILABLE or sum(latency["count"]) < LEAST_VALUES:
        return None
    bins = [int(min(moment / latency["bin_s"], BINS - 1)) for moment in latency["t_s"]]
    counts: NDArray[np.float64] = np.zeros(max(bins) + 1)
    for index, count in zip(bins, latency["count"]):
        counts[index] += count
    return spread(counts, mean, least=2 * BLOCKS)


def _verdict(rows: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> str:
    first = next((each for each in rows if each["what"] == "total, p50" and each["ratio"] is not None), None)
    if first is None:
        return "The two reports have no median latency to compare."
    ends = f" ({100 * CONFIDENCE:g} % interval {first['low']:.3f} to {first['high']:.3f})" if first["low"] else ""
    differ = f"; {len(warnings)} warnings" if len(warnings) > 1 else "; 1 warning" if warnings else ""
    ratio = f"{first['ratio']:.3f} times that of A{ends}"
    return f"The median latency of B is {ratio}, measured apart, not side by side{differ}."


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """One line for each of machine, backend, run and bundle that differs between two sides of a comparison."""
    kinds = {
        "machine": (a.get("machine"), b.get("machine"), ()),
        "backend": (a["backend"], b["backend"], REASONS),
        "run": (_run(a), _run(b), OUTCOMES),
        "bundle": (_bundle(a), _bundle(b), ()),
    }
    for kind, (first, second, allowed) in kinds.items():
        found = [text for path, text in _leaves(first, second) if path[0] not in allowed]
        if found:
            rest = f"; and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
            yield f"{kind} differs: {'; '.join(found[:MOST_SHOWN])}{rest}"


def _run(side: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": side.get("kind"), "scenario": side.get("scenario"), **side.get("settings", {})}


def _bundle(side: Mapping[str, Any]) -> dict[str, Any]:
    return {key: side["bundle"].get(key) for key in IDENTITY}


def _leaves(first: Any, second: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where a value differs, and how."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys([*first, *second]):
            yield from _leaves(first.get(key), second.get(key), (*path, str(key)))
    elif first != second:
        yield path, f"{' '.join(path).replace('_', ' ')}: {_short(first)} against {_short(second)}"


def _short(value: Any) -> str:
    text = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}\N{HORIZONTAL ELLIPSIS}"


def _tainted(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    states = {
        name: {taint["what"]: (taint["state"], taint["detail"]) for taint in report["taints"]}
        for name, report in (("A", a), ("B", b))
    }
    for what in dict.fromkeys([*states["A"], *states["B"]]):
        found = {name: taints.get(what, ("unknown", "not looked at")) for name, taints in states.items()}
        if any(state == "tainted" for state, _ in found.values()):
            yield f"{what}: " + "; ".join(
                f"{name} {state}" + (f" ({detail})" if state == "tainted" else "")
                for name, (state, detail) in found.items()
            )
