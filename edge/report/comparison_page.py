"""``comparison.html`` from ``comparison.json`` alone, in the manner of the report's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edge.report.markup import badge, document, facts, plot, section, table
from edge.report.svg import LEFT, RIGHT, WIDTH, dot, figure_text, line, rect, svg, text, tick_text, ticks

NOTHING_DIFFERS = "Machine, backend, run and bundles agree, and no taint was found."

READING = (
    "Each ratio is B over A: above 1, B has the higher figure, which is the worse one of latency and energy and the "
    "better one of throughput.",
    "Durations are milliseconds of the monotonic clock; pN is the nearest-rank percentile of the images timed.",
)


def comparison_html(comparison: Mapping[str, Any]) -> str:
    """The page. `comparison` is what `edge.report.compare.comparison_of` returned, or its JSON read back."""
    title = f"{comparison['b']['bundle']['name']} (B) against {comparison['a']['bundle']['name']} (A)"
    parts = [
        _head(comparison, title),
        _ratios(comparison),
        _warnings(comparison),
        _over_the_run(comparison),
        _identity(comparison),
        _reading(comparison),
    ]
    return document(title, parts)


def ratio_text(row: Mapping[str, Any]) -> str:
    """``1.100 (1.089 to 1.112)``."""
    if row["ratio"] is None:
        return "\N{EN DASH}"
    interval = "no interval" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    return f"{row['ratio']:.3f} ({interval})"


def _head(comparison: Mapping[str, Any], title: str) -> str:
    how = "paired: measured side by side, in turns" if comparison["paired"] else "not paired: two runs made apart"
    created = comparison["created"].replace("T", " ").replace("+00:00", " UTC")
    count = len(comparison["warnings"])
    warned = " " + badge("tainted", f"{count} warning{'s' if count > 1 else ''}") if count else ""
    return (
        f'<header><h1>{escape(title)}</h1><p class="verdict">{escape(comparison["verdict"])}</p>'
        f'<p class="about">{how} · {escape(created)}{warned}</p>'
        f'<p class="notice" role="note">{escape(comparison["notice"])}</p></header>'
    )


def _ratios(comparison: Mapping[str, Any]) -> str:
    drawn = [row for row in comparison["rows"] if row["ratio"] is not None]
    picture = plot(ratio_plot(drawn, comparison.get("margin")), "Ratios of B to A") if drawn else ""
    rows = [
        [row["what"], figure_text(row["a"]), figure_text(row["b"]), row["unit"], ratio_text(row), row["better"]]
        for row in comparison["rows"]
    ]
    head = ["figure", "A", "B", "unit", f"B / A ({100 * comparison['confidence']:g} % interval)", "better"]
    return section("Ratios, B over A", picture + table(head, rows, "Both, and the ratio"))


def _warnings(comparison: Mapping[str, Any]) -> str:
    lines = "".join(f"<li>{escape(warning)}</li>" for warning in comparison["warnings"])
    return section("What may mislead", f"<ul>{lines}</ul>" if lines else f"<p>{NOTHING_DIFFERS}</p>")


def _over_the_run(comparison: Mapping[str, Any]) -> str:
    ratios = [math.exp(value) for value in comparison.get("log_ratios", [])]
    if len(ratios) < 2:
        return ""
    return section("Over the run", plot(opening_plot(ratios, comparison["rows"][0]), "Ratio of each opening"))


def _identity(comparison: Mapping[str, Any]) -> str:
    cells = []
    for name in ("a", "b"):
        side = comparison[name]
        kept = {key: side[key] for key in ("kind", "scenario", "created", "counts", "settings") if key in side}
        groups = [("bundle", side["bundle"]), ("backend", side["backend"]), ("run", kept)]
        shown = "".join(f"<h3>{name.upper()}: {what}</h3>{facts(known)}" for what, known in groups if known)
        cells.append(f"<div>{shown}</div>")
    shared = {key: comparison[key] for key in ("settings", "machine") if key in comparison}
    machines = shared or {f"machine of {name.upper()}": comparison[name]["machine"] for name in ("a", "b")}
    cells += [f"<div><h3>{what.capitalize()}</h3>{facts(known)}</div>" for what, known in machines.items()]
    return section("What was compared", f'<div class="columns">{"".join(cells)}</div>')


def _reading(comparison: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*comparison["notes"], *READING))
    return section("How to read this", f"<ul>{notes}</ul>")


def ratio_plot(rows: Sequence[Mapping[str, Any]], margin: float | None) -> str:
    """A dot and an interval a figure, about a line at 1, with the margin as a band."""
    row_height, top, label, right = 26.0, 14.0, 150.0, WIDTH - RIGHT - 20
    base = top + row_height * len(rows)
    ends = [value for row in rows for value in (row["ratio"], row["low"], row["high"]) if value]
    reach = 1.15 * max(abs(math.log(value)) for value in (1.05, 1 + (margin or 0), *ends))

    def x(ratio: float) -> float:
        return label + (right - label) * (math.log(ratio) + reach) / (2 * reach)

    body = []
    if margin is not None:
        body += [rect(x(1 / (1 + margin)), top, x(1 + margin) - x(1 / (1 + margin)), base - top, "band", "the margin")]
    for tick in _ratio_ticks(reach):
        body += [line(x(tick), top, x(tick), base, "grid"), text(x(tick), base + 18, tick_text(tick), "tick", "middle")]
    body += [line(x(1), top, x(1), base, "axis")]
    for index, row in enumerate(rows):
        y = top + row_height * (index + 0.5)
        body += [text(label - 10, y + 4, row["what"], "strong" if index == 0 else "", "end")]
        if row["low"] is not None:
            body += [line(x(row["low"]), y, x(row["high"]), y, "interval")]
        body += [dot(x(row["ratio"]), y, f"{row['what']}: {ratio_text(row)}")]
    body += [text((label + right) / 2, base + 40, "B / A", "label", "middle")]
    words = "; ".join(f"{row['what']}: {ratio_text(row)}" for row in rows)
    return svg("ratios", base + 48, "Ratios of B to A", words, body)


def _ratio_ticks(reach: float) -> list[float]:
    """Round ratios from exp(-reach) to exp(reach), 1 among them."""
    if reach < math.log(2):
        return ticks(math.exp(-reach), math.exp(reach), 7)
    decades = range(math.floor(-reach / math.log(10)), math.ceil(reach / math.log(10)) + 1)
    steps = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    return [step for step in steps if abs(math.log(step)) <= reach]


def opening_plot(ratios: Sequence[float], total: Mapping[str, Any]) -> str:
    """The ratio of each opening, in their order."""
    top, base, right = 16.0, 190.0, WIDTH - RIGHT
    low, high = min(*ratios, 1.0), max(*ratios, 1.0)
    low, high = low - 0.05 * (high - low + 0.01), high + 0.05 * (high - low + 0.01)

    def y(ratio: float) -> float:
        return base - (base - top) * (ratio - low) / (high - low)

    body = []
    for tick in ticks(low, high):
        body += [line(LEFT, y(tick), right, y(tick), "grid")]
        body += [text(LEFT - 8, y(tick) + 4, tick_text(tick), "tick", "end")]
    body += [line(LEFT, y(1), right, y(1), "axis")]
    if total["ratio"] is not None:
        body += [line(LEFT, y(total["ratio"]), right, y(total["ratio"]), "mark")]
    for index, ratio in enumerate(ratios):
        x = LEFT + (right - LEFT) * (index + 0.5) / len(ratios)
        body += [dot(x, y(ratio), f"opening {index + 1}: {ratio:.3f}")]
    body += [text((LEFT + right) / 2, base + 24, "openings, in their order; dashed: the middle", "label", "middle")]
    words = (
        f"{len(ratios)} openings between {min(ratios):.3f} and {max(ratios):.3f}; {total['what']} {ratio_text(total)}."
    )
    return svg("openings", base + 32, "Ratio of each opening", words, body)
