"""What the headers of compressed images declare, read before any decoder sees them.

Decoders trust their own header: one that disagrees with the file around it makes them allocate, or write, as it says.
Sources: ITU-T T.81 (JPEG) annex B, T.87 (JPEG-LS) annex C, T.800 (JPEG 2000) annex A, Exif 2.32 section 4.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from edge.errors import InputRefusedError

SOF_BASELINE, SOF_EXTENDED, SOF_PROGRESSIVE, SOF_LOSSLESS, SOF_JPEG_LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {SOF_JPEG_LS}
_SOS, _APP1 = 0xDA, 0xE1


class Frame(NamedTuple):
    """What a codestream's frame header declares."""

    rows: int
    columns: int
    components: int
    precision: int
    """Bits a sample."""
    process: int
    """JPEG, JPEG-LS: the start-of-frame marker's second byte. JPEG 2000: 0."""
    signed: bool
    """JPEG 2000 only; JPEG and JPEG-LS know no sign."""
    orientation: int
    """Exif orientation, 1 (upright) if there is none."""


def read_jpeg_frame(data: bytes) -> Frame:
    """Read the markers of a JPEG or JPEG-LS stream up to its first scan. Raises `InputRefusedError`."""
    frame: Frame | None = None
    orientation = 1
    for marker, body, _ in jpeg_segments(data):
        if marker == _APP1 and body.startswith(b"Exif\0\0"):
            orientation = read_exif_orientation(body[6:])
        if marker in _SOF_MARKERS:
            if frame is not None or len(body) < 6:
                raise _damaged("JPEG", "its frame header is not readable")
            precision, rows, columns, components = struct.unpack_from(">BHHB", body)
            if len(body) != 6 + 3 * components:
                raise _damaged("JPEG", "its frame header is not readable")
            frame = Frame(rows, columns, components, precision, marker, False, orientation)
    if frame is None:
        raise _damaged("JPEG", "it has no frame header")
    if not frame.rows or not frame.columns:
        raise _damaged("JPEG", f"its frame header says {frame.columns} x {frame.rows} pixels")
    return frame._replace(orientation=orientation)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, body, end) of each segment after SOI; the last is the first SOS, whose body is its header.

    Raises `InputRefusedError` if the header is damaged.
    """
    at = 2
    while True:
        if at + 4 > len(data):
            raise _damaged("JPEG", "it ends inside its header")
        if data[at] != 0xFF:
            raise _damaged("JPEG", "a marker is missing in its header")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte (T.81 B.1.1.2)
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(data):
            raise _damaged("JPEG", "it ends inside its header")
        start, at = at + 4, at + 2 + length
        yield marker, data[start:at], at
        if marker == _SOS:
            return


def read_exif_orientation(tiff: bytes) -> int:
    """Orientation (tag 0x0112) of the Exif block `tiff`, 1 if it holds none or is not readable."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    if first + 2 > len(tiff):
        return 1
    (entries,) = struct.unpack_from(f"{order}H", tiff, first)
    for at in range(first + 2, min(first + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, at)
        if (tag, kind, count) == (0x0112, 3, 1):
            return int(value)
    return 1


def read_jpeg2000_frame(data: bytes) -> Frame:
    """Read the SIZ segment of a JPEG 2000 codestream, bare or in a JP2 file. Raises `InputRefusedError`."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC, SIZ
    if at < 0 or (at > 0 and not data.startswith(b"\0\0\0\x0cjP  ")):
        raise _damaged("JPEG 2000", "it does not begin with an image size")
    header = data[at + 6 : at + 6 + 37]
    if len(header) < 37:
        raise _damaged("JPEG 2000", "it ends inside its header")
    _, right, bottom, left, top, *_, components = struct.unpack(">H8IH", header[:36])
    rows, columns = bottom - top, right - left
    if rows < 1 or columns < 1:
        raise _damaged("JPEG 2000", "its size is not positive")
    depth = header[36]
    return Frame(rows, columns, components, (depth & 0x7F) + 1, 0, bool(depth & 0x80), 1)


def check_end_of_image(data: bytes, what: str) -> None:
    """Refuse a stream that lacks its end marker (the same two bytes in JPEG, JPEG-LS, JPEG 2000): it was cut."""
    if not data[-64:].rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # zeros and ones pad to an even length
        raise _damaged(what, "its end is missing")


def _damaged(what: str, how: str) -> InputRefusedError:
    return InputRefusedError(f"the {what} data is damaged: {how}; export or copy the image again")
