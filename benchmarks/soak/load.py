"""Load over HTTP, and what the daemon makes of it: overload, and a long steady load."""

from __future__ import annotations

import http.client
import itertools
import os
import statistics
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak.kills import prepared
from benchmarks.soak.senders import png
from tests.system.daemon import Daemon

CLIENTS = 16
STORM = 90
"""Connections of an overload: each sends again as soon as it is answered. The daemon takes 100."""


def numbered(image: bytes, number: int) -> bytes:
    """The PNG `image` with a comment, so that each one is an image of its own."""
    text = b"tEXtComment\0" + str(number).encode()
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return image[:-12] + chunk + image[-12:]  # before IEND


class Clients:
    """Posts images, as many a second as `rate` (None: each client its next once the last is answered)."""

    def __init__(self, port: int, rate: float | None, first: int, clients: int = CLIENTS) -> None:
        self.answers: Counter[int] = Counter()
        self._port = port
        self._image = png(0)
        self._numbers = itertools.count(first)
        self._pause = 0.0 if rate is None else clients / rate
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        due = time.monotonic()
        while not self._stopping.is_set():
            try:
                connection.request("POST", "/v1/images", numbered(self._image, next(self._numbers)))
                answer = connection.getresponse()
                answer.read()
                self.answers[answer.status] += 1
                if self._pause == 0 and answer.status == 429:
                    self._stopping.wait(0.05)
            except (OSError, http.client.HTTPException):
                self.answers[0] += 1
                connection.close()
            due += self._pause
            self._stopping.wait(max(0.0, due - time.monotonic()))
        connection.close()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


@dataclass
class Watch:
    """Samples of the daemon, one a second."""

    rss_mb: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


@contextmanager
def watched(daemon: Daemon, seconds: float = 1.0) -> Iterator[Watch]:
    watch, stopping = Watch(), threading.Event()

    def run() -> None:
        while not stopping.wait(seconds):
            watch.rss_mb.append(daemon.rss_mb())
            watch.descriptors.append(daemon.descriptors())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stopping.set()
        thread.join()


@contextmanager
def apart(daemon: Daemon) -> Iterator[None]:
    """The daemon on the first core, whoever sends on the others; on a machine of one core both share it."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        daemon.start()
        os.sched_setaffinity(0, cores[1:] or cores)
        yield
    finally:
        os.sched_setaffinity(0, cores)
        daemon.close()


def _done_per_second(daemon: Daemon, seconds: float) -> tuple[float, list[dict[str, Any]]]:
    """Images a second over `seconds` from now on, and their results."""
    before = len(daemon.results())
    start = time.monotonic()
    time.sleep(seconds)
    results = daemon.results()
    return (len(results) - before) / (time.monotonic() - start), results[before:]


@dataclass(frozen=True)
class Overload:
    """What ten times too much did."""

    best_per_second: float
    """Throughput with clients that wait for their answers."""
    offered_per_second: float
    overloaded_per_second: float
    answers: dict[int, int]
    """Number of answers by HTTP status; 0 is no answer."""
    rss_mb: tuple[float, float]
    """Least and most, after a quarter of the time."""
    slowest_seconds: float
    """The longest that an accepted image took, waiting included."""
    bound_seconds: float
    """What the queue's size and the throughput allow."""


def run_overload(place: Path, bundle: Path, *, seconds: float, times: float = 11.0, queue: int = 100) -> Overload:
    """Have the clients ask for `times` as many images as the daemon can do, for `seconds`."""
    daemon, places = prepared(place, bundle, f"[queue]\nmax_images = {queue}\n[retention]\nmax_mb = 100000\n")
    with apart(daemon):
        calm = Clients(places.http_port, None, first=0, clients=4)
        time.sleep(2)
        best, _ = _done_per_second(daemon, max(4.0, seconds / 4))
        calm.stop()
        storm = Clients(places.http_port, times * best, first=10_000_000, clients=STORM)
        time.sleep(seconds / 4)
        before = sum(storm.answers.values())
        with watched(daemon) as watch:
            start = time.monotonic()
            overloaded, results = _done_per_second(daemon, seconds * 3 / 4)
            offered = (sum(storm.answers.values()) - before) / (time.monotonic() - start)
        storm.stop()
        answers = dict(storm.answers)
        assert daemon.process.poll() is None
    return Overload(
        best_per_second=best,
        offered_per_second=offered,
        overloaded_per_second=overloaded,
        answers=answers,
        rss_mb=(min(watch.rss_mb), max(watch.rss_mb)),
        slowest_seconds=max(result["timings_ms"]["total"] for result in results) / 1e3,
        bound_seconds=(queue + 50) / overloaded,
    )


@dataclass(frozen=True)
class Steady:
    """What a long load did."""

    start_seconds: float
    """From the process's start until it serves."""
    idle_cpu: float
    """Share of one core, doing nothing."""
    per_second: float
    p50_ms: float
    """Of the results that retention leaves in the ledger, as `p99_ms`."""
    p99_ms: float
    rss_mb: tuple[float, float]
    """Least and most, after the first tenth of the time."""
    descriptors: tuple[int, int]
    answers: dict[int, int]


def run_steady(place: Path, bundle: Path, *, seconds: float, load: float = 0.8, idle_seconds: float = 20.0) -> Steady:
    """Keep the daemon at `load` of its best throughput for `seconds`."""
    daemon, places = prepared(place, bundle, "[retention]\nmax_mb = 50\n")
    with apart(daemon):
        start_seconds = _start_seconds(daemon)
        time.sleep(2)
        before = _cpu_seconds(daemon)
        time.sleep(idle_seconds)
        idle = (_cpu_seconds(daemon) - before) / idle_seconds
        calm = Clients(places.http_port, None, first=0, clients=4)
        time.sleep(2)
        best, _ = _done_per_second(daemon, 10.0)
        calm.stop()
        daemon.wait_for_results(calm.answers[202], 600)  # what they left in the queue is none of the steady load
        clients = Clients(places.http_port, load * best, first=10_000_000, clients=2)
        time.sleep(seconds / 10)
        taken, start = clients.answers[202], time.monotonic()
        with watched(daemon) as watch:
            time.sleep(seconds * 9 / 10)
        # Not by the ledger, from which retention takes the oldest results meanwhile.
        taken = clients.answers[202] - taken
        rate = taken / (time.monotonic() - start)
        clients.stop()
        results = daemon.results()[-taken:]
        answers = dict(clients.answers)
    latencies = sorted(result["timings_ms"]["total"] for result in results)
    return Steady(
        start_seconds=start_seconds,
        idle_cpu=idle,
        per_second=rate,
        p50_ms=statistics.median(latencies),
        p99_ms=latencies[int(len(latencies) * 0.99)],
        rss_mb=(min(watch.rss_mb), max(watch.rss_mb)),
        descriptors=(min(watch.descriptors), max(watch.descriptors)),
        answers=answers,
    )


def _start_seconds(daemon: Daemon) -> float:
    daemon.stop()
    start = time.monotonic()
    daemon.start()
    return time.monotonic() - start


def _cpu_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
