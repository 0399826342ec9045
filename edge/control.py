"""The daemon's control socket: how ``edge-infer reload`` asks a running daemon, and hears what came of it.

A Unix socket in the state directory, for its user only. One line of JSON each way.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, MachineError, UsageError

log = logging.getLogger(__name__)

SOCKET = "control.sock"
LINE_BYTES = 4096
ANSWER_SECONDS = 1800.0
"""How long an answer may take: a reload may build an engine first."""


class Control:
    """Answers requests, each in a thread of its own, until it is closed."""

    def __init__(self, state: Path, commands: dict[str, Callable[[], dict[str, Any]]]) -> None:
        """Listen in `state`; each of `commands` returns its answer, or raises `EdgeError`."""
        self._path = state / SOCKET

        class Handler(socketserver.StreamRequestHandler):
            timeout = 10.0

            def handle(self) -> None:
                command = self.rfile.readline(LINE_BYTES).decode("utf-8", "replace").strip()
                self.wfile.write(json.dumps(_answer(commands, command)).encode() + b"\n")

        self._path.unlink(missing_ok=True)  # of a process that was killed: the ledger's lock says that it is gone
        with _short(self._path) as address:
            before = os.umask(0o177)
            try:
                self._server = _Server(address, Handler)
            finally:
                os.umask(before)
        self._thread = threading.Thread(target=self._server.serve_forever, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("control", exc_info=True)  # who asked went away


def _answer(commands: dict[str, Callable[[], dict[str, Any]]], command: str) -> dict[str, Any]:
    if command not in commands:
        return {"error": f"the command is none of {', '.join(commands)}", "status": 2}
    try:
        return commands[command]()
    except EdgeError as error:
        return {"error": str(error), "status": error.exit_status}


def ask(state: Path, command: str) -> dict[str, Any]:
    """Send `command` to the daemon that uses `state`; returns its answer.

    Raises `MachineError` if there is none, or if it went away meanwhile; else what it answered to be wrong.
    """
    try:
        with _short(state / SOCKET) as address, socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(ANSWER_SECONDS)
            channel.connect(address)
            channel.sendall(command.encode() + b"\n")
            with channel.makefile("rb") as reader:
                line = reader.readline()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MachineError(f"no daemon answers in {state} ({reason}): start one, or check --state") from None
    with suppress(ValueError):
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise (UsageError if answer["status"] == UsageError.exit_status else MachineError)(answer["error"])
        if isinstance(answer, dict):
            return answer
    raise MachineError(f"the daemon in {state} ended before it answered: look at its log")


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address for `path`, however long it is: the system takes 107 bytes."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
