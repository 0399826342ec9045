"""The few DICOM elements that an image's display needs, read by pydicom.

pydicom reads leniently: it warns and goes on with what there is, and its warnings, log lines and exceptions quote
values, which may name a patient. Here damage must be told from a small image, and no value may reach a message. So the
values stay raw bytes, checked against their declared length and interpreted by the few rules that display needs; what
pydicom does without bound is bounded; and what it says is silenced, for the process, from the first DICOM on: a warning
filter that is set and taken back around each call would not be safe where several threads decode.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from edge.errors import InputRefusedError

_SOP_CLASS_UID, _PIXEL_DATA = 0x0008_0016, 0x7FE0_0010
_UNDEFINED = 0xFFFF_FFFF
_MAX_READS = 300_000
"""pydicom reads one to three times an element. Far more than a radiograph needs; bounds a hostile file's time."""
_VIEWED_BYTES = 1 << 18
"""A value from this size on is not copied: more than any table, less than the pixels of a radiograph."""

_SILENT = ("ignore", None, Warning, re.compile(r"pydicom(\.|$)"), 0)


class DataSet:
    """Elements by tag (group << 16 | element), their values raw until asked for by kind."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __contains__(self, tag: int) -> bool:
        return tag in self._dataset

    def _element(self, tag: int) -> RawDataElement | DataElement | None:
        """The element as it was read. (What pydicom defers are values of None, and those of length 0 are such too.)"""
        element: RawDataElement | DataElement | None = self._dataset.get_item(tag, keep_deferred=True)
        return element

    def is_undefined_length(self, tag: int) -> bool:
        """Whether the value ends at a delimiter, as encapsulated pixel data does."""
        element = self._element(tag)
        return isinstance(element, RawDataElement) and element.length == _UNDEFINED

    def value(self, tag: int) -> bytes:
        """The bytes of a value as they lie in the file, empty if it is absent. Refuses one that is cut short."""
        return bytes(self.view(tag))  # `bytes` of bytes is the same object: only what was read as a view is copied

    def view(self, tag: int) -> bytes | memoryview:
        """`value` without a copy of a large one."""
        element = self._element(tag)
        if element is None:
            return b""
        if isinstance(element, DataElement):  # a sequence, which pydicom has parsed already
            raise _damaged("a sequence stands where a value is expected")
        value = element.value or b""
        if len(value) != element.length != _UNDEFINED:
            raise _damaged("it is cut short")
        return value

    def order(self, tag: int) -> str:
        """Byte order of the element, as `struct` and NumPy name it."""
        element = self._element(tag)
        return ">" if isinstance(element, RawDataElement) and not element.is_little_endian else "<"

    def vr(self, tag: int) -> str:
        """Value representation, empty where the file does not say it (implicit)."""
        element = self._element(tag)
        return str(element.VR or "") if element is not None else ""

    def items(self, tag: int) -> list[DataSet]:
        """The items of a sequence, none if it is absent."""
        element = self._element(tag)
        if element is None:
            return []
        if isinstance(element, RawDataElement):
            self.value(tag)  # refused if it is cut short
        try:
            return [DataSet(item) for item in self._dataset[tag].value]
        except Exception:  # pydicom parses it here, and raises whatever that stumbles over
            raise _damaged("one of its sequences cannot be read") from None

    def text(self, tag: int) -> str:
        """First value of a text element, empty if it is absent or empty."""
        return self.value(tag).decode("latin-1").split("\\")[0].strip(" \0")

    def number(self, tag: int, name: str) -> float | None:
        """First value of a decimal or integer string (DS, IS), None if absent or empty. Refuses what is no number."""
        text = self.text(tag)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not -1e300 < value < 1e300:  # also refuses NaN
            raise InputRefusedError(f"the DICOM's {name} is no finite number: correct it, or export the image again")
        return value

    def short(self, tag: int, name: str, signed: bool = False) -> int | None:
        """First value of a 16-bit integer (US, SS), None if absent or empty. The sign is the caller's to know."""
        values = self.shorts(tag, name, signed)
        return values[0] if values else None

    def shorts(self, tag: int, name: str, signed: bool = False) -> tuple[int, ...]:
        """All values of a 16-bit integer element, none if it is absent."""
        value = self.value(tag)
        if len(value) % 2 or len(value) > 64:
            raise InputRefusedError(f"the DICOM's {name} has a wrong length: the file is damaged; send it again")
        return struct.unpack(f"{self.order(tag)}{len(value) // 2}{'h' if signed else 'H'}", value)


class File(NamedTuple):
    """What was read of a DICOM file."""

    transfer_syntax: str
    sop_class: str
    """SOP Class UID, of the data set or else of the file's header; empty if neither says it."""
    data_set: DataSet
    """The wanted elements of the data set."""
    pixels: bytes | memoryview | None
    """The pixel data: native, or an encapsulated image's items; None if absent."""
    pixels_vr: str
    encapsulated: bool


