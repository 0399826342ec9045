"""The log on standard error: lines of text, or of JSON. Messages never hold what a sender or an image said."""

from __future__ import annotations

import logging

from pythonjsonlogger.json import JsonFormatter


def set_up_logs(format: str, level: str) -> None:
    """Log as `format` (text or json) from `level` on, to where the command line has set up its log."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    if format == "text":
        return
    for handler in root.handlers:
        handler.setFormatter(
            JsonFormatter(
                ["timestamp", "levelname", "name", "threadName", "message"],
                rename_fields={"levelname": "level", "name": "logger", "threadName": "thread"},
                timestamp=True,
            )
        )
