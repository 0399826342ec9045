"""Stored pixel values of a DICOM image, whatever its transfer syntax (PS3.5 section 8, annexes A and G).

Compressed ones are decoded by pydicom's decoders (`edge.codecs`) and simplejpeg, never before the stream's own header
was found to agree with the data set: a decoder allocates, and writes, what its stream says.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from pydicom import uid
from pydicom.encaps import generate_fragments, parse_basic_offsets

from edge.codecs import EncodedFrame, decode_frame, missing_packages
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
from edge.dicom.gdcm import decode_by_gdcm
from edge.dicom.reader import File
from edge.errors import InputRefusedError
from edge.grayscale import Stored
from edge.raster import decode_jpeg2000, decode_jpeg_scan


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
        if file.encapsulated:
            raise _disagrees("it is encapsulated, but the transfer syntax says native")
        return _read_native(file.pixels, file.pixels_vr, file.transfer_syntax, layout)
    decode = _CODECS.get(file.transfer_syntax)
    if decode is None:
        raise InputRefusedError(
            "the DICOM's transfer syntax is not supported, expected uncompressed, deflated, RLE, JPEG, JPEG-LS or "
            "JPEG 2000: convert it to one of them"
        )
    if not file.encapsulated:
        raise _disagrees("it is native, but the transfer syntax says compressed")
    return decode(file.transfer_syntax, _single_frame(file.pixels), layout)


def _single_frame(pixels: bytes | memoryview) -> bytes:
    """The frame of encapsulated pixel data (PS3.5 A.4), its fragments joined."""
    stream = io.BytesIO(pixels)
    try:
        offsets = parse_basic_offsets(stream)
        fragments = list(generate_fragments(stream))
    except (ValueError, struct.error):
        raise _disagrees("it is not made of items") from None
    if len(offsets) > 1 or not fragments:
        raise _disagrees("it does not hold one frame")
    return b"".join(fragments)


def _read_native(pixels: bytes | memoryview, vr: str, syntax: str, layout: Layout) -> Stored:
    surplus = len(pixels) - layout.bytes
    if not 0 <= surplus < max(2, layout.columns * layout.allocated // 8):  # some writers pad, but never by a row
        raise _disagrees(f"it has {len(pixels):,} bytes, the header says {layout.bytes:,}")
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    if layout.allocated == 16:
        words = np.frombuffer(pixels, f"{order}u2", layout.rows * layout.columns)
        # Behind an element of an odd length they begin at an odd address, which not every processor reads.
        words = np.require(words.astype(np.uint16, copy=False), requirements="A")
        return words.reshape(layout.rows, layout.columns)
    samples = np.frombuffer(pixels, np.uint8)
    if order == ">" and vr == "OW":  # 8-bit pixels in big-endian words lie swapped in pairs
        samples = samples[: samples.size // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)
        if samples.size < layout.bytes:
            raise _disagrees("it lacks the byte that fills its last word")
    return samples[: layout.bytes].reshape(layout.rows, layout.columns)


def _decode_jpeg(syntax: str, data: bytes, layout: Layout) -> Stored:
    """Baseline and extended. By simplejpeg, since GDCM goes on after damage that its strict mode refuses."""
    frame = read_jpeg_frame(data)
    if frame.process not in (SOF_BASELINE, SOF_EXTENDED):
        raise _disagrees("it is another JPEG process than the transfer syntax says")
    if frame.precision != 8:
        raise InputRefusedError(
            f"the DICOM is lossy JPEG of {frame.precision} bits, only 8 bits are decoded: convert it to lossless"
        )
    _check_frame(frame, layout)
    return _fit(decode_jpeg_scan(data, "GRAY")[..., 0], frame, layout)


def _decode_jpeg_lossless(syntax: str, data: bytes, layout: Layout) -> Stored:
    frame = read_jpeg_frame(data)
    if frame.process != SOF_LOSSLESS:
        raise _disagrees("it is no JPEG lossless, which the transfer syntax says")
    return _decode(syntax, data, frame, layout, "JPEG lossless")


def _decode_jpeg_ls(syntax: str, data: bytes, layout: Layout) -> Stored:
    frame = read_jpeg_frame(data)
    if frame.process != SOF_JPEG_LS:
        raise _disagrees("it is no JPEG-LS, which the transfer syntax says")
    return _decode(syntax, data, frame, layout, "JPEG-LS")


def _decode_jpeg2000(syntax: str, data: bytes, layout: Layout) -> Stored:
    """By OpenCV where it can, since pylibjpeg-openjpeg holds up every other thread for as long as it decodes."""
    frame = read_jpeg2000_frame(data)
    if not frame.signed and frame.precision >= 8:
        _check_frame(frame, layout)
        check_end_of_image(data, "JPEG 2000")
        samples = decode_jpeg2000(data)
        if samples is not None and samples.shape == (frame.rows, frame.columns):
            return _fit(samples, frame, layout)
    return _decode(syntax, data, frame, layout, "JPEG 2000")


def _decode(syntax: str, data: bytes, frame: Frame, layout: Layout, codec: str) -> Stored:
    _check_frame(frame, layout)
    check_end_of_image(data, codec)  # CharLS searches seconds for the end of some streams that lack it
    samples = _samples(EncodedFrame(syntax, data, frame.rows, frame.columns, frame.precision), codec)
    return _as_patterns(samples, frame, layout)


def _decode_rle(syntax: str, data: bytes, layout: Layout) -> Stored:
    """PS3.5 annex G: one segment a byte of the pixel, the high byte first."""
    size = layout.rows * layout.columns
    if len(data) < 64:
        raise _damaged("RLE")
    count, *offsets = struct.unpack_from("<16I", data)
    bounds = [*offsets[: layout.allocated // 8], len(data)]
    if count != layout.allocated // 8 or bounds[0] < 64 or sorted(bounds) != bounds:
        raise _damaged("RLE")
    for start, end in itertools.pairwise(bounds):
        _check_rle_segment(data, start, end, size)
    samples = _samples(EncodedFrame(syntax, data, layout.rows, layout.columns, layout.allocated), "RLE")
    return np.frombuffer(samples, f"<u{layout.allocated // 8}").reshape(layout.rows, layout.columns)


def _check_rle_segment(data: bytes, at: int, end: int, size: int) -> None:
    """Refuse a segment that does not unpack to `size` bytes (PS3.5 G.3.1): unpacking has no bound of its own."""
    unpacked = 0
    while unpacked < size and at < end:
        control = data[at]
        if control < 128:
            unpacked += control + 1
            at += control + 2
        else:
            unpacked += 257 - control if control > 128 else 0
            at += 2 if control > 128 else 1
    if unpacked != size or at > end or data.count(0, at, end) != end - at:
        raise _damaged("RLE")


def _samples(frame: EncodedFrame, codec: str) -> bytes:
    """What the decoder makes of `frame`, whose header was checked."""
    if missing := missing_packages(frame.transfer_syntax):
        raise InputRefusedError(
            f"the DICOM is compressed as {codec}, which needs a decoder that is not installed: pip install {missing}"
        )
    if codec == "JPEG lossless":
        samples = decode_by_gdcm(frame)
    else:
        try:
            samples = decode_frame(frame)
        except MemoryError:
            raise
        except Exception:  # whatever pydicom raises for damaged data; its text may quote the file
            samples = None
    if samples is None:
        raise _damaged(codec)
    return samples


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


_NATIVE = frozenset(
    (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
    )
)
_CODECS: dict[str, Callable[[str, bytes, Layout], Stored]] = {
    uid.JPEGBaseline8Bit: _decode_jpeg,
    uid.JPEGExtended12Bit: _decode_jpeg,
    uid.JPEGLossless: _decode_jpeg_lossless,
    uid.JPEGLosslessSV1: _decode_jpeg_lossless,
    uid.JPEGLSLossless: _decode_jpeg_ls,
    uid.JPEGLSNearLossless: _decode_jpeg_ls,
    uid.JPEG2000Lossless: _decode_jpeg2000,
    uid.JPEG2000: _decode_jpeg2000,
    uid.RLELossless: _decode_rle,
}
TRANSFER_SYNTAXES: tuple[str, ...] = (*sorted(_NATIVE), *_CODECS)
"""UIDs of all that is decoded."""


def _disagrees(how: str) -> InputRefusedError:
    return InputRefusedError(f"the DICOM's pixel data disagrees with its header: {how}; send or export it again")


def _damaged(codec: str) -> InputRefusedError:
    return InputRefusedError(f"the DICOM's {codec} data is damaged or cut short: send or export it again")
