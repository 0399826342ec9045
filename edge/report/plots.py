"""The report's plots of latency: each a function from a part of ``report.json`` to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edge.report.svg import LEFT, RIGHT, WIDTH, dot, figure_text, line, path, rect, svg, text, tick_text, ticks


def _given(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The percentiles to draw, those that the count supports."""
    return [(name, summary[name]) for name in ("p50", "p90", "p99") if summary[name] is not None]


def _in_words(values: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {figure_text(value)} ms" for name, value in values) or "too few for percentiles"


def histogram_plot(summary: Mapping[str, Any]) -> str:
    """Distribution of the images' latencies, with its percentiles as lines."""
    edges: list[float] = summary["histogram"]["edges"]
    counts: list[int] = summary["histogram"]["counts"]
    top, base = 52.0, 240.0
    # A last bin much wider than the others gathers the tail: it is drawn apart, not to scale.
    tail = len(counts) > 1 and edges[-1] - edges[-2] > 1.5 * (edges[1] - edges[0])
    low, high = edges[0], edges[-2] if tail else edges[-1]
    if high <= low:
        low, high = low * 0.95, (high or 1.0) * 1.05
    right = WIDTH - RIGHT - (90 if tail else 0)

    def x(value: float) -> float:
        return LEFT + (right - LEFT) * (value - low) / (high - low)

    unit = (base - top) / max(counts)
    body = []
    for tick in ticks(0, max(counts), 4):
        if tick == int(tick):
            body += [line(LEFT, base - tick * unit, right, base - tick * unit, "grid")]
            body += [text(LEFT - 8, base - tick * unit + 4, tick_text(tick), "tick", "end")]
    for start, end, count in zip(edges, edges[1:], counts):
        tip = f"{figure_text(start)} to {figure_text(end)} ms: {count} images"
        if tail and end == edges[-1]:
            body += [rect(right + 30, base - count * unit, 40, count * unit, "tail", tip)]
            body += [text(right + 50, base - count * unit - 6, str(count), "tick", "middle")]
            body += [text(right + 50, base + 18, f"> {figure_text(start)}", "tick", "middle")]
            body += [line(right + 22, base, right + 78, base, "axis")]
        elif end > start:
            body += [rect(x(start) + 0.5, base - count * unit, x(end) - x(start) - 1, count * unit, "bar", tip)]
        else:
            body += [rect(x(start) - 20, base - count * unit, 40, count * unit, "bar", tip)]
    body += [line(LEFT, base, right, base, "axis")]
    for tick in ticks(low, high, 8):
        body += [line(x(tick), base, x(tick), base + 4, "axis")]
        body += [text(x(tick), base + 18, tick_text(tick), "tick", "middle")]
    body += _marks([(name, value, x(value)) for name, value in _given(summary) if value <= high], top, base)
    body += [text((LEFT + right) / 2, base + 40, "milliseconds from arrival to result", "label", "middle")]
    body += [text(LEFT - 8, top - 14, "images", "label", "end")]
    span = f"{summary['count']} images between {figure_text(edges[0])} and {figure_text(edges[-1])} ms"
    return svg("histogram", base + 48, "Distribution of latency", f"{span}; {_in_words(_given(summary))}.", body)


def _marks(marks: Sequence[tuple[str, float, float]], top: float, base: float) -> list[str]:
    """Vertical lines with a label each at its right; where there is no room before the next line, a row above it.

    At the plot's edge a label stands at the left of its line.
    """
    lines: list[str] = []
    labels: list[str] = []
    next_x, row = math.inf, -1
    for name, value, x in reversed(marks):
        label = f"{name}  {figure_text(value)} ms"
        width = 7.6 * len(label)
        fits = x + width < WIDTH - RIGHT
        right_end = x + width if fits else x
        row = row + 1 if right_end > next_x else 0
        y = top - 8 - 16 * row
        lines += [line(x, y - 8, x, base, "mark")]
        labels += [text(x + 5 if fits else x - 5, y, label, "strong", "start" if fits else "end")]
        next_x = x if fits else x - width
    return [*lines, *labels]


def stage_plot(stages: Mapping[str, Any]) -> str:
    """A bar a stage: to the median, on to p90, on to p99, as far as the count supports."""
    row, top, label, right = 34.0, 34.0, 112.0, WIDTH - 260
    known = {stage: _given(summary) for stage, summary in stages.items()}
    high = max((values[-1][1] for values in known.values() if values), default=0.0) or 1.0
    base = top + row * len(stages)

    def x(value: float) -> float:
        return label + (right - label) * value / high

    body = []
    for tick in ticks(0, high):
        body += [line(x(tick), top - 4, x(tick), base, "grid")]
        body += [text(x(tick), base + 16, tick_text(tick), "tick", "middle")]
    for index, (stage, values) in enumerate(known.items()):
        y, start = top + row * index + 5, 0.0
        body += [text(label - 10, y + 16, stage, "strong" if stage == "total" else "", "end")]
        for name, value in values:
            body += [rect(x(start), y, x(value) - x(start), row - 11, name, f"{stage} {name}: {figure_text(value)} ms")]
            start = value
        for column, (_, value) in enumerate(values):
            body += [text(right + 90 + 76 * column, y + 16, figure_text(value), "", "end")]
    body += [line(label, top - 4, label, base, "axis")]
    body += [text((label + right) / 2, base + 38, "milliseconds", "label", "middle")]
    for index, name in enumerate(("p50", "p90", "p99")):
        body += [rect(label + 90 * index, 4, 12, 12, name)]
        body += [text(label + 90 * index + 18, 14, f"up to {name}", "tick")]
        body += [text(right + 90 + 76 * index, 14, f"{name}, ms", "tick", "end")]
    words = "; ".join(f"{stage}: {_in_words(values)}" for stage, values in known.items())
    return svg("stages", base + 46, "Time in each stage", words, body)


def percentile_plot(curve: Mapping[str, Sequence[float]]) -> str:
    """Latency over percentile. Each further nine of the percentile has the same width, so that the tail is seen."""
    top, base, right = 34.0, 236.0, WIDTH - RIGHT - 30
    points = list(zip(curve["percentile"], curve["ms"]))
    last, high = points[-1][0], max(curve["ms"]) or 1.0

    def x(percentile: float) -> float:
        return LEFT + (right - LEFT) * math.log10(1 - percentile / 100) / math.log10(1 - last / 100)

    def y(value: float) -> float:
        return base - (base - top) * value / high

    body = []
    for tick in ticks(0, high):
        body += [line(LEFT, y(tick), right, y(tick), "grid")]
        body += [text(LEFT - 8, y(tick) + 4, tick_text(tick), "tick", "end")]
    for tick in (0, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99):
        if tick <= last:
            body += [line(x(tick), base, x(tick), base + 4, "axis")]
            body += [text(x(tick), base + 18, f"{tick:g} %", "tick", "middle")]
    drawn = [(x(percentile), y(value)) for percentile, value in points]
    body += [path([(drawn[0][0], base), *drawn, (drawn[-1][0], base)], "area", close=True), path(drawn, "curve")]
    named = [(percentile, value) for percentile, value in points if percentile in (50, 90, 99, 99.9)]
    for percentile, value in named:
        body += [dot(x(percentile), y(value), f"p{percentile:g}: {figure_text(value)} ms")]
        body += [text(x(percentile), y(value) - 11, f"{figure_text(value)}", "strong", "middle")]
    body += [line(LEFT, base, right, base, "axis")]
    body += [text((LEFT + right) / 2, base + 40, "percentile of images", "label", "middle")]
    body += [text(LEFT - 8, 14, "ms", "label", "end")]
    words = ", ".join(f"{percentile:g} % within {figure_text(value)} ms" for percentile, value in named)
    return svg("percentiles", base + 48, "Latency by percentile", f"{words}.", body)


def waterfall_plot(stages: Mapping[str, Any]) -> str:
    """The mean time of an image, stage after stage: each begins where the one before ends, and the total spans all.

    A stage that not every image passed counts with the share of those that did, so that the steps add up.
    """
    row, top, label, right = 30.0, 12.0, 112.0, WIDTH - 150
    total = stages["total"]
    high = total["mean"] or 1.0
    base = top + row * len(stages)

    def x(value: float) -> float:
        return label + (right - label) * min(value / high, 1.0)

    body = []
    for tick in ticks(0, high):
        body += [line(x(tick), top - 4, x(tick), base, "grid")]
        body += [text(x(tick), base + 16, tick_text(tick), "tick", "middle")]
    start, words = 0.0, []
    for index, (stage, summary) in enumerate(stages.items()):
        y, whole = top + row * index + 4, stage == "total"
        value = summary["mean"] * summary["count"] / total["count"]
        begin = 0.0 if whole else start
        figure = f"{figure_text(value)} ms, {value / high:.0%}"
        body += [text(label - 10, y + 15, stage, "strong" if whole else "", "end")]
        body += [rect(x(begin), y, max(x(begin + value) - x(begin), 1.0), row - 9, "p50" if whole else "bar", figure)]
        body += [text(right + 12, y + 15, figure, "strong" if whole else "")]
        if not whole:
            start += value
            body += [line(x(start), y + row - 9, x(start), y + row, "axis")]
        words += [f"{stage}: {figure}"]
    body += [line(label, top - 4, label, base, "axis")]
    body += [text((label + right) / 2, base + 38, "milliseconds, on average", "label", "middle")]
    return svg("waterfall", base + 46, "Mean time in each stage, one after the other", "; ".join(words), body)


def histograms_plot(stages: Mapping[str, Any]) -> str:
    """A small histogram a stage, two in a row, each on its own axes."""
    height, gap = 76.0, 52.0
    width = (WIDTH - LEFT - RIGHT - 40) / 2
    body: list[str] = []
    for index, (stage, summary) in enumerate(stages.items()):
        left = LEFT / 2 + (width + 60) * (index % 2)
        base = 24 + height + (height + gap) * (index // 2)
        edges, counts = summary["histogram"]["edges"], summary["histogram"]["counts"]
        span = (edges[-1] - edges[0]) or 1.0
        for start, end, count in zip(edges, edges[1:], counts):
            tall = height * count / max(counts)
            tip = f"{figure_text(start)} to {figure_text(end)} ms: {count} images"
            at, wide = left + width * (start - edges[0]) / span, width * (end - start) / span or width
            body += [rect(at, base - tall, max(wide - 1, 0.5), tall, "bar", tip)]
        body += [line(left, base, left + width, base, "axis"), text(left, base - height - 8, stage, "strong")]
        body += [text(left, base + 16, figure_text(edges[0]), "tick")]
        body += [text(left + width, base + 16, f"{figure_text(edges[-1])} ms", "tick", "end")]
    rows = math.ceil(len(stages) / 2)
    words = f"{', '.join(stages)}: milliseconds to the right, images upwards"
    return svg("distributions", 24 + (height + gap) * rows, "Distribution of each stage", words, body)
