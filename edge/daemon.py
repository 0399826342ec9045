"""The daemon: images in from a watched folder, results out into the ledger, until a signal asks it to stop."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from edge.backends import open_backend
from edge.bundle import load_bundle
from edge.errors import InputRefusedError
from edge.gate import require_gate
from edge.ledger import Ledger
from edge.pipeline import Item, Outcome, Pipeline, read_file
from edge.preprocess import Preprocess
from edge.results import Timings, image_result
from edge.selftest import open_tested
from edge.sources.folder import WatchedFolder
from edge.telemetry import machine_facts

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
POLL_SECONDS_AT_MOST = 10.0


@dataclass(frozen=True)
class ServeConfig:
    """What to serve, from where, into where."""

    bundle: Path
    watch: Path
    state: Path
    backend: str = "auto"
    public_key: Path | None = None
    """The Ed25519 key that must have signed the bundle; None where no signature is needed."""
    drain: bool = False
    """Stop once the folder holds nothing new and all of it is done."""
    keep_names: bool = False
    """Keep file names with the results. They may hold patients' names, so it is off by default."""
    allow_failed_gate: bool = False
    """Serve a bundle that failed its accuracy gate."""


class Server:
    """One run of the daemon: `startup`, `main_loop`, `shutdown`. After a kill, the next one goes on."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._stopping = threading.Event()
        self._finished = {"done": 0, "refused": 0}
        self._counting = threading.Lock()  # both the folder's thread and the results' thread finish images

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or, with ``drain``, until all is done; then finish what is under way.

        Returns how many images were refused. Raises `BundleError` or `MachineError` if it cannot serve (any longer).
        """
        with self._signals():
            bundle = load_bundle(self.config.bundle, self.config.public_key)
            require_gate(bundle.manifest, self.config.allow_failed_gate)
            self._bundle = bundle
            self._size_limit = Preprocess.from_manifest(bundle.manifest["preprocess"]).max_file_bytes
            with Ledger(self.config.state) as self._ledger:
                folder = WatchedFolder(self.config.watch, self._ledger.knows)
                opener = functools.partial(
                    open_tested, bundle, functools.partial(open_backend, bundle, self.config.backend)
                )
                with Pipeline(bundle, opener, self._deliver) as self._pipeline:
                    session = self.startup()
                    if session is not None:
                        self.main_loop(folder)
                        self.shutdown(session)
        return self._finished["refused"]

    def startup(self) -> int | None:
        """Wait for the self-tested backend and open a session in the ledger; None if told to stop meanwhile."""
        bundle = self._bundle
        log.info(
            "bundle %s (%s, manifest %s...), every file verified; signature: %s",
            bundle.name,
            bundle.precision,
            bundle.sha256[:12],
            bundle.signature,
        )
        if bundle.notice:
            log.warning("%s", bundle.notice)
        while not self._pipeline.wait_until_open(POLL_SECONDS):
            if self._stopping.is_set():
                self._pipeline.abort()
                return None
        counts = self._ledger.counts()
        log.info(
            "ledger %s: %d done, %d refused, %d to take up again",
            self._ledger.path,
            *(counts.get(state, 0) for state in ("done", "refused", "received")),
        )
        session = self._ledger.begin_session(
            {
                "bundle_sha256": bundle.sha256,
                "manifest": bundle.manifest,
                "backend": self._pipeline.backend_name,
                "backend_facts": self._pipeline.backend_facts,
                "machine": machine_facts(),
            }
        )
        log.info("serving: watching %s", self.config.watch)
        return session

    def main_loop(self, folder: WatchedFolder) -> None:
        """Take what the folder and the ledger offer, until told to stop."""
        while not self._stopping.is_set():
            start = time.monotonic()
            for path, key in folder.poll():
                self._receive(path, key)
                self._feed()
                if self._stopping.is_set():
                    return
            self._feed()  # what an earlier process left
            self._pipeline.check()
            if self.config.drain and folder.waiting == 0:
                return
            # A folder of very many files takes long to look through: no more than a fifth of the time goes into that.
            self._stopping.wait(min(max(POLL_SECONDS, 4 * (time.monotonic() - start)), POLL_SECONDS_AT_MOST))

    def shutdown(self, session: int) -> None:
        log.info("stopping: finishing what is under way")
        self._pipeline.drain()
        self._ledger.end_session(session)
        log.info("stopped: %(done)d done, %(refused)d refused", self._finished)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A second signal ends the process at once, which the ledger survives."""
        signal.signal(number, signal.SIG_DFL)
        self._stopping.set()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, path: Path, key: str) -> None:
        source = os.fsencode(path.name).decode("utf-8", "replace") if self.config.keep_names else None
        try:
            sha256 = hashlib.sha256(read_file(path, self._size_limit)).hexdigest()
        except InputRefusedError as error:
            if path.exists():  # else it was taken away again, and there is nothing to report
                self._refuse_unread(key, source, str(error))
            return
        run, new = self._ledger.receive(sha256=sha256, path=path, key=key, source=source)
        log.info(
            "received %s (sha256 %s...)%s", run, sha256[:12], "" if new else ": the same content again, not run twice"
        )

    def _refuse_unread(self, key: str, source: str | None, reason: str) -> None:
        result = image_result(
            id=uuid.uuid4().hex,
            source=source,
            sha256=None,
            timings=Timings(),
            bundle=self._bundle.sha256,
            gate=self._bundle.gate_verdict,
            backend=self._pipeline.backend_name,
            reason=reason,
        )
        self._ledger.refuse_unread(key=key, result=result)
        self._log_finished(result)

    def _feed(self) -> None:
        while not self._stopping.is_set() and (run := self._ledger.take()):
            self._pipeline.submit(Item(run.id, run.source, path=run.path, sha256=run.sha256))

    def _deliver(self, outcome: Outcome) -> None:
        self._ledger.finish(outcome.result)
        self._log_finished(outcome.result)

    def _log_finished(self, result: dict[str, object]) -> None:
        with self._counting:
            self._finished[str(result["status"])] += 1
        if result["status"] == "done":
            log.info("done %s in %.1f ms", result["id"], result["timings_ms"]["total"])  # type: ignore[index]
        else:
            log.warning("refused %s: %s", result["id"], result["reason"])
