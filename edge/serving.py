"""The bundle in service: loaded, checked, its pipeline opened and self-tested; and the session that a report needs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from edge.backends import open_backend
from edge.bundle import Bundle, load_bundle
from edge.config import Config
from edge.errors import StorageFullError
from edge.gate import require_gate
from edge.guard import Guard
from edge.ledger import Ledger
from edge.metrics import Metrics
from edge.pipeline import Outcome, Pipeline
from edge.preprocess import Preprocess
from edge.runner import Deliver, Runner
from edge.selftest import open_tested
from edge.state import LiveState
from edge.telemetry import machine_facts

log = logging.getLogger(__name__)


def load_checked(config: Config) -> Bundle:
    """The bundle that `config` names, with every part that serving needs. Raises `BundleError`."""
    bundle = load_bundle(config.bundle, config.public_key)
    require_gate(bundle.manifest, config.allow_failed_gate)
    Preprocess.from_manifest(bundle.manifest["preprocess"])
    Guard.from_bundle(bundle)
    return bundle


class Serving:
    """The runner of the bundle in service, and the ledger's session of it."""

    def __init__(self, config: Config, ledger: Ledger, metrics: Metrics, live: LiveState, deliver: Deliver) -> None:
        self.runner = Runner(ledger, self._open_pipeline, deliver)
        self._config = config
        self._ledger = ledger
        self._metrics = metrics
        self._live = live
        self._session: int | None = None

    def _open_pipeline(self, bundle: Bundle, deliver: Callable[[Outcome], None]) -> Pipeline:
        opener = functools.partial(open_backend, bundle, self._config.backend)
        tested = functools.partial(open_tested, bundle, opener, self.note_self_test)
        patience, guard = self._config.queue.batch_wait_ms / 1e3, self._config.guard
        if not guard:
            log.warning("the guard is off: images that the network was not made for are answered too")
        return Pipeline(bundle, tested, deliver, patience=patience, guard=guard)

    def note_self_test(self, figures: dict[str, Any] | None) -> None:
        """Count a self-test: its figures, or None of one that failed."""
        self._metrics.self_tests.labels("failed" if figures is None else "passed").inc()
        if figures is not None:
            self._metrics.self_test_difference.set(figures["difference"]["max"])
            self._live.self_test = figures

    def begin_session(self) -> None:
        """Record, after the end of the session before, what serves from now on."""
        self.end_session()
        bundle, facts = self.runner.bundle, self.runner.facts()
        try:
            self._session = self._ledger.begin_session({**facts, "machine": machine_facts()})
        except StorageFullError as error:  # it serves all the same; a report will not know of this session
            log.error("the session is not recorded: %s", error)
        self._metrics.engine.info(
            {
                "bundle": bundle.name,
                "manifest": bundle.sha256,
                "precision": bundle.precision,
                "gate": bundle.gate_verdict,
                "backend": str(facts["backend"]),
            }
        )

    def end_session(self) -> None:
        if self._session is None:
            return
        try:
            self._ledger.end_session(self._session)
        except StorageFullError as error:
            log.error("the session's end is not recorded: %s", error)
        self._session = None
