"""Which layers of an int8 bundle are left in float16, and what int8 in each layer costs, as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.report.svg import RIGHT, WIDTH, figure_text, line, rect, svg, text, tick_text, ticks

PERCENT = 100


def layer_precisions(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """``{"left", "of", "reason", "images", "rows"}``; None where a bundle has one precision, or does not say.

    A row is ``{"layer", "precision", "mean_difference", "max_difference", "auc_drop"}``, in the network's order: what
    int8 in this layer alone changes on so many images. There are none where the build had no reason to measure it.
    """
    plan = manifest.get("mixed_precision")
    if not plan:
        return None
    left = set(plan["left"])
    rows = [
        {"layer": layer, "precision": "float16" if layer in left else "int8", **effect}
        for layer, effect in plan["layers"].items()
    ]
    return {**{key: plan[key] for key in ("left", "of", "reason", "images")}, "rows": rows}


def precision_plot(precisions: Mapping[str, Any]) -> str:
    """A bar a layer: how far int8 in it alone moves a probability on average; those in float16 in another colour."""
    rows = precisions["rows"]
    row, top, label, right = 17.0, 40.0, 230.0, WIDTH - RIGHT - 60
    base = top + row * len(rows)
    high = max(PERCENT * each["mean_difference"] for each in rows) or 1.0

    def x(value: float) -> float:
        return label + (right - label) * value / high

    body = []
    for tick in ticks(0, high):
        body += [line(x(tick), top - 4, x(tick), base, "grid")]
        body += [text(x(tick), base + 16, tick_text(tick), "tick", "middle")]
    for index, each in enumerate(rows):
        y, value = top + row * index, PERCENT * each["mean_difference"]
        half = each["precision"] == "float16"
        tip = f"{each['layer']}, {each['precision']}: {figure_text(value)} percentage points"
        body += [text(label - 8, y + 12, each["layer"], "strong" if half else "tick", "end")]
        body += [rect(label, y + 2, max(x(value) - label, 1), row - 5, "tail" if half else "bar", tip)]
    body += [line(label, top - 4, label, base, "axis")]
    caption = "mean change of a probability by int8 in this layer alone, percentage points"
    body += [text((label + right) / 2, base + 38, caption, "label", "middle")]
    for index, (name, kind) in enumerate((("in int8", "bar"), ("left in float16", "tail"))):
        body += [rect(label + 90 * index, 8, 12, 12, kind), text(label + 90 * index + 18, 18, name, "tick")]
    most = max(rows, key=lambda each: float(each["mean_difference"]))
    words = f"{len(rows)} layers, {len(precisions['left'])} of them in float16; int8 costs most in {most['layer']}."
    return svg("precisions", base + 46, "Precision by layer", words, body)
