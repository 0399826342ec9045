"""The parts that a page is put together from: sections, tables and lists of facts. Every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from edge.report.style import STYLE
from edge.telemetry import UNAVAILABLE


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page of `parts`, which are markup."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


class Html(str):
    """Text that is markup already."""


def _cell(content: Any) -> str:
    return content if isinstance(content, Html) else escape(str(content))


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def plot(svg: str, name: str) -> str:
    return f'<div class="plot"{_scrolls(f"Plot: {name}")}>{svg}</div>'


def _scrolls(name: str) -> str:
    """What may have to be scrolled sideways is reached with the keyboard, and has a name."""
    return f' tabindex="0" role="region" aria-label="{escape(name)}"'


def as_table(table: str) -> str:
    return f"<details><summary>These figures as a table</summary>{table}</details>"


def badge(kind: str, text: str) -> Html:
    return Html(f'<span class="badge {escape(kind)}">{escape(text)}</span>')


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    caption: str,
    figures: int = 1,
    flagged: frozenset[int] = frozenset(),
) -> str:
    """A table whose first column names the row; columns from `figures` on are figures, right-aligned.

    Rows whose number is in `flagged` stand out.
    """

    def kind(column: int) -> str:
        return " class=n" if column >= figures else " class=wrap"

    top = "".join(f'<th scope="col"{kind(i)}>{escape(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        f'<tr{" class=flag" if number in flagged else ""}><th scope="row"{kind(0)}>{_cell(row[0])}</th>'
        + "".join(f"<td{kind(i)}>{_cell(cell)}</td>" for i, cell in enumerate(row[1:], 1))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"{_scrolls(caption)}><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(entries: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key).replace("_", " "))}</th><td class="wrap">{_fact(value)}</td></tr>'
        for key, value in entries.items()
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
