"""Inline SVG by small functions. Colours and fonts come from the page's style sheet, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 880.0
LEFT, RIGHT = 64.0, 16.0
"""Width of every plot, and the margins beside its data, in SVG units."""


def figure_text(value: float | None) -> str:
    """A figure as a reader wants it: three significant digits, thousands grouped, a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    if value == 0:
        return "0"
    return f"{value:,.{max(0, min(4, 2 - math.floor(math.log10(abs(value)))))}f}"


def tick_text(value: float) -> str:
    """A round number on an axis, without trailing zeros."""
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within `low` to `high` (`low` < `high`), at most about `about` of them."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= about)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def svg(name: str, height: float, title: str, description: str, body: Sequence[str]) -> str:
    """One plot, with a title and a description for those who do not see it. `name` makes its ids unique on the page."""
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
        f"{''.join(body)}</svg>"
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    size = f'width="{max(width, 0):.2f}" height="{max(height, 0):.2f}"'
    return f'<rect x="{x:.2f}" y="{y:.2f}" {size} class="{kind}">{title}</rect>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def path(points: Sequence[tuple[float, float]], kind: str, close: bool = False) -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{steps}{"Z" if close else ""}" class="{kind}"/>'


def dot(x: float, y: float, tip: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="dot"><title>{escape(tip)}</title></circle>'
