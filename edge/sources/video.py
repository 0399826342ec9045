"""Frames of a video as images: from a file, a camera, a network stream or a GStreamer pipeline.

A live source runs on whatever the daemon does: a frame is taken when the daemon is ready for one, and it is the newest
then; all others are dropped and counted. A file can wait: of it a frame every so many seconds of its own time is taken,
however slow the daemon is. The address may hold a password, and a file's name a patient's name: neither is ever logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from edge.errors import InputRefusedError, MachineError, UsageError
from edge.service import BusyError, Service, StorageFullError

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
"""How long a network stream may keep silent before it is given up and opened anew."""
RECONNECT_SECONDS = (1.0, 60.0)
"""The pause before a live source is opened again: the first one, doubled each time, and the longest."""
STORAGE_SECONDS = 10.0
"""The pause after the disk was found full."""
STOP_SECONDS = 5.0
"""How long `VideoSource.stop` waits: a camera that hangs does not keep the daemon alive."""
_COMPRESSION = 1  # PNG's fastest; a frame of noise gets little smaller with more


class VideoConfig(BaseModel):
    """One video source."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    address: SecretStr = Field(
        min_length=1,
        description="a file's path, a camera such as /dev/video0, a URL such as rtsp://user:password@camera/stream, or "
        "a GStreamer pipeline (known by its exclamation marks) that ends in appsink",
    )
    every_seconds: float = Field(
        1.0, ge=0, le=86400, description="least time between two frames that are taken; 0 takes all that it can"
    )


