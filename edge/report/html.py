"""``report.html`` from ``report.json`` alone: one file, no scripts, nothing fetched, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from edge.report.plots import histogram_plot, percentile_plot, stage_plot
from edge.report.precisions import PERCENT, precision_plot
from edge.report.style import STYLE
from edge.report.svg import figure_text
from edge.report.time_line import time_line_plot, unread
from edge.statistics import PERCENTILES
from edge.telemetry import UNAVAILABLE

COLUMNS = ("mean", *(f"p{percentile}" for percentile in PERCENTILES), "max")

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
        _stages(report),
        _tail(report),
        _time(report),
        _gpu_and_layers(report),
        _lowerings(report),
        _precisions(report),
        _identity(report),
        _reading(report),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(report: Mapping[str, Any], title: str) -> str:
    about = SCENARIOS.get(report["scenario"], report["scenario"])
    created = report["created"].replace("T", " ").replace("+00:00", " UTC")
    tainted = [taint["what"] for taint in report["taints"] if taint["state"] == "tainted"]
    warning = f' <span class="badge tainted">tainted: {escape(", ".join(tainted))}</span>' if tainted else ""
    return (
        f'<header><h1>{escape(title)}</h1><p class="verdict">{escape(report["verdict"])}</p>'
        f'<p class="about">{escape(about)} · {escape(str(report["bundle"]["precision"]))} on '
        f"{escape(str(report['backend'].get('name', UNAVAILABLE)))} · {escape(created)}{warning}</p>"
        f'<p class="notice" role="note">{escape(report["notice"])}</p></header>'
    )


def _first_plot(report: Mapping[str, Any]) -> str:
    total = report["stages"].get("total")
    if total is None:
        return ""
    edges, counts = total["histogram"]["edges"], total["histogram"]["counts"]
    rows = [[f"{figure_text(a)} to {figure_text(b)}", n] for a, b, n in zip(edges, edges[1:], counts) if n]
    return _section(
        "Latency, end to end",
        _plot(histogram_plot(total)) + _as_table(_table(["milliseconds", "images"], rows, "Distribution of latency")),
    )


def _tiles(report: Mapping[str, Any]) -> str:
    total, counts = report["stages"].get("total"), report["counts"]
    energy, gpu = report["energy_per_image_j"], report["gpu_ms"]
    tiles = [(name, *_unit(total[name] if total else None, "ms")) for name in ("p50", "p90", "p99")]
    tiles += [
        ("throughput", *_unit(report["throughput"], "images/s")),
        ("images classified", f"{counts['done']:,}", ""),
        ("images refused", f"{counts['refused']:,}", ""),
        ("GPU time, p50", *_unit(gpu if gpu == UNAVAILABLE else gpu["p50"], "ms")),
        ("energy per image", *_unit(energy, "J")),
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
    rows = "".join(
        f'<tr><th scope="row">{escape(t["what"])}</th><td><span class="badge {escape(t["state"])}">{escape(t["state"])}'
        f"</span></td><td>{escape(t['detail'])}</td></tr>"
        for t in report["taints"]
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("suspect", "state", "what was found"))
    return _section(
        "What may have tainted this run",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>',
    )


def _stages(report: Mapping[str, Any]) -> str:
    stages = report["stages"]
    if not stages:
        return ""
    rows = [_summary_row(stage, summary) for stage, summary in stages.items()]
    if report["query"] is not None:
        rows.append(_summary_row(f"query of {report['settings'].get('samples_per_query')} images", report["query"]))
    if report["gpu_ms"] != UNAVAILABLE:
        rows.append(_summary_row("infer, on the GPU's clock", report["gpu_ms"]))
    table = _table(["stage", "images", *COLUMNS], rows, "Milliseconds in each stage")
    plot = _plot(stage_plot(stages)) if stages["total"]["p50"] is not None else ""
    return _section("Where the time goes", plot + table)


def _summary_row(name: str, summary: Mapping[str, Any]) -> list[Any]:
    return [name, summary["count"], *(figure_text(summary[column]) for column in COLUMNS)]


def _tail(report: Mapping[str, Any]) -> str:
    curve = report["percentile_curve"]
    if len(curve["ms"]) < 2:
        return ""
    rows = [[f"{percentile:g} %", figure_text(ms)] for percentile, ms in zip(curve["percentile"], curve["ms"])]
    return _section(
        "The tail",
        _plot(percentile_plot(curve)) + _as_table(_table(["images", "within, ms"], rows, "Latency by percentile")),
    )


def _time(report: Mapping[str, Any]) -> str:
    series = report["time_series"]
    plot = time_line_plot(series)
    missing = unread(series)
    note = f'<p class="muted">Not readable on this machine: {escape(", ".join(missing))}.</p>' if missing else ""
    if not plot:
        return _section("Over time", note) if note else ""
    latency = series["latency"]
    table = ""
    if latency != UNAVAILABLE:
        rows = [
            [figure_text(t), n, figure_text(p50), figure_text(most)]
            for t, n, p50, most in zip(latency["t_s"], latency["count"], latency["p50"], latency["max"])
        ]
        table = _as_table(_table(["second", "images", "median, ms", "longest, ms"], rows, "Latency over time"))
    return _section("Over time", _plot(plot) + note + table)


def _gpu_and_layers(report: Mapping[str, Any]) -> str:
    layers = report["layers"]
    if layers == UNAVAILABLE:
        return _section("Layers", '<p class="muted">No engine inspector output: unavailable with this backend.</p>')
    reformats = [layer for layer in layers if layer["reformat"]]
    lead = f"<p>{len(layers)} layers, of which {len(reformats)} only change a tensor's format.</p>"
    rows = "".join(
        f'<tr{" class=flag" if layer["reformat"] else ""}><td class="wrap">{escape(layer["name"])}</td>'
        f"<td>{escape(layer['type'])}</td><td>{escape(layer['format'])}</td>"
        f'<td class="n">{figure_text(layer["ms"])}</td></tr>'
        for layer in layers
    )
    head = "<thead><tr><th>layer</th><th>type</th><th>output format</th><th class=n>ms</th></tr></thead>"
    table = f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
    return _section("Layers", f"{lead}<details><summary>All layers</summary>{table}</details>")


def _lowerings(report: Mapping[str, Any]) -> str:
    comparison = report["lowerings"]
    if comparison == UNAVAILABLE:
        return ""
    rows = [
        [
            f"{row['kind']} (chosen)" if row["kind"] == comparison["chosen"] else row["kind"],
            *(figure_text(row[name]) for name in ("median_ms", "p10_ms", "p90_ms", "ratio")),
            row["runs"] or "",
            row["builder"] or f"left out: {row['left_out']}",
        ]
        for row in comparison["rows"]
    ]
    head = ["lowering", "median, ms", "p10", "p90", "ratio", "runs", "built by"]
    return _section(
        "Lowerings of MD-Conv",
        f"<p>{escape(comparison['reason'])}. Timed when the bundle was built, in turns, on:</p>"
        f"{_facts(comparison['timed_on'])}{_table(head, rows, 'One inference, from call to result')}",
    )


def _precisions(report: Mapping[str, Any]) -> str:
    precisions = report.get("precisions", UNAVAILABLE)
    if precisions == UNAVAILABLE:
        return ""
    count = len(precisions["left"])
    lead = f"<p>{precisions['of'] - count} layers in int8, {count} left in float16: {escape(precisions['reason'])}.</p>"
    if not precisions["rows"]:
        return _section("Precision by layer", lead)
    rows = [
        [
            each["layer"],
            each["precision"],
            *(figure_text(PERCENT * each[name]) for name in ("mean_difference", "max_difference")),
            "" if each["auc_drop"] is None else f"{each['auc_drop']:.4f}",
        ]
        for each in precisions["rows"]
    ]
    head = ["layer", "precision", "mean change, points", "largest", "drop of mean AUC"]
    caption = f"Int8 in one layer alone, against float32, on {precisions['images']} images"
    return _section(
        "Precision by layer", lead + _plot(precision_plot(precisions)) + _as_table(_table(head, rows, caption))
    )


def _identity(report: Mapping[str, Any]) -> str:
    columns = [("Machine", report["machine"]), ("Bundle", report["bundle"]), ("Backend", report["backend"])]
    if report["settings"]:
        columns.append(("Run", report["settings"]))
    cells = "".join(f"<div><h3>{name}</h3>{_facts(facts)}</div>" for name, facts in columns)
    return _section("Machine, bundle and run", f'<div class="columns">{cells}</div>')


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key).replace("_", " "))}</th><td class="wrap">{_fact(value)}</td></tr>'
        for key, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _fact(value: Any, line_break: str = "<br>") -> str:
    if isinstance(value, Mapping):
        return line_break.join(f"{escape(str(key))}: {_fact(inner, ', ')}" for key, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(inner, ", ") for inner in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == UNAVAILABLE:
        return f'<span class="muted">{UNAVAILABLE}</span>'
    return escape(f"{value:g}" if isinstance(value, float) else str(value))


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
    return _section("How to read this", f"<ul>{notes}</ul>")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _plot(svg: str) -> str:
    return f'<div class="plot">{svg}</div>'


def _as_table(table: str) -> str:
    return f"<details><summary>These figures as a table</summary>{table}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> str:
    """A table whose first column names the row; the others are figures."""
    top = "".join(f'<th scope="col"{" class=n" if i else ""}>{escape(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{escape(str(row[0]))}</th>'
        + "".join(f'<td class="n">{escape(str(cell))}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
