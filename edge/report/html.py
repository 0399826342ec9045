"""``report.html`` from ``report.json`` alone: one file, no scripts, nothing fetched, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from edge.report import sections
from edge.report.build import throttle_warning
from edge.report.markup import as_table, badge, document, facts, plot, section, table
from edge.report.plots import histogram_plot
from edge.report.svg import figure_text
from edge.report.time_series import WHOLE
from edge.telemetry import UNAVAILABLE

SCENARIOS = {
    "single-stream": "single stream: the next image comes when the one before it is answered",
    "multi-stream": "multi-stream: several images a query, the next query when the one before it is answered",
    "server": "server: images arrive at random moments (Poisson), timed from when each was due",
    "offline": "offline: images are sent as fast as the pipeline takes them",
}


def report_html(report: Mapping[str, Any]) -> str:
    """The page. `report` is what `edge.report.build.build_report` returned, or its JSON read back."""
    bundle = report["bundle"]
    title = f"Latency of {bundle['name']}"
    parts = [
        _head(report, title),
        _first_plot(report),
        _tiles(report),
        _taints(report),
        sections.stages(report),
        sections.tail(report),
        sections.over_time(report),
        sections.energy(report),
        sections.layers(report),
        sections.lowerings(report),
        sections.precisions(report),
        _identity(report),
        _reading(report),
    ]
    return document(title, parts)


def _head(report: Mapping[str, Any], title: str) -> str:
    about = SCENARIOS.get(report["scenario"], report["scenario"])
    created = report["created"].replace("T", " ").replace("+00:00", " UTC")
    tainted = [taint["what"] for taint in report["taints"] if taint["state"] == "tainted"]
    warning = " " + badge("tainted", f"tainted: {', '.join(tainted)}") if tainted else ""
    return (
        f'<header><h1>{escape(title)}</h1><p class="verdict">{_verdict(report)}</p>'
        f'<p class="about">{escape(about)} · {escape(str(report["bundle"]["precision"]))} on '
        f"{escape(str(report['backend'].get('name', UNAVAILABLE)))} · {escape(created)}{warning}</p>"
        f'<p class="notice" role="note">{escape(report["notice"])}</p></header>'
    )


def _verdict(report: Mapping[str, Any]) -> str:
    """The first paragraph; that the machine throttled is part of it, in the colour of an alarm."""
    warning = throttle_warning(report)
    if not warning or not report["verdict"].endswith(warning):
        return escape(report["verdict"])
    return f'{escape(report["verdict"].removesuffix(warning))}<strong class="alarm">{escape(warning)}</strong>'


def _first_plot(report: Mapping[str, Any]) -> str:
    total = report["stages"].get("total")
    if total is None:
        return ""
    edges, counts = total["histogram"]["edges"], total["histogram"]["counts"]
    rows = [[f"{figure_text(a)} to {figure_text(b)}", n] for a, b, n in zip(edges, edges[1:], counts) if n]
    return section(
        "Latency, end to end",
        plot(histogram_plot(total), "Distribution of latency")
        + as_table(table(["milliseconds", "images"], rows, "Distribution of latency")),
    )


def _tiles(report: Mapping[str, Any]) -> str:
    total, counts = report["stages"].get("total"), report["counts"]
    energy, gpu = report["energy_per_image_j"], report["gpu_ms"]
    partly = report["energy"] != UNAVAILABLE and report["energy"]["covers"] != WHOLE
    covered = f", {report['energy']['covers']}" if partly else ""
    tiles = [(name, *_unit(total[name] if total else None, "ms")) for name in ("p50", "p90", "p99")]
    tiles += [
        ("throughput", *_unit(report["throughput"], "images/s")),
        ("images classified", f"{counts['done']:,}", ""),
        ("images refused", f"{counts['refused']:,}", ""),
        ("GPU time, p50", *_unit(gpu if gpu == UNAVAILABLE else gpu["p50"], "ms")),
        (f"energy per image{covered}", *_unit(energy, "J")),
    ]
    cells = (
        f"<div><dt>{escape(name)}</dt><dd>{_tile_value(value)} <small>{escape(unit)}</small></dd></div>"
        for name, value, unit in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _unit(value: float | str | None, unit: str) -> tuple[str, str]:
    if isinstance(value, str):
        return "", value
    return ("", "too few images") if value is None else (figure_text(value), unit)


def _tile_value(value: str) -> str:
    return escape(value) or '<span class="muted">&ndash;</span>'


def _taints(report: Mapping[str, Any]) -> str:
    rows = [[taint["what"], badge(taint["state"], taint["state"]), taint["detail"]] for taint in report["taints"]]
    head = ["suspect", "state", "what was found"]
    return section("What may have tainted this run", table(head, rows, "Each suspect, and what was found of it", 3))


def _identity(report: Mapping[str, Any]) -> str:
    columns = [("Machine", report["machine"]), ("Bundle", report["bundle"]), ("Backend", report["backend"])]
    if report["settings"]:
        columns.append(("Run", report["settings"]))
    cells = "".join(f"<div><h3>{name}</h3>{facts(entries)}</div>" for name, entries in columns)
    return section("Machine, bundle and run", f'<div class="columns">{cells}</div>')


READING = (
    "All durations are milliseconds of the monotonic clock; only images that were classified are timed.",
    "pN is the nearest-rank percentile: the smallest measured value that at least N % of the values do not exceed. "
    "A dash stands where the count does not support it.",
    "queue is the time that no stage accounts for: waiting, and handing over between threads. The means of the stages "
    "add up to the mean of total; their percentiles do not.",
    "unavailable means that this machine or backend does not tell; it never means zero.",
)


def _reading(report: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*report["notes"], *READING))
    return section("How to read this", f"<ul>{notes}</ul>")
