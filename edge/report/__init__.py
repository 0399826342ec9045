"""The latency report: ``report.json`` from results of images, ``report.html`` from it; and two of them compared."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.errors import MachineError, describe_os_error
from edge.report.build import build_report
from edge.report.comparison_page import comparison_html
from edge.report.html import report_html
from edge.report.read import REPORT_JSON

__all__ = [
    "COMPARISON_JSON",
    "REPORT_HTML",
    "REPORT_JSON",
    "build_report",
    "write_comparison",
    "write_openmetrics",
    "write_report",
]

REPORT_HTML = "report.html"
COMPARISON_JSON = "comparison.json"
COMPARISON_HTML = "comparison.html"


def write_report(report: Mapping[str, Any], directory: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into `directory`, making it; returns the path of the page.

    Each file appears whole or not at all, and replaces the one of an earlier run. Raises `MachineError` if the place
    cannot be written.
    """
    return _write_both(report, directory, REPORT_JSON, REPORT_HTML, report_html)


def write_comparison(comparison: Mapping[str, Any], directory: Path) -> Path:
    """Write ``comparison.json`` and ``comparison.html``, as `write_report`."""
    return _write_both(comparison, directory, COMPARISON_JSON, COMPARISON_HTML, comparison_html)


def write_openmetrics(report: Mapping[str, Any], path: Path) -> None:
    """Write the report in OpenMetrics' text (`edge.report.openmetrics`), as `write_report`."""
    from edge.report.openmetrics import openmetrics  # here: few ask for it

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, openmetrics(report))
    except OSError as error:
        raise MachineError(f"{path} cannot be written: {describe_os_error(error)}") from None


def _write_both(
    report: Mapping[str, Any], directory: Path, data: str, page: str, draw: Callable[[Mapping[str, Any]], str]
) -> Path:
    content = json.dumps(report, indent=1, allow_nan=False) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / data, content)
        _write(directory / page, draw(json.loads(content)))
    except OSError as error:
        raise MachineError(f"the report cannot be written to {directory}: {describe_os_error(error)}") from None
    return directory / page


def _write(path: Path, content: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        Path(temporary).chmod(0o644)  # mkstemp makes it private; a report is there to be read
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
