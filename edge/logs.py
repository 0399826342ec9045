"""The log on standard error: lines of text, or of JSON. Messages never hold what a sender or an image said."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

TEXT = "%(asctime)s %(levelname)s %(message)s"


def set_up_logs(format: str, level: str) -> None:
    """Log to standard error as `format` (text or json) from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(
            JsonFormatter(
                ["timestamp", "levelname", "name", "threadName", "message"],
                rename_fields={"levelname": "level", "name": "logger", "threadName": "thread"},
                timestamp=True,
            )
        )
    else:
        handler.setFormatter(logging.Formatter(TEXT))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
