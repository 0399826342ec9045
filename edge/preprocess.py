"""From an image file to the network's input: one square, 8-bit, gray image.

Training, calibration and the device call the same code, so that a network sees on the device what it learned from.

What a file holds is read from its content, never from its name: DICOM, PNG or JPEG. Sizes are checked in the file's
header before anything is decoded, so that memory stays bounded whatever comes. A file that cannot be turned into a
faithful gray image is refused with `InputRefusedError`; its text names neither the file nor the patient: the caller
knows the file.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import BundleError, InputRefusedError, describe_os_error

PREPROCESS_VERSION = 1
"""Raised whenever the pixels that come out for some accepted file change."""

_RULES: Mapping[str, str] = {
    "gray": "8 bits, black is air",
    "dicom": "modality LUT or rescale, then first VOI LUT, else first window",
    "no_window": "up to 8 bits the range of the bits, above the minimum to the maximum of the image",
    "padding": "black",
    "resize": "stretched to a square: area average along a shrinking side, bilinear along a growing one",
}
"""What this version does, in words, for the manifest."""


@dataclass(frozen=True)
class Preprocess:
    """The parameters of preprocessing. They travel in the bundle's manifest."""

    input_size: int
    """Height and width of the network's input, in pixels."""
    max_pixels: int = 100_000_000
    """Largest number of pixels that a file may declare; a larger one is refused before it is decoded."""

    @property
    def max_file_bytes(self) -> int:
        """Largest file that is read, in bytes: 4 bytes a pixel, and room for headers."""
        return 4 * self.max_pixels + 16_000_000

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's `preprocess`: the version and every parameter."""
        return {
            "version": PREPROCESS_VERSION,
            "input_size": self.input_size,
            "max_pixels": self.max_pixels,
            **_RULES,
        }

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_manifest`. Raises `BundleError` if the manifest asks for what this version does not do."""
        again = "build the bundle with this version of mdconv-edge, or install the version that built it"
        for key, value in {"version": PREPROCESS_VERSION, **_RULES}.items():
            if manifest.get(key) != value:
                raise BundleError(
                    f"the manifest's preprocess {key} is {manifest.get(key)!r}, expected {value!r}: {again}"
                )
        for key in ("input_size", "max_pixels"):
            number = manifest.get(key)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise BundleError(
                    f"the manifest's preprocess {key} is {number!r}, expected a positive integer: {again}"
                )
        return cls(input_size=manifest["input_size"], max_pixels=manifest["max_pixels"])


def load_image(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """(S, S) uint8 network input of an image file, S = ``preprocess.input_size``. Raises `InputRefusedError`."""
    return resize(decode(path, preprocess), preprocess)


def decode(source: Path | bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
    """(H, W) uint8 gray image of a file, or of a file's content, at full size; black (0) is air (MONOCHROME2 sense).

    Raises `InputRefusedError` if it is no DICOM radiograph, PNG or JPEG, or is damaged, too large, or not gray.
    """
    content = source if isinstance(source, bytes) else _read(source, preprocess.max_file_bytes)
    if not content:
        raise InputRefusedError("the file is empty, expected a DICOM, PNG or JPEG image: send it again")
    if len(content) > preprocess.max_file_bytes:
        raise _too_large(len(content), preprocess.max_file_bytes)
    # Each reader is imported when the first of its files comes: a service that gets only PNG loads no DICOM codec.
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        from edge.raster import decode_png

        return decode_png(content, preprocess.max_pixels)
    if content.startswith(b"\xff\xd8\xff"):
        from edge.raster import decode_jpeg

        return decode_jpeg(content, preprocess.max_pixels)
    from edge.dicom import decode_dicom, is_dicom

    if is_dicom(content):
        return decode_dicom(content, preprocess.max_pixels, max_bytes=preprocess.max_file_bytes)
    raise InputRefusedError(
        f"the content is {_kind_of(content)}, expected DICOM, PNG or JPEG (the name's ending does not matter): "
        "convert the image, or remove the file"
    )


def resize(gray: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """(H, W) uint8 -> (S, S) uint8, stretched to a square, as the 1024 x 1024 images of ChestX-ray14 were made.

    A side that shrinks is averaged over areas, which keeps fine structures from turning into moiré; a side that grows
    is interpolated. The two are done apart, since OpenCV's area mode would give up averaging if only one side shrinks.
    """
    size = preprocess.input_size
    height, width = gray.shape
    if height > size or width > size:
        shrunk = (min(width, size), min(height, size))
        gray = np.asarray(cv2.resize(gray, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    if height < size or width < size:
        gray = np.asarray(cv2.resize(gray, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
    return gray


def _read(path: Path, limit: int) -> bytes:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe would block, a device may never end
            raise InputRefusedError("the path is no regular file, expected an image file: name the file itself")
        if facts.st_size > limit:
            raise _too_large(facts.st_size, limit)
        with path.open("rb") as file:
            return file.read(limit + 1)  # one more than allowed: a file that grows meanwhile is found out
    except OSError as error:
        reason = describe_os_error(OSError(error.errno, error.strerror))
        raise InputRefusedError(f"the file cannot be read: {reason}") from None


def _too_large(size: int, limit: int) -> InputRefusedError:
    return InputRefusedError(f"the file has {size:,} bytes, at most {limit:,} are read: send the image smaller")


def _kind_of(content: bytes) -> str:
    """A word for what a file is that is no image of ours; never its content, which may name a patient."""
    for magic, kind in _FOREIGN.items():
        if content.startswith(magic):
            return kind
    if all(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in content[:512]):
        return "text"
    return "of an unknown kind"


_FOREIGN: Mapping[bytes, str] = {
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"RIFF": "a RIFF file (WebP, AVI)",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 codestream",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
}
