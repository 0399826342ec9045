"""The load scenarios sent by MLCommons' LoadGen, where it is installed: the generator of MLPerf Inference itself.

LoadGen decides when each query is issued; what is timed, and how it is reported, stays ours. Its official runs are
longer, and judged by its own log: what this gives is no MLPerf result.
"""

from __future__ import annotations

import atexit
import functools
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import mlperf_loadgen as lg

PAUSE = 0.001
"""Seconds before each answer once the pipeline failed: LoadGen cannot be told to stop, and a process crashed inside it
after it had been answered as fast as it could ask."""

INTERRUPTED = 130
"""The exit status of a process that was interrupted, as `edge.cli` has it."""

SAMPLES = 1 << 16
"""LoadGen chooses among so many; we send ours in their order whichever it chooses."""


class Load(Protocol):
    """What sends an image and tells of its result; see `edge.bench`."""

    on_result: Callable[[dict[str, Any]], None] | None

    def submit(self, received: float | None = None, note: Callable[[str], object] | None = None) -> None:
        """Send the next image; `note` gets the identifier that its result will have, before it is sent."""
        ...

    def check(self) -> None:
        """Raises what stopped the pipeline, if something did."""
        ...


class Generator:
    """One run: LoadGen's queries go to `load`, and its results back."""

    def __init__(self, load: Load, scenario: str, seconds: float, rate: float, samples_per_query: int) -> None:
        """`scenario` as in `edge.bench`; `rate` is a server's queries, or offline a guess of images, a second."""
        self.queries: list[list[str]] = []
        """The identifiers of each query's images."""
        self.results: list[dict[str, Any]] = []
        self.unsent = 0
        """A server's images that were not sent, since the pipeline was behind by the run's whole duration."""
        self._seconds = seconds
        self._load = load
        self._settings = _settings(scenario, seconds, rate, samples_per_query)
        self._ids: dict[str, int] = {}
        self._failed = False
        # A sender that waits for the pipeline would hold up LoadGen's clock: these it hands over to a thread.
        self._handed_over = scenario in ("server", "offline")
        self._offline = scenario == "offline"
        self._issued: queue.SimpleQueue[tuple[float, list[int]] | None] = queue.SimpleQueue()

    def run(self, progress: Callable[[], object]) -> None:
        """Run to the end; `progress` is called now and then. Raises what stopped the pipeline, if something does."""
        self._load.on_result = self._finished
        sender = threading.Thread(target=self._send, name="loadgen-sender", daemon=True)
        sender.start()
        test = threading.Thread(target=self._test, name="loadgen", daemon=True)
        test.start()
        error: Exception | None = None
        try:
            while test.is_alive():
                test.join(0.2)
                progress()
                try:
                    self._load.check()
                except Exception as caught:
                    error = error or caught
                    self._fail()
        except BaseException:
            atexit.register(_leave_at_once)
            raise
        self._issued.put(None)
        sender.join()
        self._load.on_result = None
        if error is not None:
            raise error

    def _test(self) -> None:
        system = lg.ConstructSUT(self._issue, lambda: None)
        library = lg.ConstructQSL(SAMPLES, SAMPLES, lambda samples: None, lambda samples: None)
        with tempfile.TemporaryDirectory() as folder:
            log = lg.LogSettings()
            log.log_output.outdir = folder
            log.log_output.copy_summary_to_stdout = False
            log.enable_trace = False
            lg.StartTestWithLogSettings(system, library, self._settings, log)
            self.summary = Path(folder, "mlperf_log_summary.txt").read_text()
            """What LoadGen itself says of the run."""
        lg.DestroyQSL(library)
        lg.DestroySUT(system)

    def _issue(self, samples: Sequence[Any]) -> None:
        """LoadGen issues one query, in a thread of its own."""
        now = time.monotonic()
        ids = [sample.id for sample in samples]
        if self._failed:
            time.sleep(PAUSE)
            _complete(ids)
        elif self._handed_over:
            self._issued.put((now, ids))
        else:
            self._submit(now, ids)

    def _send(self) -> None:
        while (issued := self._issued.get()) is not None:
            when, ids = issued
            if not self._offline and time.monotonic() - when > self._seconds:
                self.unsent += len(ids)
                _complete(ids)
            else:
                self._submit(when, ids)

    def _submit(self, now: float, ids: list[int]) -> None:
        query: list[str] = []
        self.queries.append(query)
        for id in ids:
            try:
                # Offline all are issued at once, and each is timed from when the pipeline takes it, as in `edge.bench`.
                self._load.submit(None if self._offline else now, functools.partial(self._note, query, id))
            except Exception:  # `run` raises what stopped the pipeline
                self._fail()

    def _note(self, query: list[str], id: int, image: str) -> None:
        query.append(image)
        self._ids[image] = id

    def _finished(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        id = self._ids.pop(result["id"], None)
        if id is not None:
            _complete([id])

    def _fail(self) -> None:
        """Answer whatever is under way, so that LoadGen comes to its end."""
        self._failed = True
        with suppress(KeyError):  # none is left; several threads may be at it, and none may answer what another did
            while True:
                _complete([self._ids.popitem()[1]])


def _leave_at_once() -> None:
    """End an interrupted process: LoadGen cannot be told to stop, and its threads crash while Python shuts down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def version() -> str:
    return f"mlcommons-loadgen {metadata.version('mlcommons-loadgen')}"


def _complete(ids: Sequence[int]) -> None:
    lg.QuerySamplesComplete([lg.QuerySampleResponse(id, 0, 0) for id in ids])


def _settings(scenario: str, seconds: float, rate: float, samples_per_query: int) -> Any:
    settings = lg.TestSettings()
    settings.scenario = {
        "single-stream": lg.TestScenario.SingleStream,
        "multi-stream": lg.TestScenario.MultiStream,
        "server": lg.TestScenario.Server,
        "offline": lg.TestScenario.Offline,
    }[scenario]
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(seconds * 1e3))
    settings.min_query_count = 1
    settings.multi_stream_samples_per_query = samples_per_query
    settings.server_target_qps = rate
    settings.offline_expected_qps = rate
    return settings
