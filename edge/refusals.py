"""Log lines about what was turned away: few of them, however many knock, so that nobody can fill the disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Hashable

SECONDS = 1.0
"""From one line of a kind to the next."""


class Refusals:
    """Warns in `log` at most once in `seconds` for each kind of refusal; a line counts those of its kind left out.

    Kinds and facts are never what came in: neither memory nor the log may grow with what a sender makes up.
    """

    def __init__(self, log: logging.Logger, seconds: float = SECONDS) -> None:
        self._log = log
        self._seconds = seconds
        self._last: dict[Hashable, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def tell(self, kind: Hashable, message: str, *facts: object) -> None:
        """Log `message` % `facts`, unless a line of this `kind` was logged just before. From any thread."""
        now = time.monotonic()
        with self._lock:
            told, left_out = self._last.get(kind, (float("-inf"), 0))
            if now - told < self._seconds:
                self._last[kind] = told, left_out + 1
                return
            self._last[kind] = now, 0
        if left_out:
            message, facts = f"{message} (and %d more like it since the last such line)", (*facts, left_out)
        self._log.warning(message, *facts)
