"""A real ``edge-infer serve`` in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge.ledger import read_ledger

EDGE_INFER = Path(sys.executable).with_name("edge-infer")


class Daemon:
    """Serves with ``place/settings.toml``; its state is ``place/state``, its log ``place/log``."""

    def __init__(self, place: Path, settings: str, **environment: str) -> None:
        """`settings` (TOML) without ``state``, which is set here."""
        self.place = place
        self.state = place / "state"
        self.config = place / "settings.toml"
        self.write(settings)
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[str] | None = None

    def write(self, settings: str) -> None:
        """Change the settings, which a reload reads."""
        self.config.write_text(f'state = "{self.state}"\n{settings}')

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        return (self.place / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it serves."""
        command: list[str | Path] = [EDGE_INFER, "serve", "--config", self.config]
        already = len(self.log) if (self.place / "log").exists() else 0
        with (self.place / "log").open("a") as log:
            self._process = subprocess.Popen(command, stderr=log, text=True, env=self._environment)
        wait_for(lambda: "serving: " in self.log[already:] or self.process.poll() is not None)
        assert self.process.poll() is None, self.log[already:]

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def reload(self) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [EDGE_INFER, "reload", "--state", self.state]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def results(self) -> list[dict[str, Any]]:
        """Every result in the ledger."""
        return read_ledger(self.state).results

    def wait_for_results(self, count: int, seconds: float = 60) -> list[dict[str, Any]]:
        wait_for(lambda: len(self.results()) >= count or self.process.poll() is not None, seconds)
        return self.results()

    def rss_mb(self, what: str = "VmRSS") -> float:
        """Resident memory; with ``VmHWM`` the most that it ever was."""
        (line,) = [s for s in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if what in s]
        return int(line.split()[1]) / 1024

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


class HttpDaemon(Daemon):
    """Serves a bundle over HTTP."""

    def __init__(self, place: Path, bundle: Path, **http: Any) -> None:
        """`http` are entries of ``[http]``."""
        self.bundle = bundle
        self.port = int(http.setdefault("port", free_port()))
        self.url = f"{'https' if 'certificate' in http else 'http'}://127.0.0.1:{self.port}"
        place.mkdir(exist_ok=True)
        entries = "".join(f"{name} = {json.dumps(value)}\n" for name, value in http.items())
        super().__init__(place, f'bundle = "{bundle}"\nbackend = "onnxruntime"\n[http]\n{entries}')


@contextmanager
def serving_http(bundle: Path, place: Path, **http: Any) -> Iterator[HttpDaemon]:
    """Serve `bundle` with its state and log in `place`, until the block ends."""
    daemon = HttpDaemon(place, bundle, **http)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@contextmanager
def serving(place: Path, settings: str, **environment: str) -> Iterator[Daemon]:
    """A daemon that serves, until the block ends."""
    daemon = Daemon(place, settings, **environment)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none if it is not there."""
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return []
