"""PNG and JPEG files to 8-bit gray.

Colour is refused unless its channels are equal, transparency unless it is opaque, and so are a rotation that only Exif
tells and an animation: which gray image such a file stands for would be a guess.
"""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.codestream import read_exif_orientation, read_jpeg_frame
from edge.errors import InputRefusedError
from edge.grayscale import Stored, apply_table, full_range, patterns_present, scale_to_byte

JPEG_COLOUR_TOLERANCE = 8
"""Largest spread of R, G, B, of 255, in a JPEG that counts as gray: what rounding and quantized chroma leave of it."""
_SILENT = 0  # OpenCV's LOG_LEVEL_SILENT


def decode_png(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """(H, W) uint8 gray of a PNG file of 1 to 16 bits, gray, palette or RGB with equal channels (PNG 3rd edition).

    8 bits and fewer are scaled by the range of the bits, 16 bits by the minimum and maximum of the image: PNG declares
    no window, and 12-bit values in 16 bits would come out black. Every chunk's CRC is checked, since OpenCV fills what
    is missing of a cut file with black.
    """
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise _damaged_png("its header is missing")
    columns, rows = struct.unpack_from(">II", content, 16)
    check_pixel_count(rows, columns, max_pixels)
    _check_png_chunks(content)
    pixels: Stored | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)  # type: ignore[assignment]
    if pixels is None or pixels.shape[:2] != (rows, columns):
        raise _damaged_png("its pixels cannot be decoded")
    _check_gray(pixels, tolerance=0)
    gray: Stored = pixels if pixels.ndim == 2 else pixels[..., 0].copy()
    if gray.dtype == np.uint8:
        return gray.astype(np.uint8, copy=False)
    values = np.arange(1 << 16, dtype=np.float64)
    return apply_table(gray, scale_to_byte(values, *full_range(values[patterns_present(gray)])))


def decode_jpeg(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """(H, W) uint8 gray of an 8-bit JPEG file, gray or colour whose channels are equal. Raises `InputRefusedError`."""
    frame = read_jpeg_frame(content)
    check_pixel_count(frame.rows, frame.columns, max_pixels)
    _check_upright(frame.orientation)
    if frame.precision != 8 or frame.components not in (1, 3):
        raise InputRefusedError(
            f"the JPEG has {frame.components} components of {frame.precision} bits, expected 1 or 3 of 8 bits: "
            "save it as 8-bit gray JPEG or as PNG"
        )
    if frame.components == 1:
        return decode_jpeg_scan(content, "GRAY")[..., 0]
    pixels = decode_jpeg_scan(content, "BGR")
    _check_gray(pixels, tolerance=JPEG_COLOUR_TOLERANCE)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)


def decode_jpeg_scan(content: bytes, colour: str) -> NDArray[np.uint8]:
    """(H, W, C) uint8 pixels of a JPEG stream whose header was checked. Raises `InputRefusedError` if it is damaged.

    libjpeg itself goes on after damage with gray pixels and a warning; simplejpeg's strict mode makes that an error.
    """
    import simplejpeg

    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, colorspace=colour, strict=True)
    except ValueError:
        raise InputRefusedError("the JPEG data is damaged or cut short: export or copy the image again") from None
    return pixels


def decode_jpeg2000(content: bytes) -> Stored | None:
    """(H, W) samples of a JPEG 2000 codestream of one unsigned component of 8 to 16 bits.

    None if it is damaged, or if this OpenCV has no OpenJPEG. Unlike pylibjpeg-openjpeg, which is the same decoder,
    OpenCV lets the other threads run meanwhile: half a second for a radiograph.
    """
    silence_opencv()  # it warns of every stream that declares no colour space, and a bare codestream never does
    samples: Stored | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)  # type: ignore[assignment]
    return samples


def silence_opencv() -> None:
    """Keep OpenCV's log lines from standard error, for the process."""
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # OpenCV 4, 5
    set_level(_SILENT)


def check_pixel_count(rows: int, columns: int, max_pixels: int) -> None:
    """Refuse an image of no pixels, or of more than `max_pixels`, by what its header says."""
    if rows < 1 or columns < 1:
        raise InputRefusedError(
            f"the header says {columns} x {rows} pixels, expected at least one: export the image again"
        )
    if rows * columns > max_pixels:
        raise InputRefusedError(
            f"the image has {columns} x {rows} pixels, at most {max_pixels:,} are decoded: send it smaller"
        )


def _check_png_chunks(content: bytes) -> None:
    """Walk the chunks to IEND, check each CRC, and refuse animation and rotation."""
    view = memoryview(content)
    at = 8
    while True:
        if at + 12 > len(view):
            raise _damaged_png("it is cut short")
        (length,) = struct.unpack_from(">I", view, at)
        end = at + 12 + length
        if end > len(view):
            raise _damaged_png("it is cut short")
        kind = bytes(view[at + 4 : at + 8])
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise _damaged_png("a checksum is wrong")
        if kind == b"acTL":
            raise InputRefusedError("the PNG is an animation, expected one image: save one frame of it")
        if kind == b"eXIf":
            _check_upright(read_exif_orientation(bytes(view[at + 8 : end - 4])))
        if kind == b"IEND":
            return
        at = end


def _check_upright(orientation: int) -> None:
    if orientation != 1:
        raise InputRefusedError(
            f"the Exif orientation is {orientation} (turned or mirrored), expected 1: save the image upright"
        )


def _check_gray(pixels: Stored, tolerance: int) -> None:
    """Refuse (H, W, 3 or 4) pixels, B, G, R(, A), if channels differ by more than `tolerance`, or A is not opaque."""
    if pixels.ndim == 2:
        return
    if pixels.shape[2] == 4 and pixels[..., 3].min() != np.iinfo(pixels.dtype).max:
        raise InputRefusedError("the image is transparent in places, expected an opaque one: flatten and save it again")
    blue, green, red = (pixels[..., channel] for channel in range(3))
    spread = max(int(cv2.absdiff(green, red).max()), int(cv2.absdiff(green, blue).max()))
    if spread > tolerance:
        raise InputRefusedError("the image is in colour, expected a gray radiograph: convert it if it is one")


def _damaged_png(how: str) -> InputRefusedError:
    return InputRefusedError(f"the PNG is damaged: {how}; export or copy the image again")
