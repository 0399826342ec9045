"""What the daemon does now and then: retention, the self-test, the memory limit, a sign of life to systemd."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge.errors import BundleError, BusyError, InputRefusedError, StorageFullError
from edge.ledger import Retention
from edge.pipeline import Outcome
from edge.selftest import compare, describe, golden_inputs
from edge.sources.folders import Folders
from edge.systemd import notify, watchdog_seconds
from edge.telemetry import rss_mb

if TYPE_CHECKING:
    from edge.daemon import Server

log = logging.getLogger(__name__)

RETENTION_SECONDS = 60.0
MEMORY_SECONDS = 5.0
SELF_TEST_SECONDS = 15.0
"""How long a batch of the self-test may take among the images; it is left for the next time if it takes longer."""


class Housekeeping:
    """Called by the main loop; each duty when its time has come."""

    def __init__(self, server: Server) -> None:
        self._server = server
        config = server.config
        self._retention = Retention(
            server.ledger.database,
            days=config.retention.days,
            max_bytes=None if config.retention.max_mb is None else config.retention.max_mb * 1_000_000,
        )
        self._watchdog = watchdog_seconds()
        now = time.monotonic()
        self._next_retention = now
        self._next_memory = now
        self._next_self_test = now + config.self_test.every_hours * 3600
        self._next_sign = now

    def tick(self, folders: Folders) -> None:
        """Do what is due. Raises `BundleError` if the self-test fails, `MachineError` over the memory limit."""
        now = time.monotonic()
        if now >= self._next_retention:
            self._next_retention = now + RETENTION_SECONDS
            self._retain(folders)
        if now >= self._next_memory:
            self._next_memory = now + MEMORY_SECONDS
            self._check_memory()
        if self._server.config.self_test.every_hours > 0 and now >= self._next_self_test:
            self._next_self_test = now + self._server.config.self_test.every_hours * 3600
            self._self_test()
        # systemd starts a daemon anew that does not come here any longer, or whose backend does not answer.
        if self._watchdog is not None and now >= self._next_sign and self._server.backend_answers(self._watchdog):
            self._tell_watchdog()

    def _tell_watchdog(self) -> None:
        if self._watchdog is not None:
            self._next_sign = time.monotonic() + self._watchdog / 4
            notify("WATCHDOG=1")

    def _retain(self, folders: Folders) -> None:
        try:
            removed = self._retention.apply(folders.present)
        except StorageFullError as error:
            log.error("retention: %s", error)
            return
        if removed:
            log.info("retention: %d old results removed", removed)

    def _check_memory(self) -> None:
        limit, used = self._server.config.memory.limit_mb, rss_mb()
        if limit is not None and used is not None and used > limit:
            self._server.give_up(
                f"{used:.0f} MB of memory are in use, {limit} may be (memory.limit_mb): start it again"
            )

    def _self_test(self) -> None:
        bundle = self._server.bundle
        images, _ = golden_inputs(bundle)
        outcomes = []
        try:
            for i in range(0, len(images), bundle.batch):
                outcomes += self._server.infer(images[i : i + bundle.batch], SELF_TEST_SECONDS)
                self._tell_watchdog()
        except (BusyError, InputRefusedError):  # the second: a bundle of another size came in between
            log.warning("self-test: the daemon is too busy for it: the next one is in its turn")
            return
        if bundle is not self._server.bundle:
            return  # it was swapped meanwhile, after a self-test of its own
        try:
            figures = compare(bundle, np.stack([_logits(outcome) for outcome in outcomes]), "in use")
        except BundleError:
            self._server.note_self_test(None)
            raise
        self._server.note_self_test(figures)
        log.info("%s", describe(figures))


def _logits(outcome: Outcome) -> NDArray[np.float32]:
    assert outcome.logits is not None  # ready pixels are always run
    return outcome.logits