@dataclass
class FrameCounts:
    """What became of the frames so far: once the source has ended, ``seen`` is the sum of the other two."""

    seen: int = 0
    taken: int = 0
    """Safe with the daemon."""
    dropped: int = 0
    """Not due, or the daemon was busy, its disk full, or the frame refused."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, seen: int = 0, taken: int = 0, dropped: int = 0) -> None:
        with self._lock:
            self.seen += seen
            self.taken += taken
            self.dropped += dropped


@dataclass(frozen=True)
class _Frame:
    pixels: NDArray[Any]
    name: str | None


class _Counter:
    """Where the reading thread hands one frame at a time to the sending thread, which says when it is ready."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._frame: _Frame | None = None
        self._ready = False
        self._closed = False

    def wanted(self, wait: bool) -> bool:
        """Whether a frame may be `put`; with `wait`, only False once closed."""
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
        self._live = _kind(self._address) != "file"
        self._counter = _Counter()
        self._stopping = threading.Event()
        self.frames = FrameCounts()
        self.connected = False
        """Whether frames come in."""
        self.error: Exception | None = None
        """What ended the source before its time."""
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"video-{name}", daemon=True)
            for name, work in (("read", self._read), ("send", self._send))
        ]

    @property
    def running(self) -> bool:
        """False before `start`, and again once the last frame of a file is handed over."""
        return any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Begin. Raises `UsageError` for a file that is not there, `MachineError` if OpenCV cannot open such sources."""
        backend = _backend(self._address)
        if backend not in cv2.videoio_registry.getBackends():
            name = cv2.videoio_registry.getBackendName(backend)
            raise MachineError(
                f"this OpenCV has no {name}, which the video's address needs: install one that has (on a Jetson, the "
                "system's), or give the stream in another way"
            )
        if not self._live and not Path(self._address).is_file():
            raise UsageError(
                "the video's address is neither a file that is there, nor a URL, camera or pipeline: check it"
            )
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End soon: the frame that is being handed over still is. Waits a few seconds at most."""
        self._stopping.set()
        self._counter.close()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # told by `error`; the daemon goes on without its video
            self.error = self.error or error
            self._stopping.set()
            text = str(error) if isinstance(error, (InputRefusedError, MachineError)) else type(error).__name__
            log.error("video: the source ended: %s", text)
            log.debug("video: the failure", exc_info=True)
        finally:
            self._counter.close()

    def _read(self) -> None:
        pause, longest = RECONNECT_SECONDS
        while not self._stopping.is_set():
            with _opened(self._address) as capture:
                if capture is not None:
                    before = self.frames.seen
                    self._read_frames(capture)
                    if self.frames.seen > before:
                        pause = RECONNECT_SECONDS[0]
                    if not self._live:
                        self._end_of_file(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
                        return
                elif not self._live:
                    raise InputRefusedError("the video file cannot be opened: it is damaged, or of no known format")
            if self._stopping.is_set():
                return
            log.warning("video: %s is not there; trying again in %.0f s", describe(self._address), pause)
            self._stopping.wait(pause)
            pause = min(2 * pause, longest)

    def _read_frames(self, capture: Any) -> None:
        due = 0.0
        try:
            while not self._stopping.is_set() and capture.grab():
                if not self.connected:
                    self.connected = True
                    log.info("video: frames come in from %s", describe(self._address))
                self.frames.add(seen=1)
                seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
                if (self._live or seconds >= due) and self._counter.wanted(wait=not self._live):
                    due = seconds + self._every - 1e-6  # of the file's own time
                    self._hand_over(capture, seconds)
                else:
                    self.frames.add(dropped=1)
        finally:
            self.connected = False

    def _hand_over(self, capture: Any, seconds: float) -> None:
        done, pixels = capture.retrieve()
        if done:
            self._counter.put(_Frame(pixels, None if self._live else f"{Path(self._address).name} {seconds:.3f} s"))
        else:
            self.frames.add(dropped=1)

    def _end_of_file(self, expected: int) -> None:
        seen = self.frames.seen
        if seen == 0:
            raise InputRefusedError("the video file has no frame that can be read: it is damaged")
        if seen < expected and not self._stopping.is_set():
            log.warning("video: the file ended after %d of %d frames: it is damaged or cut off", seen, expected)
        else:
            log.info("video: the file ended: %d frames", seen)

    def _send(self) -> None:
        while (frame := self._counter.take()) is not None:
            start = time.monotonic()
            self._deliver(encode(frame.pixels), frame.name)
            if self._live:
                self._stopping.wait(max(0.0, start + self._every - time.monotonic()))

    def _deliver(self, content: bytes, name: str | None) -> None:
        """Hand one frame over; one of a file is offered until the daemon has room for it."""
        while True:
            try:
                self._service.receive(content, origin="video", source=name)
            except (BusyError, StorageFullError) as error:
                self._stopping.wait(error.retry_after if isinstance(error, BusyError) else STORAGE_SECONDS)
                if self._live or self._stopping.is_set():
                    self.frames.add(dropped=1)
                    return
            except InputRefusedError as error:
                log.warning("video: a frame was refused: %s", error)
                self.frames.add(dropped=1)
                return
            except BaseException:
                self.frames.add(dropped=1)
                raise
            else:
                self.frames.add(taken=1)
                return


def encode(pixels: NDArray[Any]) -> bytes:
    """A frame as a gray PNG file, without loss: (H, W), (H, W, 1) or (H, W, 3: blue, green, red), uint8 or uint16.

    Raises `MachineError` for any other kind of frame.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or channels not in (1, 3):
        raise MachineError(
            f"the video's frames are {pixels.dtype} {pixels.shape}, expected gray or colour of 8 or 16 bits: let the "
            "pipeline convert them (videoconvert)"
        )
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if channels == 3 else pixels
    return bytes(cv2.imencode(".png", gray, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])[1])


def describe(address: str) -> str:
    """What may be said of an address: no password, no path, no file's name."""
    kind = _kind(address)
    if kind == "url":
        try:
            parts = urlsplit(address)
            return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        except ValueError:
            return "the stream"
    return {"file": "the file", "camera": address, "pipeline": "the pipeline"}[kind]


def _kind(address: str) -> str:
    if "!" in address and not Path(address).is_file():
        return "pipeline" if "://" not in address.partition("!")[0].split()[0] else "url"
    if address.startswith("/dev/"):
        return "camera"
    return "url" if "://" in address else "file"


def _backend(address: str) -> int:
    backends = {"pipeline": cv2.CAP_GSTREAMER, "camera": cv2.CAP_V4L2}
    return int(backends.get(_kind(address), cv2.CAP_FFMPEG))


@contextlib.contextmanager
def _opened(address: str) -> Iterator[Any]:
    """The `cv2.VideoCapture` of an address, None if it does not open; released at the end."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # both may print what they were given, password and all
    cv2.setLogLevel(0)
    milliseconds = int(TIMEOUT_SECONDS * 1e3)
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    backend = _backend(address)
    capture = cv2.VideoCapture(address, backend, timeouts if _kind(address) == "url" else [])
    try:
        yield capture if capture.isOpened() else None
    finally:
        capture.release()
