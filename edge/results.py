"""The result of one image: probabilities, thresholds, timings, and the JSON object that a user gets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

STAGES = ("queue", "decode", "preprocess", "infer", "postprocess", "total")
"""Names of the timings, in the order in which an image passes."""


@dataclass
class Timings:
    """Where one image's time went, by the monotonic clock.

    ``queue`` is what no stage accounts for: waiting, and being handed from one thread to the next. So the stages add up
    to ``total``.
    """

    received: float = field(default_factory=time.monotonic)
    """When the image came in, in seconds of `time.monotonic`."""
    stages: dict[str, float] = field(default_factory=dict)
    """Milliseconds of each stage that ran."""
    gpu_ms: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as stage `name`, whether it succeeds or raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = (time.monotonic() - start) * 1e3

    def milliseconds(self) -> dict[str, float]:
        """The result's ``timings_ms``, as of now. A stage that did not run is absent; ``gpu`` is, if unmeasured."""
        total = (time.monotonic() - self.received) * 1e3
        figures = {**self.stages, "queue": max(0.0, total - sum(self.stages.values())), "total": total}
        timings = {name: round(figures[name], 4) for name in STAGES if name in figures}
        if self.gpu_ms is not None:
            timings["gpu"] = round(self.gpu_ms, 4)
        return timings


def probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Sigmoid of each logit, any shape; float64, exact to the last digits for logits of any size."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))


def findings(
    labels: Sequence[str], thresholds: Mapping[str, float], logits: NDArray[np.floating[Any]]
) -> dict[str, dict[str, Any]]:
    """Per finding its probability and whether it reaches the threshold. `logits` (L,), in the order of `labels`."""
    return {
        label: {"probability": round(float(p), 8), "positive": bool(p >= thresholds[label])}
        for label, p in zip(labels, probabilities(logits), strict=True)
    }


def image_result(
    *,
    id: str,
    source: str | None,
    sha256: str | None,
    timings: Timings,
    bundle: str,
    gate: str,
    backend: str | None,
    findings: dict[str, dict[str, Any]] | None = None,
    guard: dict[str, Any] | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """The JSON object that stands for one image: ``done`` with `findings`, or ``refused`` with a `reason`.

    `bundle` is its SHA-256, `gate` the verdict of its accuracy gate, `guard` what `edge.guard.Guard.check` found.
    """
    return {
        "id": id,
        "source": source,
        "sha256": sha256,
        "status": "done" if reason is None else "refused",
        "reason": reason,
        "findings": findings,
        "cam": None,
        "guard": guard,
        "timings_ms": timings.milliseconds(),
        "bundle": bundle,
        "gate": gate,
        "backend": backend,
        "time": timestamp(),
    }


def timestamp() -> str:
    """Now, as ISO 8601 in UTC with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
