"""Delivers results to one sink, in a thread of its own, and tries again for as long as it takes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edge.bundle import Bundle
from edge.errors import EdgeError, MachineError
from edge.ledger import Ledger, Waiting
from edge.sinks import Delivery, Sink, SinkError, SinkRefusedError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often the outbox is looked at for what was postponed."""


class Deliverer:
    """One sink's thread. A sink that is down holds up no other, and no image."""

    def __init__(self, sink: Sink, ledger: Ledger, bundle: Callable[[], Bundle]) -> None:
        self.sink = sink
        self.delivered = 0
        self.failed = 0
        """Given up since the start: the other side can never take them."""
        self.error: str | None = None
        """Why the last attempt failed; None if it succeeded."""
        self._ledger = ledger
        self._bundle = bundle
        self._more = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"deliver-{sink.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the outbox."""
        self._more.set()

    def stop(self, timeout: float) -> None:
        """Deliver what is due once more, for at most `timeout` seconds; what fails stays in the outbox."""
        self._stopping.set()
        self._more.set()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self.sink.close()

    def _run(self) -> None:
        while True:
            last = self._stopping.is_set()
            try:
                while (waiting := self._ledger.outbox.next(self.sink.name)) is not None:
                    self._deliver(waiting)
            except MachineError as error:  # the disk is full: the ledger waits for space, and so does this
                log.error("%s: %s", self.sink.name, error)
            if last:
                return
            self._more.wait(LOOK_SECONDS)
            self._more.clear()

    def _deliver(self, waiting: Waiting) -> None:
        name, run = self.sink.name, waiting.run
        start = time.monotonic()
        try:
            self.sink.deliver(
                Delivery(
                    result=waiting.result,
                    content=None if waiting.sha256 is None else self._ledger.spool.read(waiting.sha256),
                    picture=self._ledger.picture(run),
                    bundle=self._bundle(),
                    attempt=waiting.attempt,
                )
            )
        except SinkRefusedError as error:
            self.failed += 1
            self.error = str(error)
            self._ledger.delivered(waiting, name, "given up")
            log.error("%s will never take %s: %s", name, run, error)
        except Exception as error:
            # A sink's own mistake must not end its thread: it is told, and the result is kept and tried again.
            self.error = str(error) if isinstance(error, EdgeError) else f"{type(error).__name__} in the sink"
            pause = self._ledger.outbox.postpone(waiting, name)
            log.warning(
                "%s did not take %s (try %d, again in %.0f s): %s", name, run, waiting.attempt, pause, self.error
            )
            log.debug("%s", name, exc_info=not isinstance(error, SinkError))
        else:
            self.delivered += 1
            self.error = None
            self._ledger.delivered(waiting, name)
            log.debug("%s took %s in %.1f ms", name, run, (time.monotonic() - start) * 1e3)
