"""What every measurement of a bundle shares: its pipeline, the images that go into it over and over, the warm-up."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.backends import Backend
from edge.bundle import Bundle
from edge.errors import InputRefusedError
from edge.pipeline import Item, Outcome, Pipeline
from edge.selftest import golden_inputs

WARM_UP = 16
"""Images run before the clock starts: libraries load, memory is allocated, caches and clocks settle."""


class Load:
    """Sends images into the pipeline, over and over in their order, and collects the results."""

    def __init__(
        self, bundle: Bundle, open_backend: Callable[[], Backend], images: Sequence[Path], guard: bool
    ) -> None:
        self._finished: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.on_result: Callable[[dict[str, Any]], None] | None = None
        """Gets each result instead of `collect`, in the pipeline's thread."""
        given: list[dict[str, Any]] = [{"path": path} for path in images]
        if not given:
            given = [{"pixels": image} for image in golden_inputs(bundle)[0][:, 0]]
        self.distinct = len(given)
        self._next = itertools.cycle(given)
        self._number = itertools.count()
        self.pipeline = Pipeline(bundle, open_backend, self._deliver, guard=guard)

    def _deliver(self, outcome: Outcome) -> None:
        kept = ("id", "status", "reason", "timings_ms", "time")  # a long run has no memory for the rest
        result = {key: outcome.result[key] for key in kept}
        # The samples' clock; the result's own time is the wall clock's, which may be set while we run.
        (self.on_result or self._finished.put)({**result, "ended": time.monotonic()})

    def submit(self, received: float | None = None, note: Callable[[str], object] | None = None) -> None:
        """Send the next image, as received at `received` (seconds of `time.monotonic`; None: now).

        `note` gets the identifier that its result will have, before it is sent.
        """
        item = Item(f"{next(self._number)}", **next(self._next))
        if received is not None:
            item.received = received
        if note is not None:
            note(item.id)
        self.pipeline.submit(item)

    def check(self) -> None:
        self.pipeline.check()

    def collect(self, count: int) -> list[dict[str, Any]]:
        """The next `count` results. Raises what stopped the pipeline, if something does."""
        results: list[dict[str, Any]] = []
        while len(results) < count:
            try:
                results.append(self._finished.get(timeout=0.5))
            except queue.Empty:
                self.pipeline.check()
        return results


def warm_up(load: Load) -> None:
    """Run `WARM_UP` images, and more while none of them could be used, until each was tried."""
    results: list[dict[str, Any]] = []
    while not results or (len(results) < load.distinct and not any_done(results)):
        for _ in range(WARM_UP):
            load.submit()
        results += load.collect(WARM_UP)
    require_done(results)


def any_done(results: Sequence[dict[str, Any]]) -> bool:
    return any(result["status"] == "done" for result in results)


def require_done(results: Sequence[dict[str, Any]]) -> None:
    if not any_done(results):
        raise InputRefusedError(f"none of the images can be used; the first: {results[0]['reason']}")
