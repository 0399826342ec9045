"""Decoding by GDCM in a process of its own, so that a stream that makes GDCM abort costs that one image."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from edge.codecs import EncodedFrame
from edge.errors import InputRefusedError


class _Child(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection


_lock = threading.Lock()
_child: _Child | None = None


def decode_by_gdcm(frame: EncodedFrame) -> bytes | None:
    """The samples of `frame`, None if GDCM refuses it. Raises `InputRefusedError` if GDCM dies of it.

    Threads take turns. The process is started for the first frame, and anew after it died.
    """
    global _child
    with _lock:
        if _child is None or _child.process.poll() is not None:
            _stop()
            _child = _start()
        try:
            _child.connection.send(tuple(frame))
            samples: bytes | None = _child.connection.recv()
        except (EOFError, OSError):
            _stop()
            raise InputRefusedError(
                "the DICOM's JPEG lossless data makes the decoder GDCM fail or never end: it is damaged; "
                "send or export it again"
            ) from None
        return samples


def _start() -> _Child:
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "edge.gdcm_process", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # GDCM reports damage there, and aborts with a word
            cwd=Path(__file__).resolve().parents[2],  # where -m looks first, so that it finds this package
        )
    return _Child(process, ours)


def _stop() -> None:
    global _child
    if _child is not None:
        _child.process.kill()
        _child.process.wait()
        _child.connection.close()
        _child = None


def _forget() -> None:
    """In a forked process: the child is the parent's. Let go of it, and of a lock that another thread may hold."""
    global _child, _lock
    _lock = threading.Lock()
    if _child is not None:
        _child.connection.close()
        _child.process.returncode = 0  # not ours to wait for
        _child = None


atexit.register(_stop)
os.register_at_fork(after_in_child=_forget)
