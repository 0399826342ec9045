"""Runs what the ledger holds: feeds a bundle's pipeline, records its outcomes, and swaps it for another bundle's."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import BusyError, InputRefusedError, MachineError, StorageFullError
from edge.ledger import Ledger, Run
from edge.pipeline import Item, Outcome, Pipeline
from edge.results import Timings, image_result

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often the ledger is looked at, whatever was or was not told."""

ANNOUNCED = 100_000
"""Images whose time of reception is remembered at most."""

Deliver = Callable[[Outcome, Bundle], None]


class Runner:
    """One pipeline at a time, fed from the ledger by a thread of its own, STAT images first."""

    def __init__(
        self, ledger: Ledger, open_pipeline: Callable[[Bundle, Callable[[Outcome], None]], Pipeline], deliver: Deliver
    ) -> None:
        """`open_pipeline` starts a bundle's pipeline; `deliver` gets the outcome of each of the ledger's runs."""
        self._ledger = ledger
        self._open_pipeline = open_pipeline
        self._deliver = deliver
        self._direct: dict[str, Callable[[Outcome], None]] = {}
        self._reloading = threading.Lock()
        self._more = threading.Event()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._current: tuple[Bundle, Pipeline] | None = None
        self._under_way: set[str] = set()
        self._received: dict[str, float] = {}
        self._feeder = threading.Thread(target=self._feed, name="feed", daemon=True)

    def open(self, bundle: Bundle, stopped: Callable[[], bool]) -> bool:
        """Open `bundle`'s pipeline; False if `stopped` came first. Raises what opening raises."""
        pipeline = self._start(bundle)
        if not _opened(pipeline, stopped):
            return False
        self._current = bundle, pipeline
        return True

    def feed(self) -> None:
        """Start to run what the ledger holds."""
        self._feeder.start()

    def swap(self, bundle: Bundle, stopped: Callable[[], bool]) -> None:
        """Run new images with `bundle`, once its backend is open and self-tested; the old one finishes what it has.

        Raises what opening raises, and then goes on with the old bundle as if nothing had been.
        """
        with self._reloading:
            pipeline = self._start(bundle)
            if not _opened(pipeline, stopped):
                raise MachineError("the daemon is stopping: start it with the new bundle")
            old = self.pipeline
            self._current = bundle, pipeline
            old.drain()

    def _start(self, bundle: Bundle) -> Pipeline:
        return self._open_pipeline(bundle, lambda outcome: self._finished(outcome, bundle))

    @property
    def bundle(self) -> Bundle:
        assert self._current is not None
        return self._current[0]

    @property
    def pipeline(self) -> Pipeline:
        assert self._current is not None
        return self._current[1]

    def check(self) -> None:
        """Raises the error that stopped the pipeline or its feeding, if one did."""
        if self._error is not None:
            raise self._error
        self.pipeline.check()

    def announce(self, id: str, received: float) -> None:
        """A new run is in the ledger, whose image came at `received`, in seconds of `time.monotonic`."""
        self._received[id] = received
        if len(self._received) > ANNOUNCED:  # a run may have been finished before it was announced
            self._received.pop(next(iter(self._received)), None)
        self._more.set()

    def under_way(self) -> int:
        """Images that are taken from the ledger and have no result yet."""
        return len(self._under_way)

    def infer(self, images: NDArray[np.uint8], timeout: float) -> list[Outcome]:
        """Run ready images past the ledger; see `edge.service.Service.infer`."""
        assert self._current is not None
        bundle, pipeline = self._current  # another bundle's pipeline may take another size
        size, batch = bundle.input_size, bundle.batch
        expected = f"uint8 (N, 1, {size}, {size}), N from 1 to {batch}"
        if images.dtype != np.uint8 or images.shape[1:] != (1, size, size) or not 1 <= len(images) <= batch:
            raise InputRefusedError(f"the images are {images.dtype} {images.shape}, expected {expected}: resize them")
        end = time.monotonic() + timeout
        outcomes: dict[str, Outcome] = {}
        arrived = threading.Condition()

        def deliver(outcome: Outcome) -> None:
            with arrived:
                outcomes[outcome.result["id"]] = outcome
                arrived.notify()

        ids = [uuid.uuid4().hex for _ in images]
        self._direct.update(dict.fromkeys(ids, deliver))
        for id, image in zip(ids, images):
            if not pipeline.submit(Item(id, pixels=image[0]), max(0.0, end - time.monotonic())):
                self._direct.pop(id)
        with arrived:
            complete = arrived.wait_for(lambda: len(outcomes) == len(ids), max(0.0, end - time.monotonic()))
        if not complete:
            raise BusyError(f"no result within {timeout:g} s: the images before it take longer; come again", 1.0)
        return [outcomes[id] for id in ids]

    def refusal(self, id: str, sha256: str | None, source: str | None, reason: str) -> dict[str, Any]:
        """The result of an image that is refused without a run."""
        return image_result(
            id=id,
            source=source,
            sha256=sha256,
            timings=Timings(),
            bundle=self.bundle.sha256,
            gate=self.bundle.gate_verdict,
            backend=self.pipeline.backend_name,
            reason=reason,
        )

    def drain(self) -> None:
        """Finish what is under way. Raises the error that stopped the pipeline, if one did."""
        self._stop_feeding()
        with self._reloading:
            self.pipeline.drain()

    def abort(self) -> None:
        """Stop at once; what is under way runs again after the next start."""
        self._stopping.set()
        if self._current is not None:
            self.pipeline.abort()
        self._stop_feeding()

    def _stop_feeding(self) -> None:
        self._stopping.set()
        self._more.set()
        if self._feeder.ident is not None:
            self._feeder.join()

    def _feed(self) -> None:
        try:
            while not self._stopping.is_set():
                self._more.wait(LOOK_SECONDS)
                self._more.clear()
                while not self._stopping.is_set() and (run := self._take()):
                    self._under_way.add(run.id)
                    item = Item(run.id, run.source, path=run.path, sha256=run.sha256, stat=run.stat)
                    item.received = self._received.get(run.id, item.received)  # its time in the queue counts, too
                    self._submit(item)
        except BaseException as error:  # raised again by `check`
            self._error = error

    def _take(self) -> Run | None:
        """The next run; None if there is none, or if the disk is too full to record that it is under way."""
        try:
            return self._ledger.take()
        except StorageFullError as error:
            log.error("images wait: %s", error)
            self._stopping.wait(LOOK_SECONDS)
            return None

    def _submit(self, item: Item) -> None:
        """Hand over an image to the pipeline that is in charge once there is room: it may be swapped meanwhile."""
        while not self.pipeline.submit(item, timeout=0.1):
            pass

    def _finished(self, outcome: Outcome, bundle: Bundle) -> None:
        id = outcome.result["id"]
        if id in self._under_way:
            self._deliver(outcome, bundle)
            self._under_way.discard(id)
            self._received.pop(id, None)
        elif (direct := self._direct.pop(id, None)) is not None:
            direct(outcome)

    def facts(self) -> dict[str, Any]:
        """What a session records of the bundle and its backend."""
        return {
            "bundle_sha256": self.bundle.sha256,
            "manifest": self.bundle.manifest,
            "backend": self.pipeline.backend_name,
            "backend_facts": self.pipeline.backend_facts,
        }


def _opened(pipeline: Pipeline, stopped: Callable[[], bool]) -> bool:
    try:
        while not pipeline.wait_until_open(0.1):
            if stopped():
                pipeline.abort()
                return False
    except BaseException:
        pipeline.abort()
        raise
    return True
