"""Stored pixel values of a DICOM image, whatever its transfer syntax (PS3.5 section 8, annexes A and G).

The codecs are those that pydicom's project maintains (pyjpegls, pylibjpeg-openjpeg), simplejpeg for 8-bit JPEG, and
our own for JPEG lossless and RLE. They are called here directly, and only after the codestream's own header was found
to agree with the data set: pydicom's wrappers log tracebacks and warn process-wide, and a codec writes as much as its
stream says.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edge.codestream import (
    SOF_BASELINE,
    SOF_EXTENDED,
    SOF_JPEG_LS,
    SOF_LOSSLESS,
    Frame,
    check_end_of_image,
    read_jpeg2000_frame,
    read_jpeg_frame,
)
from edge.dicom.elements import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, File
from edge.dicom.jpeg_lossless import decode_jpeg_lossless
from edge.errors import InputRefusedError
from edge.grayscale import Stored
from edge.raster import decode_jpeg_scan


class Layout(NamedTuple):
    """How the data set says that its pixels lie (PS3.3 C.7.6.3.1), one sample a pixel."""

    rows: int
    columns: int
    allocated: int
    """Bits Allocated: 8 or 16."""
    stored: int
    """Bits Stored: 8 to Bits Allocated."""
    signed: bool

    @property
    def bytes(self) -> int:
        return self.rows * self.columns * self.allocated // 8


def read_stored(file: File, layout: Layout) -> Stored:
    """(H, W) stored values as bit patterns, uint8 or uint16. Raises `InputRefusedError`."""
    if file.pixels is None:
        raise InputRefusedError("the DICOM has no pixel data, expected an image: send the image itself")
    if file.transfer_syntax in _NATIVE:
        if isinstance(file.pixels, list):
            raise _disagrees("it is encapsulated, but the transfer syntax says native")
        return _read_native(file.pixels, file.pixels_vr, file.transfer_syntax, layout)
    decode = _CODECS.get(file.transfer_syntax)
    if decode is None:
        raise InputRefusedError(
            "the DICOM's transfer syntax is not supported, expected uncompressed, deflated, RLE, JPEG, JPEG-LS or "
            "JPEG 2000: convert it to one of them"
        )
    if not isinstance(file.pixels, list):
        raise _disagrees("it is native, but the transfer syntax says compressed")
    if len(file.pixels) < 2 or len(file.pixels[0]) > 4:  # the offset table has 4 bytes a frame, or none
        raise _disagrees("it does not hold one frame")
    return decode(b"".join(file.pixels[1:]), layout)


def _read_native(pixels: memoryview, vr: str, syntax: str, layout: Layout) -> Stored:
    surplus = len(pixels) - layout.bytes
    if not 0 <= surplus < max(2, layout.columns * layout.allocated // 8):  # some writers pad, but never by a row
        raise _disagrees(f"it has {len(pixels):,} bytes, the header says {layout.bytes:,}")
    order = ">" if syntax == EXPLICIT_BIG else "<"
    if layout.allocated == 16:
        words = np.frombuffer(pixels, f"{order}u2", layout.rows * layout.columns)
        return words.astype(np.uint16, copy=False).reshape(layout.rows, layout.columns)
    samples = np.frombuffer(pixels, np.uint8)
    if order == ">" and vr == "OW":  # 8-bit pixels in big-endian words lie swapped in pairs
        samples = samples[: samples.size // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)
        if samples.size < layout.bytes:
            raise _disagrees("it lacks the byte that fills its last word")
    return samples[: layout.bytes].reshape(layout.rows, layout.columns)


def _decode_jpeg(data: bytes, layout: Layout) -> Stored:
    frame = read_jpeg_frame(data)
    if frame.process not in (SOF_BASELINE, SOF_EXTENDED):
        raise _disagrees("it is another JPEG process than the transfer syntax says")
    if frame.precision != 8:
        raise InputRefusedError(
            f"the DICOM is lossy JPEG of {frame.precision} bits, only 8 bits are decoded: convert it to lossless"
        )
    _check_frame(frame, layout)
    return _fit(decode_jpeg_scan(data, "GRAY")[..., 0], frame, layout)


def _decode_jpeg_ls(data: bytes, layout: Layout) -> Stored:
    frame = read_jpeg_frame(data)
    if frame.process != SOF_JPEG_LS:
        raise _disagrees("it is no JPEG-LS, which the transfer syntax says")
    _check_frame(frame, layout)
    check_end_of_image(data, "JPEG-LS")  # CharLS searches seconds for the end of some streams that lack it
    import jpeg_ls

    try:
        pixels = bytes(jpeg_ls.decode_pixel_data(data)[0])
    except (RuntimeError, ValueError):
        raise _damaged("JPEG-LS") from None
    return _as_patterns(pixels, frame, layout)


def _decode_jpeg2000(data: bytes, layout: Layout) -> Stored:
    frame = read_jpeg2000_frame(data)
    _check_frame(frame, layout)
    check_end_of_image(data, "JPEG 2000")
    from openjpeg.utils import decode_pixel_data

    try:
        pixels = bytes(decode_pixel_data(data, version=2))
    except (RuntimeError, ValueError):
        raise _damaged("JPEG 2000") from None
    return _as_patterns(pixels, frame, layout)


def _decode_jpeg_lossless(data: bytes, layout: Layout) -> Stored:
    frame = read_jpeg_frame(data)
    if frame.process != SOF_LOSSLESS:
        raise _disagrees("it is no JPEG lossless, which the transfer syntax says")
    _check_frame(frame, layout)
    return _fit(decode_jpeg_lossless(data, frame), frame, layout)


def _decode_rle(data: bytes, layout: Layout) -> Stored:
    """PS3.5 annex G: one segment a byte of the pixel, the high byte first."""
    planes = layout.allocated // 8
    size = layout.rows * layout.columns
    if not 64 <= len(data) <= 64 + planes * (2 * size + 2):  # at worst two bytes a byte, and padding
        raise _damaged("RLE")
    count, *offsets = struct.unpack_from("<16I", data)
    bounds = [*offsets[:planes], len(data)]
    if count != planes or bounds[0] < 64 or sorted(bounds) != bounds:
        raise _damaged("RLE")
    pixels = np.zeros((size,), np.uint8 if planes == 1 else np.uint16)
    for start, end in itertools.pairwise(bounds):
        pixels <<= 8 * (planes - 1)
        pixels |= np.frombuffer(_unpack_bits(data, start, end, size), np.uint8)
    return pixels.reshape(layout.rows, layout.columns)


def _unpack_bits(data: bytes, at: int, end: int, size: int) -> bytes:
    """The `size` bytes of one RLE segment (PS3.5 G.3.1); only zeros may follow them, as padding."""
    out = bytearray()
    while len(out) < size and at < end:
        control = data[at]
        if control < 128:
            out += data[at + 1 : min(at + 2 + control, end)]
            at += 2 + control
        elif control > 128:
            out += data[at + 1 : at + 2] * (257 - control)
            at += 2
        else:
            at += 1
    if len(out) != size or data.count(0, at, end) != max(end - at, 0):
        raise _damaged("RLE")
    return bytes(out)


def _check_frame(frame: Frame, layout: Layout) -> None:
    """The codestream's own header must tell the same image as the data set."""
    if (frame.rows, frame.columns, frame.components) != (layout.rows, layout.columns, 1):
        raise _disagrees(
            f"its stream has {frame.columns} x {frame.rows} pixels of {frame.components} components, "
            f"the header says {layout.columns} x {layout.rows} of 1"
        )
    if frame.precision > layout.allocated:
        raise _disagrees(f"its stream has {frame.precision} bits, the header allocates {layout.allocated}")
    if layout.signed and not frame.signed and frame.precision < layout.stored:
        # JPEG knows no sign, so the sign bit must be where the header says it is.
        raise _disagrees(f"its stream has {frame.precision} bits, the header says {layout.stored}, signed")
    if frame.signed and not layout.signed and frame.precision != layout.stored:
        raise _disagrees(f"its stream has {frame.precision} bits, signed, the header says {layout.stored}, unsigned")


