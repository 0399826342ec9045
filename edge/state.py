"""What the daemon knows of itself at this moment, in memory: for the page, the metrics and the back-pressure."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.deliverer import Deliverer
from edge.telemetry import rails_w, rss_mb, temperatures_c

LATENCIES = 300
"""Images whose latency the page plots."""

PACE = 50
"""Images whose pace the back-pressure goes by."""

RETRY_SECONDS = (1.0, 60.0)
"""The shortest and the longest pause that a sender is asked to make."""


class LiveState:
    """Counters since the start. Used by every thread."""

    def __init__(self) -> None:
        self.serving = False
        self.self_test: dict[str, Any] | None = None
        self.done = 0
        self.refused = 0
        self._started = time.monotonic()
        self._latencies: deque[tuple[float, float, float]] = deque(maxlen=LATENCIES)
        self._ends: deque[float] = deque(maxlen=PACE)
        self._lock = threading.Lock()

    def note(self, result: Mapping[str, Any]) -> None:
        """Count one finished image."""
        with self._lock:
            self._ends.append(time.monotonic())
            if result["status"] == "done":
                self.done += 1
                timings = result["timings_ms"]
                self._latencies.append((time.time(), timings["total"], timings.get("infer", 0.0)))
            else:
                self.refused += 1

    def seconds_for(self, images: int) -> float:
        """How long `images` will take at the pace of the last ones, between the shortest and the longest pause."""
        with self._lock:
            ends = list(self._ends)
        shortest, longest = RETRY_SECONDS
        pace = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else shortest
        return min(max(images * pace, shortest), longest)

    def status(
        self,
        *,
        ready: bool,
        stopping: bool,
        backend: str | None,
        waiting: int,
        running: int,
        limit: int,
        counts: dict[str, int],
        sinks: Mapping[str, Deliverer],
        pending: Mapping[str, int],
        pictures: bool,
        root: Path = Path("/"),
    ) -> dict[str, Any]:
        """The object that `edge.web.status.Status` describes."""
        with self._lock:
            latencies = list(self._latencies)
        return {
            "ready": ready,
            "stopping": stopping,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "backend": backend,
            "self_test": self.self_test,
            "queue": {"waiting": waiting, "running": running, "limit": limit},
            "counts": counts,
            "latency_ms": latencies,
            "sinks": {
                name: {
                    "pending": pending.get(name, 0),
                    "delivered": deliverer.delivered,
                    "failed": deliverer.failed,
                    "error": deliverer.error,
                }
                for name, deliverer in sinks.items()
            },
            "pictures": pictures,
            "memory_mb": rss_mb(root),
            "temperatures": temperatures_c(root),
            "power": rails_w(root),
        }
