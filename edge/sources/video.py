"""Frames of a video as images: from a file, a camera, a network stream or a GStreamer pipeline.

A live source runs on whatever the daemon does: a frame is taken when the daemon is ready for one, and it is the newest
then; all others are dropped and counted. A file can wait: of it a frame every so many seconds of its own time is taken,
however slow the daemon is. The address may hold a password, and a file's name a patient's name: neither is logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from edge.errors import BusyError, EdgeError, InputRefusedError, MachineError, StorageFullError
from edge.service import Service
from edge.sources.video_config import VideoConfig, describe, kind_of
from edge.sources.video_frames import encode, opened, require

log = logging.getLogger(__name__)

RECONNECT_SECONDS = (1.0, 60.0)
"""The pause before a live source is opened again: the first one, doubled each time, and the longest."""
STORAGE_SECONDS = 10.0
"""The pause after the disk was found full."""
STOP_SECONDS = 5.0
"""How long `VideoSource.stop` waits: a camera that hangs does not keep the daemon alive."""
_ROUNDING = 1e-4  # seconds: a file's time stamps are rounded


@dataclass
class FrameCounts:
    """What became of the frames so far: once the source has ended, ``seen`` is the sum of the other two."""

    seen: int = 0
    taken: int = 0
    """Safe with the daemon."""
    dropped: int = 0
    """Not due, or the daemon was busy, its disk full, or the frame refused."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, *, seen: int = 0, taken: int = 0, dropped: int = 0) -> None:
        with self._lock:
            self.seen += seen
            self.taken += taken
            self.dropped += dropped


@dataclass(frozen=True)
class _Frame:
    pixels: NDArray[Any]
    name: str | None


class _Desk:
    """Where the reading thread hands over one frame at a time to the sending one, which says when it is ready."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._frame: _Frame | None = None
        self._ready = False
        self._closed = False

    def wanted(self, wait: bool) -> bool:
        """Whether a frame may be `put`; with `wait`, False only once closed."""
        with self._condition:
            if wait:
                self._condition.wait_for(lambda: self._ready or self._closed)
            return self._ready and not self._closed

    def put(self, frame: _Frame) -> None:
        with self._condition:
            self._frame, self._ready = frame, False
            self._condition.notify_all()

    def take(self) -> _Frame | None:
        """The next frame, waiting for it; None once closed and empty."""
        with self._condition:
            self._ready = self._frame is None
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._frame is not None or self._closed)
            frame, self._frame = self._frame, None
            return frame

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()


class VideoSource:
    """Sends frames to the daemon from `start` until `stop`, the end of a file, or an error."""

    def __init__(self, service: Service, config: VideoConfig) -> None:
        self._service = service
        self._address = config.address.get_secret_value()
        self._every = config.every_seconds
        self._live = kind_of(self._address) != "file"
        self._desk = _Desk()
        self._stopping = threading.Event()
        self.frames = FrameCounts()
        self.connected = False
        """Whether frames come in."""
        self.error: EdgeError | None = None
        """What ended the source before its time."""
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"video-{name}", daemon=True)
            for name, work in (("send", self._send), ("read", self._read))
        ]

    @property
    def running(self) -> bool:
        """False before `start`, and again once the last frame of a file is handed over."""
        return any(thread.is_alive() for thread in self._threads)

    def describe(self) -> str:
        """Where the frames come from, for the log."""
        return f"video from {describe(self._address)}"

    def start(self) -> None:
        """Begin. Raises `UsageError` for a file that is not there, `MachineError` if OpenCV lacks what it takes."""
        require(self._address)
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raises the error that ended the source, if one did."""
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End soon; the frame that is being handed over still is. Waits a few seconds at most."""
        self._stopping.set()
        self._desk.close()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            if thread.ident is not None:  # else it was never started
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            log.debug("video: the failure", exc_info=True)
            if not isinstance(error, EdgeError):  # its text may quote what came in
                error = MachineError(f"video: the source failed with {type(error).__name__}: restart it")
            self.error = self.error or error
            self._stopping.set()
        finally:
            self._desk.close()

    # The reading thread

    def _read(self) -> None:
        pause = RECONNECT_SECONDS[0]
        while not self._stopping.is_set():
            before = self.frames.seen
            with opened(self._address) as capture:
                if capture is not None:
                    self._read_frames(capture)
                if not self._live:
                    self._end_of_file(0 if capture is None else int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
                    return
            if self._stopping.is_set():
                return
            if self.frames.seen > before:
                pause = RECONNECT_SECONDS[0]
            log.warning("%s: no frames come in; trying again in %.0f s", self.describe(), pause)
            self._stopping.wait(pause)
            pause = min(2 * pause, RECONNECT_SECONDS[1])

    def _read_frames(self, capture: Any) -> None:
        due = 0.0  # of a file's own time, in seconds
        try:
            while not self._stopping.is_set() and capture.grab():
                if not self.connected:
                    self.connected = True
                    log.info("%s: frames come in", self.describe())
                self.frames.add(seen=1)
                seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
                if (self._live or seconds >= due) and self._desk.wanted(wait=not self._live):
                    due = seconds + self._every - _ROUNDING
                    self._hand_over(capture, seconds)
                else:
                    self.frames.add(dropped=1)
        finally:
            self.connected = False

    def _hand_over(self, capture: Any, seconds: float) -> None:
        decoded, pixels = capture.retrieve()
        if decoded:
            self._desk.put(_Frame(pixels, None if self._live else f"{Path(self._address).name} {seconds:.3f} s"))
        else:
            self.frames.add(dropped=1)

    def _end_of_file(self, expected: int) -> None:
        seen = self.frames.seen
        if self._stopping.is_set():
            return
        if seen == 0:
            raise InputRefusedError("video: the file has no frame that can be read: it is damaged, or no video")
        if seen < expected:
            log.warning("video: the file ended after %d of %d frames: it is damaged or cut off", seen, expected)
        else:
            log.info("video: the file ended after %d frames", seen)

    # The sending thread

    def _send(self) -> None:
        while (frame := self._desk.take()) is not None:
            start = time.monotonic()
            taken = False
            try:
                taken = self._deliver(encode(frame.pixels), frame.name)
            finally:
                self.frames.add(taken=int(taken), dropped=int(not taken))
            if self._live:
                self._stopping.wait(max(0.0, start + self._every - time.monotonic()))

    def _deliver(self, content: bytes, name: str | None) -> bool:
        """Hand over one frame; one of a file is offered until the daemon has room for it. Whether it was taken."""
        while True:
            try:
                self._service.receive(content, origin="video", source=name)
                return True
            except BusyError as error:
                self._stopping.wait(error.retry_after)
            except StorageFullError as error:
                log.error("%s: %s", self.describe(), error)
                self._stopping.wait(STORAGE_SECONDS)
            except InputRefusedError as error:
                log.warning("%s: a frame was refused: %s", self.describe(), error)
                return False
            if self._live or self._stopping.is_set():
                return False
