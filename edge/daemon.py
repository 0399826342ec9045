"""The daemon: images in from its sources, results out into the ledger and the sinks, until a signal asks it to stop."""

from __future__ import annotations

import functools
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

from edge.backends import open_backend
from edge.bundle import Bundle, load_bundle
from edge.config import Config
from edge.control import Control
from edge.deliverer import Deliverer
from edge.errors import EdgeError, InputRefusedError, MachineError, StorageFullError
from edge.gate import require_gate
from edge.guard import Guard
from edge.housekeeping import Housekeeping
from edge.ledger import Ledger
from edge.metrics import Metrics
from edge.parts import Source, make_sinks, make_sources
from edge.pipeline import Outcome, Pipeline, read_file
from edge.preprocess import Preprocess
from edge.reception import Reception
from edge.results import Timings, image_result
from edge.runner import Runner
from edge.selftest import open_tested
from edge.service import BusyError, Picture, Receipt
from edge.shadow import Shadow
from edge.sinks import Sink
from edge.sources.folder import WatchedFolder
from edge.sources.folder_events import follow
from edge.state import LiveState
from edge.systemd import notify, notify_reloading
from edge.telemetry import machine_facts

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
POLL_SECONDS_AT_MOST = 10.0
ATTEMPTS = 10
"""How often an image may be under way when the process ends, before it is refused as the likely reason."""
SINK_SECONDS = 10.0
"""How long a stop waits for each sink to deliver what is due; what is left is delivered after the next start."""


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
        self._shadow: Shadow | None = None
        self._session: int | None = None
        self._deliverers: list[Deliverer] = []
        self._sources: list[Source] = []

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or, with ``drain``, until all is done; then finish what is under way.

        Returns how many images were refused. Raises `BundleError` or `MachineError` if it cannot serve (any longer).
        """
        config = self.config
        with self._signals(), ExitStack() as resources:
            bundle = self._load_bundle(config)
            folders = [WatchedFolder(folder, self._knows) for folder in config.watch]
            self._ledger = resources.enter_context(
                Ledger(
                    config.state,
                    reserve=config.queue.min_free_mb * 1_000_000,
                    keep_pictures=config.retention.pictures,
                    lend_pictures=config.pacs is not None and config.pacs.capture,
                )
            )
            self._reception = Reception(self._ledger, config.queue, self.metrics, self.live)
            self._runner = Runner(self._ledger, self._open_pipeline, self._deliver)
            resources.callback(self._runner.abort)
            self._housekeeping = Housekeeping(self)
            if self.startup(bundle, folders, resources):
                self.main_loop(folders)
                self.shutdown()
        return self.live.refused

    def startup(self, bundle: Bundle, folders: list[WatchedFolder], resources: ExitStack) -> bool:
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
        self._shadow = self._open_shadow(bundle)
        counts = self._ledger.counts()
        log.info(
            "ledger %s: %d done, %d refused, %d to take up again",
            self._ledger.path,
            *(counts.get(state, 0) for state in ("done", "refused", "received")),
        )
        self._begin_session()
        sinks, sources = self._make_parts()
        for sink in sinks:
            self._deliverers.append(Deliverer(sink, self._ledger, lambda: self.bundle))
            resources.callback(self._deliverers[-1].stop, 0.0)
        self._refuse_hopeless()
        self._ledger.outbox.forget_sinks_but({deliverer.sink.name for deliverer in self._deliverers})
        self.metrics.add_live(self.status)
        control = Control(self.config.state, {"reload": self.reload})
        resources.callback(control.close)
        if folders:
            resources.callback(follow(folders, self._wake.set))
        self.live.serving = True
        for source in sources:
            source.start()
            resources.callback(source.stop)
            self._sources.append(source)
        places = [f"watching {folder.folder}" for folder in folders] + [source.name for source in self._sources]
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

    def main_loop(self, folders: list[WatchedFolder]) -> None:
        """Take what the folders offer and look after the rest, until told to stop."""
        while not self._stopping.is_set():
            start = time.monotonic()
            for folder in folders:
                self._take_from(folder)
            self._runner.check()
            for source in self._sources:
                source.check()
            if self._reload_asked.is_set():
                self._reload_asked.clear()
                threading.Thread(target=self._reload_by_signal, name="reload", daemon=True).start()
            self._housekeeping.tick(folders)
            if self.config.drain and self._all_is_done(folders):
                return
            # A folder of very many files takes long to look through: no more than a fifth of the time goes into that.
            rest = min(4 * (time.monotonic() - start), POLL_SECONDS_AT_MOST)
            pause = max(POLL_SECONDS, rest)
            if self.config.drain and not any(folder.waiting for folder in folders):
                pause = 0.02  # there is only the end to wait for
            self._wake.wait(pause)
            self._wake.clear()
            self._stopping.wait(max(0.0, start + 1.25 * rest - time.monotonic()))

    def shutdown(self) -> None:
        """Stop the sources, finish what is under way, deliver what is due."""
        log.info("stopping: finishing what is under way")
        notify("STOPPING=1")
        self.live.serving = False
        for source in self._sources:
            source.stop()
        self._runner.drain()
        for deliverer in self._deliverers:
            deliverer.stop(SINK_SECONDS)
        if self._shadow is not None:
            self._shadow.close()
        self._end_session()
        log.info("stopped: %d done, %d refused", self.live.done, self.live.refused)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A second signal ends the process at once, which the ledger survives."""
        signal.signal(number, signal.SIG_DFL)
        self._stopping.set()
        self._wake.set()

    # The bundle

    def reload(self) -> dict[str, Any]:
        """Swap to the bundle that the settings name now; returns which. No image is lost or waits for it.

        Raises `EdgeError` if it cannot be loaded, fails its gate or its self-test; the old one then goes on.
        """
        with self._reload_lock:
            notify_reloading()
            try:
                bundle = self._load_bundle(self._load())
                log.info("reload: %s (manifest %s...), every file verified", bundle.name, bundle.sha256[:12])
                self._runner.swap(bundle, self._stopping.is_set)
            except EdgeError as error:
                self.metrics.reloads.labels("rolled back").inc()
                log.error("reload: %s stays: %s", self.bundle.name, error)
                raise
            finally:
                notify("READY=1")
            self.metrics.reloads.labels("done").inc()
            self._end_session()
            self._begin_session()
            shadow, self._shadow = self._shadow, self._open_shadow(bundle)
            if shadow is not None:
                shadow.close()
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

    def _load_bundle(self, config: Config) -> Bundle:
        bundle = load_bundle(config.bundle, config.public_key)
        require_gate(bundle.manifest, config.allow_failed_gate)
        Preprocess.from_manifest(bundle.manifest["preprocess"])
        Guard.from_bundle(bundle)
        return bundle

    def _open_pipeline(self, bundle: Bundle, deliver: Callable[[Outcome], None]) -> Pipeline:
        opener = functools.partial(open_backend, bundle, self.config.backend)
        tested = functools.partial(open_tested, bundle, opener, self.note_self_test)
        patience, guard = self.config.queue.batch_wait_ms / 1e3, self.config.guard
        if not guard:
            log.warning("the guard is off: images that the network was not made for are answered too")
        return Pipeline(bundle, tested, deliver, patience=patience, guard=guard)

    def _open_shadow(self, bundle: Bundle) -> Shadow | None:
        fraction = self.config.shadow.fraction
        return Shadow(bundle, fraction, self.metrics) if fraction > 0 else None

    def _begin_session(self) -> None:
        facts = self._runner.facts()
        try:
            self._session = self._ledger.begin_session({**facts, "machine": machine_facts()})
        except StorageFullError as error:  # it serves all the same; a report will not know of this session
            log.error("the session is not recorded: %s", error)
        self.metrics.engine.info(
            {
                "bundle": self.bundle.name,
                "manifest": self.bundle.sha256,
                "precision": self.bundle.precision,
                "gate": self.bundle.gate_verdict,
                "backend": str(facts["backend"]),
            }
        )

    def _end_session(self) -> None:
        if self._session is None:
            return
        try:
            self._ledger.end_session(self._session)
        except StorageFullError as error:
            log.error("the session's end is not recorded: %s", error)
        self._session = None

    def note_self_test(self, figures: dict[str, Any] | None) -> None:
        """Count a self-test: its figures, or None of one that failed."""
        self.metrics.self_tests.labels("failed" if figures is None else "passed").inc()
        if figures is not None:
            self.metrics.self_test_difference.set(figures["difference"]["max"])
            self.live.self_test = figures

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
            sinks={deliverer.sink.name: deliverer for deliverer in self._deliverers},
            outbox=self._ledger.outbox.counts(),
            pictures=self.config.retention.pictures,
        )

    # What housekeeping looks after

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def backend_answers(self, seconds: float) -> bool:
        """Whether the backend has not been working on one batch for longer than `seconds`."""
        return self._runner.pipeline.inferring_seconds() <= seconds

    # Watched folders

    def _knows(self, key: str) -> bool:
        return self._ledger.knows(key)

    def _take_from(self, folder: WatchedFolder) -> None:
        for path, key in folder.poll():
            if self._stopping.is_set():
                return
            try:
                self._receive_file(path, key)
            except (BusyError, StorageFullError) as error:
                if isinstance(error, StorageFullError) and self.config.drain:
                    raise
                folder.put_back(key)
                log.debug("the folder waits: %s", error)
                return

    def _receive_file(self, path: Path, key: str) -> None:
        source = os.fsencode(path.name).decode("utf-8", "replace") if self.config.keep_names else None
        try:
            self.receive(read_file(path, self.max_bytes), origin="folder", source=source, key=key)
        except InputRefusedError as error:
            if path.exists():  # else it was taken away again, and there is nothing to report
                self._refuse_unread(key, source, str(error))
            return

    def _refuse_hopeless(self) -> None:
        """Refuse the images that may be what ended the process, time and again."""
        for run in self._ledger.take_hopeless(ATTEMPTS):
            reason = f"the daemon ended {run.attempts} times while it worked on this image: look at it elsewhere"
            result = self._refusal(run.id, run.sha256, run.source, reason)
            self._ledger.finish(result, sinks=self._sinks())
            self._finished(result)

    def _refuse_unread(self, key: str, source: str | None, reason: str) -> None:
        result = self._refusal(uuid.uuid4().hex, None, source, reason)
        self._ledger.refuse_unread(key=key, origin="folder", result=result, sinks=self._sinks())
        self._finished(result)

    def _refusal(self, id: str, sha256: str | None, source: str | None, reason: str) -> dict[str, Any]:
        return image_result(
            id=id,
            source=source,
            sha256=sha256,
            timings=Timings(),
            bundle=self.bundle.sha256,
            gate=self.bundle.gate_verdict,
            backend=self._runner.pipeline.backend_name,
            reason=reason,
        )

    def _all_is_done(self, folders: list[WatchedFolder]) -> bool:
        return (
            not any(folder.waiting for folder in folders)
            and not any(source.running() for source in self._sources)
            and self._runner.under_way() == 0
            and self._ledger.waiting()[0] == 0
        )

    # Outcomes

    def _sinks(self) -> list[str]:
        return [deliverer.sink.name for deliverer in self._deliverers]

    def _deliver(self, outcome: Outcome, bundle: Bundle) -> None:
        picture = None if outcome.pixels is None else Picture(outcome.pixels, outcome.cam, bundle.labels)
        while True:
            try:
                self._ledger.finish(outcome.result, picture, self._sinks())
                break
            except StorageFullError as error:
                # The result is computed and its image is safe: it waits for space, and so do all behind it.
                if self._stopping.is_set() or self.config.drain:
                    raise
                log.error("results wait: %s", error)
                self._stopping.wait(1.0)
        self._finished(outcome.result)
        if self._shadow is not None:
            self._shadow.offer(outcome.result, outcome.pixels)

    def _finished(self, result: dict[str, Any]) -> None:
        self.live.note(result)
        self.metrics.observe(result)
        for deliverer in self._deliverers:
            deliverer.wake()
        if result["status"] == "done":
            log.info("done %s in %.1f ms", result["id"], result["timings_ms"]["total"])
        else:
            log.warning("refused %s: %s", result["id"], result["reason"])

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
