"""The latency report: ``report.json`` from results of images, and ``report.html`` from it."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.errors import MachineError, describe_os_error
from edge.report.build import build_report
from edge.report.html import report_html

__all__ = ["REPORT_HTML", "REPORT_JSON", "build_report", "write_report"]

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def write_report(report: Mapping[str, Any], directory: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into `directory`, making it; returns the path of the page.

    Each file appears whole or not at all, and replaces the one of an earlier run. Raises `MachineError` if the place
    cannot be written.
    """
    content = json.dumps(report, indent=1, allow_nan=False) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / REPORT_JSON, content)
        _write(directory / REPORT_HTML, report_html(json.loads(content)))
    except OSError as error:
        raise MachineError(f"the report cannot be written to {directory}: {describe_os_error(error)}") from None
    return directory / REPORT_HTML


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
