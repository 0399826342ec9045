"""OpenCV's part of a video source: it opens an address, and makes files of frames."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import MachineError, UsageError
from edge.raster import silence_opencv
from edge.sources.video_config import kind_of

TIMEOUT_SECONDS = 10.0
"""How long a network stream may keep silent before it is given up."""
_COMPRESSION = 1  # PNG's fastest: a frame is read once, and then it is gone
_BACKENDS = {
    "file": (cv2.CAP_FFMPEG, "FFmpeg"),
    "url": (cv2.CAP_FFMPEG, "FFmpeg"),
    "camera": (cv2.CAP_V4L2, "Video4Linux"),
    "pipeline": (cv2.CAP_GSTREAMER, "GStreamer"),
}


def require(address: str) -> None:
    """Raises `MachineError` if this OpenCV cannot open such an address, `UsageError` for a file that is not there."""
    kind = kind_of(address)
    backend, name = _BACKENDS[kind]
    if backend not in cv2.videoio_registry.getBackends():
        raise MachineError(
            f"video: the address is a {kind}, for which OpenCV needs {name}, and this one has none: use the OpenCV of "
            "JetPack or Debian (python3-opencv), or give the stream in another way"
        )
    if kind == "file" and not Path(address).is_file():
        raise UsageError("video: the address is neither a file that is there, nor a URL, camera or pipeline: check it")


def silence() -> None:
    """Keep OpenCV and FFmpeg from printing what they were given: an address may hold a password, a name a patient's."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when OpenCV first uses FFmpeg
    silence_opencv()


@contextlib.contextmanager
def opened(address: str) -> Iterator[Any]:
    """The `cv2.VideoCapture` of an address, None if it does not open; released at the end."""
    silence()
    kind = kind_of(address)
    milliseconds = int(TIMEOUT_SECONDS * 1e3)
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    capture = cv2.VideoCapture(address, _BACKENDS[kind][0], timeouts if kind == "url" else [])
    try:
        yield capture if capture.isOpened() else None
    finally:
        capture.release()


def encode(pixels: NDArray[Any]) -> bytes:
    """A frame as a gray PNG file, without loss: (H, W), (H, W, 1) or (H, W, 3: blue, green, red), uint8 or uint16.

    Raises `MachineError` for any other kind of frame.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or channels not in (1, 3):
        raise MachineError(
            f"video: the frames are {pixels.dtype} {pixels.shape}, expected gray or colour of 8 or 16 bits: let the "
            "pipeline convert them (videoconvert)"
        )
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY) if channels == 3 else pixels
    return bytes(cv2.imencode(".png", gray, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])[1])
