"""The page's sections for who wants to know why: stages, tail, time, energy, layers, lowerings, precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edge.report.markup import as_table, badge, facts, plot, section, table
from edge.report.plots import histograms_plot, percentile_plot, stage_plot, waterfall_plot
from edge.report.precisions import PERCENT, precision_plot
from edge.report.svg import figure_text
from edge.report.time_line import time_line_plot, unread
from edge.statistics import PERCENTILES
from edge.telemetry import UNAVAILABLE

COLUMNS = ("mean", *(f"p{percentile}" for percentile in PERCENTILES), "max")

SPANS = 6
"""Periods of throttling that are named; the plot shows all."""

REFORMATS = 12
"""Reformat layers that stand in the open; the table of all layers has the others."""


def stages(report: Mapping[str, Any]) -> str:
    """Where an image's time goes on average, and how far each stage spreads."""
    summaries = report["stages"]
    if not summaries:
        return ""
    rows = [_summary_row(stage, summary) for stage, summary in summaries.items()]
    if report["query"] is not None:
        rows.append(_summary_row(f"query of {report['settings'].get('samples_per_query')} images", report["query"]))
    if report["gpu_ms"] != UNAVAILABLE:
        rows.append(_summary_row("infer, on the GPU's clock", report["gpu_ms"]))
    plots = plot(waterfall_plot(summaries), "Mean time in each stage, one after the other")
    if summaries["total"]["p50"] is not None:
        plots += f"<h3>How far each stage spreads</h3>{plot(stage_plot(summaries), 'Percentiles of each stage')}"
    others = {stage: summary for stage, summary in summaries.items() if stage != "total"}
    distributions = plot(histograms_plot(others), "Distribution of each stage")
    return section(
        "Where the time goes",
        plots
        + table(["stage", "images", *COLUMNS], rows, "Milliseconds in each stage")
        + f"<details><summary>Distribution of each stage</summary>{distributions}</details>",
    )


def _summary_row(name: str, summary: Mapping[str, Any]) -> list[Any]:
    return [name, summary["count"], *(figure_text(summary[column]) for column in COLUMNS)]


def tail(report: Mapping[str, Any]) -> str:
    """Latency by percentile."""
    curve = report["percentile_curve"]
    if len(curve["ms"]) < 2:
        return ""
    rows = [[f"{percentile:g} %", figure_text(ms)] for percentile, ms in zip(curve["percentile"], curve["ms"])]
    return section(
        "The tail",
        plot(percentile_plot(curve), "Latency by percentile")
        + as_table(table(["images", "within, ms"], rows, "Latency by percentile")),
    )


def over_time(report: Mapping[str, Any]) -> str:
    """The run along its time axis; when it throttled is said in words, too."""
    series = report["time_series"]
    drawn = time_line_plot(series)
    missing = unread(series)
    note = f'<p class="muted">Not readable on this machine: {escape(", ".join(missing))}.</p>' if missing else ""
    if not drawn:
        return section("Over time", note) if note else ""
    latency = series["latency"]
    figures = ""
    if latency != UNAVAILABLE:
        rows = [
            [figure_text(t), n, figure_text(p50), figure_text(most)]
            for t, n, p50, most in zip(latency["t_s"], latency["count"], latency["p50"], latency["max"])
        ]
        figures = as_table(table(["second", "images", "median, ms", "longest, ms"], rows, "Latency over time"))
    return section("Over time", _throttled(series["throttled"]) + plot(drawn, "The run over time") + note + figures)


def _throttled(periods: Sequence[Mapping[str, Any]] | str) -> str:
    if isinstance(periods, str) or not periods:
        return ""
    spans = [f"{figure_text(p['from_s'])} to {figure_text(p['to_s'])} s ({', '.join(p['what'])})" for p in periods]
    more = f"; and {len(spans) - SPANS} times more" if len(spans) > SPANS else ""
    return f"<p>{badge('tainted', 'throttled')} {escape('; '.join(spans[:SPANS]) + more)}</p>"


def energy(report: Mapping[str, Any]) -> str:
    """What the images cost in energy; nothing at all where power cannot be read."""
    found = report["energy"]
    if found == UNAVAILABLE:
        return ""
    per_image = report["energy_per_image_j"]
    entries = {
        "energy per image": UNAVAILABLE if per_image == UNAVAILABLE else f"{figure_text(per_image)} J",
        "mean power": f"{figure_text(found['mean_w'])} W",
        "whole run": f"{figure_text(found['joules'])} J",
        "measured at": " + ".join(found["rails"]),
        "covers": found["covers"],
    }
    return section("Energy", facts(entries))


def layers(report: Mapping[str, Any]) -> str:
    """The engine's layers; those that only change a tensor's format stand first, in the open."""
    rows = report["layers"]
    if rows == UNAVAILABLE:
        return section("Layers", '<p class="muted">No engine inspector output: unavailable with this backend.</p>')
    reformats = [row for row in rows if row["reformat"]]
    lead = f"{len(rows)} layers, of which {len(reformats)} only change a tensor's format"
    known = [row["ms"] for row in rows if row["ms"] is not None]
    if known and reformats:
        spent = sum(row["ms"] or 0.0 for row in reformats)
        lead += f": they take {figure_text(spent)} of {figure_text(sum(known))} ms ({spent / (sum(known) or 1):.0%})"
    head = ["layer", "type", "output format", "ms"]
    called_out = ""
    if reformats:
        shown = sorted(reformats, key=lambda row: -(row["ms"] or 0.0))[:REFORMATS]
        more = f", the longest {REFORMATS}" if len(reformats) > REFORMATS else ""
        called_out = table(head, map(_layer_row, shown), f"Layers that only change a format{more}", 3)
    flagged = frozenset(number for number, row in enumerate(rows) if row["reformat"])
    everything = table(
        head, map(_layer_row, rows), "All layers, in the engine's order; marked: format only", 3, flagged
    )
    whole = f"<details><summary>All layers</summary>{everything}</details>"
    return section("Layers", f"<p>{escape(lead)}.</p>{called_out}{whole}")


def _layer_row(layer: Mapping[str, Any]) -> list[Any]:
    return [layer["name"], layer["type"], layer["format"], figure_text(layer["ms"])]


def lowerings(report: Mapping[str, Any]) -> str:
    """How the lowerings of MD-Conv compared when the bundle was built."""
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
    return section(
        "Lowerings of MD-Conv",
        f"<p>{escape(comparison['reason'])}. Timed when the bundle was built, in turns, on:</p>"
        f"{facts(comparison['timed_on'])}{table(head, rows, 'One inference, from call to result')}",
    )


def precisions(report: Mapping[str, Any]) -> str:
    """Which layers are left in float16, and what int8 costs in each."""
    plan = report.get("precisions", UNAVAILABLE)
    if plan == UNAVAILABLE:
        return ""
    count = len(plan["left"])
    lead = f"<p>{plan['of'] - count} layers in int8, {count} left in float16: {escape(plan['reason'])}.</p>"
    if not plan["rows"]:
        return section("Precision by layer", lead)
    rows = [
        [
            each["layer"],
            each["precision"],
            *(figure_text(PERCENT * each[name]) for name in ("mean_difference", "max_difference")),
            "" if each["auc_drop"] is None else f"{each['auc_drop']:.4f}",
        ]
        for each in plan["rows"]
    ]
    head = ["layer", "precision", "mean change, points", "largest", "drop of mean AUC"]
    caption = f"Int8 in one layer alone, against float32, on {plan['images']} images"
    return section(
        "Precision by layer",
        lead + plot(precision_plot(plan), "Precision by layer") + as_table(table(head, rows, caption)),
    )