def is_dicom(content: bytes) -> bool:
    """Whether `content` is a DICOM file, or a data set without the preamble that files should begin with."""
    return content[128:132] == b"DICM" or _begins_like_data_set(content)


def _begins_like_data_set(content: bytes) -> bool:
    """Group 0002 or 0008, a low element number, then a VR or a length that lies in the file."""
    if len(content) < 16:
        return False
    for order in "<>":
        group, element = struct.unpack_from(f"{order}HH", content)
        if group in (0x0002, 0x0008) and element <= 0x0070:
            if re.match(rb"[A-Z]{2}", content[4:6]):
                return True
            if order == "<" and int.from_bytes(content[4:8], "little") <= min(len(content) - 8, 0xFFFF):
                return True
    return False


def read_file(content: bytes, wanted: Iterable[int], max_bytes: int) -> File:
    """Read the `wanted` elements and the pixel data. Raises `InputRefusedError` if the file is damaged.

    Nothing else is kept of the data set. `max_bytes` bounds what a deflated one may inflate to.
    """
    silence_pydicom()
    tags = [*wanted, _SOP_CLASS_UID, _PIXEL_DATA]
    try:
        dataset = _read(content, max_bytes, tags)
    except (InputRefusedError, MemoryError):
        raise
    except RecursionError:
        raise _damaged("its sequences are nested too deep") from None
    except Exception:  # pydicom raises whatever its parsing stumbles over; the text may quote the file
        raise _damaged("its elements cannot be read") from None
    if not dataset.keys():  # pydicom drops all elements if the last one, of undefined length, never ends
        raise InputRefusedError(
            "the DICOM is cut short, or holds no image, expected a projection radiograph: send the whole image"
        )
    data_set = DataSet(dataset)
    return File(
        transfer_syntax=_header_uid(dataset, "TransferSyntaxUID") or _native_syntax(data_set),
        sop_class=data_set.text(_SOP_CLASS_UID) or _header_uid(dataset, "MediaStorageSOPClassUID"),
        data_set=data_set,
        pixels=data_set.view(_PIXEL_DATA) if _PIXEL_DATA in data_set else None,
        pixels_vr=data_set.vr(_PIXEL_DATA),
        encapsulated=data_set.is_undefined_length(_PIXEL_DATA),
    )


def silence_pydicom() -> None:
    """Keep pydicom's warnings and log lines, which quote values, from being shown; cheap once it is done."""
    logging.getLogger("pydicom").propagate = False
    if list(warnings.filters[:1]) != [_SILENT]:
        warnings.filterwarnings("ignore", module=_SILENT[3].pattern)


class _Deflated(Exception):  # noqa: N818 -- a finding, no error
    """The data set from `start` on is deflated."""

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start


class _Source(io.BytesIO):
    """The file as pydicom reads it, with the two bounds that pydicom lacks: of reads, and of inflation.

    Native pixels, several megabytes, are given out as a view of the content.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._content = memoryview(content)
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:  # pydicom asks for all the rest only to inflate it, however large it becomes
            raise _Deflated(self.tell())
        self._reads += 1
        if self._reads > _MAX_READS:
            raise InputRefusedError("the DICOM has more elements than any radiograph: send the image itself")
        if size < _VIEWED_BYTES:
            return super().read(size)
        view = self._content[self.tell() :][:size]
        self.seek(len(view), io.SEEK_CUR)
        return view  # type: ignore[return-value]  # pydicom hands values of defined length on as they are


def _read(content: bytes, max_bytes: int, tags: list[int]) -> FileDataset:
    try:
        return pydicom.dcmread(_Source(content), force=True, specific_tags=tags)
    except _Deflated as found:
        start = found.start
    header = pydicom.dcmread(_Source(content[:start]), force=True)
    dataset = pydicom.dcmread(_Source(_inflate(content[start:], max_bytes)), force=True, specific_tags=tags)
    dataset.file_meta = header.file_meta
    return dataset


def _inflate(deflated: bytes, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(deflated, max_bytes)
    except zlib.error:
        raise _damaged("its deflated data set cannot be inflated") from None
    if not inflater.eof:
        if len(data) >= max_bytes:
            raise InputRefusedError(
                f"the DICOM's deflated data set inflates to more than {max_bytes:,} bytes: send the image smaller"
            )
        raise _damaged("its deflated data set is cut short")
    return data


def _header_uid(dataset: FileDataset, keyword: str) -> str:
    try:
        return str(dataset.file_meta.get(keyword) or "")
    except Exception:  # pydicom interprets the value here, and raises whatever that stumbles over
        raise _damaged("its header cannot be read") from None


def _native_syntax(data_set: DataSet) -> str:
    """Transfer syntax of a data set whose header is missing: a native one, explicit or implicit as pydicom found it."""
    return str(ExplicitVRBigEndian if data_set.order(_PIXEL_DATA) == ">" else ExplicitVRLittleEndian)


def _damaged(how: str) -> InputRefusedError:
    return InputRefusedError(f"the DICOM is damaged: {how}; send or copy it again")