def _as_patterns(pixels: bytes, frame: Frame, layout: Layout) -> Stored:
    """A codec's little-endian samples as (H, W); a signed stream's high bits continue its sign."""
    if frame.precision > 8:
        return _fit(np.frombuffer(pixels, "<u2").astype(np.uint16, copy=False), frame, layout)
    if frame.signed:
        return _fit(np.frombuffer(pixels, np.int8).astype(np.int16).view(np.uint16), frame, layout)
    return _fit(np.frombuffer(pixels, np.uint8), frame, layout)


def _fit(samples: Stored, frame: Frame, layout: Layout) -> Stored:
    """`samples` as (H, W), checked to be as many and as small as the header says."""
    if samples.size != layout.rows * layout.columns:
        raise _disagrees("its stream holds another number of pixels than its header says")
    if not layout.signed and not frame.signed and int(samples.max()) >> layout.stored:
        raise _disagrees(f"its stream holds values of more than the {layout.stored} bits that the header says")
    return samples.reshape(layout.rows, layout.columns)


_NATIVE = frozenset((IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG))
_CODECS: dict[str, Callable[[bytes, Layout], Stored]] = {
    "1.2.840.10008.1.2.4.50": _decode_jpeg,  # baseline
    "1.2.840.10008.1.2.4.51": _decode_jpeg,  # extended
    "1.2.840.10008.1.2.4.57": _decode_jpeg_lossless,
    "1.2.840.10008.1.2.4.70": _decode_jpeg_lossless,  # first-order prediction
    "1.2.840.10008.1.2.4.80": _decode_jpeg_ls,  # lossless
    "1.2.840.10008.1.2.4.81": _decode_jpeg_ls,  # near-lossless
    "1.2.840.10008.1.2.4.90": _decode_jpeg2000,  # lossless
    "1.2.840.10008.1.2.4.91": _decode_jpeg2000,
    "1.2.840.10008.1.2.5": _decode_rle,
}


def _disagrees(how: str) -> InputRefusedError:
    return InputRefusedError(f"the DICOM's pixel data disagrees with its header: {how}; send or export it again")


def _damaged(codec: str) -> InputRefusedError:
    return InputRefusedError(f"the DICOM's {codec} data is damaged or cut short: send or export it again")
