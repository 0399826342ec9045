"""The daemon's live state, as `edge.service.Service.status` gives it to the page: what each entry means."""

from __future__ import annotations

from typing import Any, TypedDict


class QueueStatus(TypedDict):
    """How many images are where, now."""

    waiting: int
    """Received and safe on the disk, not yet run."""
    running: int
    limit: int
    """From so many waiting images on, sources are turned away."""


class SinkStatus(TypedDict):
    """One sink's backlog, and what it did since the daemon started."""

    pending: int
    """Results that it has still to deliver, those of before the start included."""
    delivered: int
    failed: int
    """Results given up for good, since the other side can never take them."""
    error: str | None
    """Why the last attempt failed; None if it succeeded, or if there was none."""


class Status(TypedDict):
    """The live state: a snapshot that costs no more than a few counters and one query of the ledger.

    What does not change while the daemon runs, such as the labels, the page takes from `Service.bundle`.
    """

    ready: bool
    """As `Service.ready`."""
    stopping: bool
    """Told to stop, and finishing what is under way."""
    uptime_seconds: float
    backend: str | None
    """Name of the open backend; None until it is open."""
    self_test: dict[str, Any] | None
    """What `edge.selftest.self_test` returned when the backend was opened; None until then."""
    queue: QueueStatus
    counts: dict[str, int]
    """``{"done", "refused"}``: all finished runs in the ledger, those of before the start included."""
    latency_ms: list[tuple[float, float, float]]
    """The last done images, oldest first, 300 at most: when each was done (seconds since the epoch), and its timings
    ``total`` and ``infer`` in milliseconds."""
    sinks: dict[str, SinkStatus]
    """By name; empty if there is none besides the ledger."""
    pictures: bool
    """Whether pictures of done images are kept."""
    memory_mb: float | None
    """Resident memory of this process; None where it cannot be read."""
    temperatures: dict[str, float]
    """Degrees Celsius by thermal zone, as `edge.telemetry.temperatures_c`; empty where none can be read."""
    power: dict[str, float]
    """Watts by rail, as `edge.telemetry.rails_w`; empty where none can be read."""
