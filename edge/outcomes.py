"""What comes of the runs: recorded in the ledger, counted, and handed to the sinks and to shadow mode."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from edge.bundle import Bundle
from edge.deliverer import Deliverer
from edge.errors import StorageFullError
from edge.ledger import Ledger
from edge.metrics import Metrics
from edge.pipeline import Outcome
from edge.service import Picture
from edge.shadow import Shadow
from edge.sinks import Sink
from edge.state import LiveState

log = logging.getLogger(__name__)

ATTEMPTS = 10
"""How often an image may be under way when the process ends, before it is refused as the likely reason."""

SINK_SECONDS = 10.0
"""How long a stop waits for each sink to deliver what is due; what is left is delivered after the next start."""

Refusal = Callable[[str, str | None, str | None, str], dict[str, Any]]
"""Makes the result of an image that is refused without a run: of its id, SHA-256, source and the reason."""


class Outcomes:
    """Between the pipeline and everyone who waits for a result. Used by the pipeline's thread and the main one."""

    def __init__(self, ledger: Ledger, metrics: Metrics, live: LiveState, give_up: Callable[[], bool]) -> None:
        """While the disk is full results wait, unless `give_up` says that they cannot."""
        self.deliverers: list[Deliverer] = []
        self._ledger = ledger
        self._metrics = metrics
        self._live = live
        self._give_up = give_up
        self._shadow: Shadow | None = None
        self._closing = threading.Event()

    def deliver_to(self, sinks: Iterable[Sink], bundle: Callable[[], Bundle]) -> None:
        """Deliver what is finished from now on to `sinks`, and what was for sinks that are gone to nobody."""
        for sink in sinks:
            self.deliverers.append(Deliverer(sink, self._ledger, bundle))
        self._ledger.outbox.forget_sinks_but(set(self._sinks()))

    def shadow(self, bundle: Bundle, fraction: float) -> None:
        """Run this `fraction` of the images on `bundle`'s float32 model, too."""
        before, self._shadow = self._shadow, Shadow(bundle, fraction, self._metrics) if fraction > 0 else None
        if before is not None:
            before.close()

    def record(self, outcome: Outcome, bundle: Bundle) -> None:
        """Record what `bundle` made of one of the ledger's runs. Raises `StorageFullError` if it cannot wait."""
        picture = None if outcome.pixels is None else Picture(outcome.pixels, outcome.cam, bundle.labels)
        while True:
            try:
                self._ledger.finish(outcome.result, picture, self._sinks())
                break
            except StorageFullError as error:
                # The result is computed and its image is safe: it waits for space, and so do all behind it.
                if self._give_up():
                    raise
                log.error("results wait: %s", error)
                self._closing.wait(1.0)
        self._finished(outcome.result)
        if self._shadow is not None:
            self._shadow.offer(outcome.result, outcome.pixels)

    def refuse_hopeless(self, refusal: Refusal) -> None:
        """Refuse the images that may be what ended the process, time and again. To be called before any is run."""
        for run in self._ledger.take_hopeless(ATTEMPTS):
            reason = f"the daemon ended {run.attempts} times while it worked on this image: look at it elsewhere"
            result = refusal(run.id, run.sha256, run.source, reason)
            self._ledger.finish(result, sinks=self._sinks())
            self._finished(result)

    def refuse_unread(self, key: str, origin: str, result: dict[str, Any]) -> None:
        """Record the refused `result` of a file with this `edge.ledger.file_key`, whose content could not be read."""
        self._ledger.refuse_unread(key=key, origin=origin, result=result, sinks=self._sinks())
        self._finished(result)

    def close(self, seconds: float = SINK_SECONDS) -> None:
        """Deliver what is due, for at most `seconds` for each sink. May be called twice."""
        self._closing.set()
        for deliverer in self.deliverers:
            deliverer.stop(seconds)
        if self._shadow is not None:
            self._shadow.close()

    def _sinks(self) -> list[str]:
        return [deliverer.sink.name for deliverer in self.deliverers]

    def _finished(self, result: dict[str, Any]) -> None:
        self._live.note(result)
        self._metrics.observe(result)
        for deliverer in self.deliverers:
            deliverer.wake()
        if result["status"] == "done":
            log.info("done %s in %.1f ms", result["id"], result["timings_ms"]["total"])
        else:
            log.warning("refused %s: %s", result["id"], result["reason"])
