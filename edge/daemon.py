"""The daemon: images in from its sources, results out into the ledger and the sinks, until a signal asks it to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.config import Config
from edge.control import Control
from edge.errors import EdgeError, MachineError
from edge.housekeeping import Housekeeping
from edge.ledger import Ledger
from edge.metrics import Metrics
from edge.outcomes import Outcomes
from edge.parts import Source, make_sinks, make_sources
from edge.pipeline import Outcome
from edge.preprocess import Preprocess
from edge.reception import Reception
from edge.service import Picture, Receipt
from edge.serving import Serving, load_checked
from edge.sinks import Sink
from edge.sources.folders import Folders
from edge.state import LiveState
from edge.systemd import notify, notify_reloading

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class Server:
    """One run of the daemon: `startup`, `main_loop`, `shutdown`. After a kill, the next one goes on.

    To its sources it is an `edge.service.Service`.
    """

    def __init__(self, config: Config, load: Callable[[], Config] | None = None) -> None:
        """`load` reads the settings anew, for a reload; without it a reload takes the bundle that `config` names."""
        self.config = config
        self._load = load or (lambda: config)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._reload_asked = threading.Event()
        self._reload_lock = threading.Lock()
        self.metrics = Metrics()
        self.live = LiveState()
        self._sources: list[Source] = []

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or, with ``drain``, until all is done; then finish what is under way.

        Returns how many images were refused. Raises `BundleError` or `MachineError` if it cannot serve (any longer).
        """
        config = self.config
        with self._signals(), ExitStack() as resources:
            bundle = load_checked(config)
            self._folders = Folders(
                config.watch,
                knows=lambda key: self._ledger.knows(key),
                receive=self._receive_file,
                refuse=self._refuse_file,
                max_bytes=lambda: self.max_bytes,
                strict=config.drain,
            )
            self._ledger = resources.enter_context(
                Ledger(
                    config.state,
                    reserve=config.queue.min_free_mb * 1_000_000,
                    keep_pictures=config.retention.pictures,
                    lend_pictures=config.pacs is not None and config.pacs.capture,
                )
            )
            self._reception = Reception(self._ledger, config.queue, self.metrics, self.live)
            self._outcomes = Outcomes(
                self._ledger, self.metrics, self.live, lambda: self._stopping.is_set() or config.drain
            )
            self._serving = Serving(config, self._ledger, self.metrics, self.live, self._outcomes.record)
            self._runner = self._serving.runner
            resources.callback(self._runner.abort)
            self._housekeeping = Housekeeping(self)
            if self.startup(bundle, resources):
                self.main_loop()
                self.shutdown()
        return self.live.refused

    def startup(self, bundle: Bundle, resources: ExitStack) -> bool:
        """Open and test the backend, then the sinks and sources, in this order; False if told to stop meanwhile."""
        log.info(
            "bundle %s (%s, manifest %s...), every file verified; signature: %s",
            bundle.name,
            bundle.precision,
            bundle.sha256[:12],
            bundle.signature,
        )
        if bundle.notice:
            log.warning("%s", bundle.notice)
        if not self._runner.open(bundle, self._stopping.is_set):
            return False
        self._outcomes.shadow(bundle, self.config.shadow.fraction)
        counts = self._ledger.counts()
        log.info(
            "ledger %s: %d done, %d refused, %d to take up again",
            self._ledger.path,
            *(counts.get(state, 0) for state in ("done", "refused", "received")),
        )
        self._serving.begin_session()
        sinks, sources = self._make_parts()
        resources.callback(self._outcomes.close, 0.0)
        self._outcomes.deliver_to(sinks, lambda: self.bundle)
        self._outcomes.refuse_hopeless(self._runner.refusal)
        self._runner.feed()  # not before: a result is for the sinks that are there when it is recorded
        self.metrics.add_live(self.status)
        control = Control(self.config.state, {"reload": self.reload})
        resources.callback(control.close)
        resources.callback(self._folders.follow(self._wake.set))
        self.live.serving = True
        for source in sources:
            source.start()
            resources.callback(source.stop)
            self._sources.append(source)
        places = [f"watching {folder.folder}" for folder in self._folders.watched]
        places += [source.name for source in self._sources]
        log.info("serving: %s", ", ".join(places) or "what the ledger holds")
        notify("READY=1", f"STATUS=serving {bundle.name}")
        return True

    def _make_parts(self) -> tuple[list[Sink], list[Source]]:
        try:
            return list(make_sinks(self.config)), list(make_sources(self, self.config, self.metrics.registry))
        except ImportError as error:
            raise MachineError(
                f"a source or sink cannot be loaded ({error}): pip install 'mdconv-edge[serve]'"
            ) from None

    def main_loop(self) -> None:
        """Take what the folders offer and look after the rest, until told to stop."""
        while not self._stopping.is_set():
            start = time.monotonic()
            rest = self._folders.take(self._stopping.is_set)
            self._runner.check()
            for source in self._sources:
                source.check()
            if self._reload_asked.is_set():
                self._reload_asked.clear()
                threading.Thread(target=self._reload_by_signal, name="reload", daemon=True).start()
            self._housekeeping.tick(self._folders)
            if self.config.drain and self._all_is_done():
                return
            pause = max(POLL_SECONDS, rest)
            if self.config.drain and not self._folders.waiting:
                pause = 0.02  # there is only the end to wait for
            self._wake.wait(pause)
            self._wake.clear()
            self._stopping.wait(max(0.0, start + rest - time.monotonic()))

    def shutdown(self) -> None:
        """Stop the sources, finish what is under way, deliver what is due."""
        log.info("stopping: finishing what is under way")
        notify("STOPPING=1")
        self._stopping.set()  # ends a reload, too
        self.live.serving = False
        for source in self._sources:
            source.stop()
        self._runner.drain()
        with self._reload_lock:
            self._outcomes.close()
            self._serving.end_session()
        log.info("stopped: %d done, %d refused", self.live.done, self.live.refused)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A second signal ends the process at once, which the ledger survives."""
        signal.signal(number, signal.SIG_DFL)
        self._stopping.set()
        self._wake.set()

    def reload(self) -> dict[str, Any]:
        """Swap to the bundle that the settings name now; returns which. No image is lost or waits for it.

        Raises `EdgeError` if it cannot be loaded, fails its gate or its self-test; the old one then goes on.
        """
        with self._reload_lock:
            notify_reloading()
            try:
                bundle = load_checked(self._load())
                log.info("reload: %s (manifest %s...), every file verified", bundle.name, bundle.sha256[:12])
                self._runner.swap(bundle, self._stopping.is_set)
            except EdgeError as error:
                self.metrics.reloads.labels("rolled back").inc()
                log.error("reload: %s stays: %s", self.bundle.name, error)
                raise
            finally:
                notify("READY=1")
            self.metrics.reloads.labels("done").inc()
            self._serving.begin_session()
            self._outcomes.shadow(bundle, self.config.shadow.fraction)
            for source in self._sources:
                source.reload()
            log.info("reload: %s serves", bundle.name)
            if bundle.notice:
                log.warning("%s", bundle.notice)
            return {"bundle": bundle.name, "manifest": bundle.sha256}

    def _reload_by_signal(self) -> None:
        try:
            self.reload()
        except EdgeError:
            pass  # told in the log
        except BaseException:
            log.exception("reload")

    # What sources and the page may call: `edge.service.Service`

    @property
    def bundle(self) -> Bundle:
        return self._runner.bundle

    @property
    def max_bytes(self) -> int:
        return Preprocess.from_manifest(self.bundle.manifest["preprocess"]).max_file_bytes

    def ready(self) -> bool:
        return self.live.serving and not self._stopping.is_set()

    def receive(
        self,
        content: bytes,
        *,
        origin: str,
        stat: bool = False,
        source: str | None = None,
        instance: str | None = None,
        key: str | None = None,
    ) -> Receipt:
        """As in `edge.service.Service`; `key` is a watched file's `edge.ledger.file_key`."""
        came = time.monotonic()
        receipt = self._reception.receive(
            content,
            max_bytes=self.max_bytes,
            origin=origin,
            stat=stat,
            source=source if self.config.keep_names else None,
            instance=instance,
            key=key,
        )
        if receipt.new:
            self._runner.announce(receipt.id, came)
        again = "" if receipt.new else ": the same image again, not run twice"
        log.info("received %s (%s, sha256 %s...)%s", receipt.id, origin, receipt.sha256[:12], again)
        return receipt

    def infer(self, images: NDArray[np.uint8], timeout: float) -> list[Outcome]:
        return self._runner.infer(images, timeout)

    def image(self, id: str) -> dict[str, Any] | None:
        return self._ledger.image(id)

    def results(self, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        return self._ledger.results(after, limit)

    def recent(self, limit: int) -> list[dict[str, Any]]:
        return self._ledger.recent(limit)

    def picture(self, id: str) -> Picture | None:
        return self._ledger.picture(id)

    def status(self) -> dict[str, Any]:
        """The live state; see `edge.web.status.Status`."""
        counts = self._ledger.counts()
        return self.live.status(
            ready=self.ready(),
            stopping=self._stopping.is_set(),
            backend=self._runner.pipeline.backend_name,
            waiting=counts.get("received", 0),
            running=self._runner.under_way(),
            limit=self.config.queue.max_images,
            counts={state: counts.get(state, 0) for state in ("done", "refused")},
            sinks={deliverer.sink.name: deliverer for deliverer in self._outcomes.deliverers},
            pending=self._ledger.outbox.pending(),
            pictures=self.config.retention.pictures,
        )

    # What housekeeping looks after

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def backend_answers(self, seconds: float) -> bool:
        """Whether the backend has not been working on one batch for longer than `seconds`."""
        return self._runner.pipeline.inferring_seconds() <= seconds

    def note_self_test(self, figures: dict[str, Any] | None) -> None:
        self._serving.note_self_test(figures)

    # Watched folders

    def _receive_file(self, content: bytes, path: Path, key: str) -> None:
        self.receive(content, origin="folder", source=_name(path), key=key)

    def _refuse_file(self, path: Path, key: str, reason: str) -> None:
        source = _name(path) if self.config.keep_names else None
        result = self._runner.refusal(uuid.uuid4().hex, None, source, reason)
        self._outcomes.refuse_unread(key, "folder", result)

    def _all_is_done(self) -> bool:
        return (
            not self._folders.waiting
            and not any(source.running() for source in self._sources)
            and self._runner.under_way() == 0
            and self._ledger.waiting()[0] == 0
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self._ask_reload}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask_reload(self, number: int, frame: FrameType | None) -> None:
        self._reload_asked.set()
        self._wake.set()

    def give_up(self, why: str) -> None:
        """Finish what is under way and end with an error, for the supervisor to start a fresh process."""
        self.shutdown()
        raise MachineError(why)


def _name(path: Path) -> str:
    return os.fsencode(path.name).decode("utf-8", "replace")
