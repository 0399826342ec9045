"""A real ``edge-infer serve`` with its HTTP server, in a process of its own."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

EDGE_INFER = Path(sys.executable).with_name("edge-infer")


@dataclass
class Daemon:
    """A running daemon."""

    process: subprocess.Popen[str]
    port: int
    log: Path
    certificate: str | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def descriptors(self) -> int:
        """Number of files and sockets that the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def serving(bundle: Path, place: Path, **http: Any) -> Iterator[Daemon]:
    """Serve `bundle` with its state and log in `place`; `http` are entries of ``[http]``. Killed at the end."""
    port = free_port()
    place.mkdir(exist_ok=True)
    entries = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"port": port, **http}.items())
    (place / "config.toml").write_text(f"[http]\n{entries}")
    command = [EDGE_INFER, "serve", "--bundle", bundle, "--backend", "onnxruntime", "--state", place / "state"]
    command += ["--config", place / "config.toml"]
    log = place / "log"
    with log.open("w") as stream, subprocess.Popen(command, stderr=stream, text=True) as process:
        try:
            daemon = Daemon(process, port, log, http.get("certificate"))
            wait_until_ready(daemon)
            yield daemon
        finally:
            process.kill()


def wait_until_ready(daemon: Daemon) -> None:
    trust = ssl.create_default_context(cafile=daemon.certificate)
    end = time.monotonic() + 60
    while True:
        assert daemon.process.poll() is None, daemon.log.read_text()
        try:
            if httpx.get(f"{daemon.url}/v2/health/ready", verify=trust).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "the daemon is not ready"
        time.sleep(0.05)
