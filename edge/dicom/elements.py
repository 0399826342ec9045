"""Reading of the few DICOM elements that an image's display needs (PS3.5 section 7, PS3.10 section 7).

A strict reader of our own, because damage must be told from a small image: a length that leads out of the file is
refused here, where a lenient reader warns and goes on with what there is. Patient data is stepped over, never read into
memory of its own, so that it cannot appear in a message or a log.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from edge.errors import InputRefusedError

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"

_TRANSFER_SYNTAX_UID = 0x0002_0010
_MEDIA_STORAGE_SOP_CLASS_UID = 0x0002_0002
_PIXEL_DATA = 0x7FE0_0010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_UNDEFINED = 0xFFFF_FFFF
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_MAX_DEPTH = 16
_MAX_ELEMENTS = 100_000
"""Far more than a radiograph has; bounds the time that a hostile file can take."""

Items = list["DataSet"]


class Element(NamedTuple):
    vr: str
    """Value representation, empty where the file does not say it (implicit)."""
    value: memoryview
    """The bytes, as they lie in the file; empty for a sequence."""
    items: Items


class DataSet(dict[int, Element]):
    """Elements by tag (group << 16 | element), with the byte order to read their values by."""

    order: str = "<"

    def text(self, tag: int) -> str:
        """First value of a text element, empty if it is absent or empty."""
        element = self.get(tag)
        return bytes(element.value).decode("latin-1").split("\\")[0].strip(" \0") if element else ""

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
        element = self.get(tag)
        if element is None:
            return ()
        if len(element.value) % 2 or len(element.value) > 64:
            raise InputRefusedError(f"the DICOM's {name} has a wrong length: the file is damaged; send it again")
        return struct.unpack(f"{self.order}{len(element.value) // 2}{'h' if signed else 'H'}", element.value)


class File(NamedTuple):
    """What was read of a DICOM file."""

    transfer_syntax: str
    sop_class: str
    """SOP Class UID, of the data set or else of the file's header; empty if neither says it."""
    data_set: DataSet
    """The wanted elements of the data set, without the pixel data."""
    pixels: memoryview | list[memoryview] | None
    """The pixel data: native bytes, or an encapsulated image's items (offset table, fragments); None if absent."""
    pixels_vr: str


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
            if _is_vr(content[4:6]):
                return True
            if order == "<" and int.from_bytes(content[4:8], "little") <= min(len(content) - 8, 0xFFFF):
                return True
    return False


def read_file(content: bytes, wanted: Iterable[int], max_bytes: int) -> File:
    """Read the `wanted` elements and the place of the pixel data. Raises `InputRefusedError` if the file is damaged.

    `max_bytes` bounds what a deflated data set may inflate to.
    """
    start = 132 if content[128:132] == b"DICM" else 0
    meta, start = _Reader(content, "<").read_meta(start)
    syntax, data = meta.text(_TRANSFER_SYNTAX_UID), content
    if syntax == DEFLATED:
        data, start = _inflate(content[start:], max_bytes), 0
    if not syntax:
        syntax = _guess_syntax(content, start)
    reader = _Reader(data, ">" if syntax == EXPLICIT_BIG else "<")
    data_set = reader.read_data_set(start, frozenset(wanted))
    sop_class = data_set.text(0x0008_0016) or meta.text(_MEDIA_STORAGE_SOP_CLASS_UID)
    return File(syntax, sop_class, data_set, reader.pixels, reader.pixels_vr)


def _guess_syntax(content: bytes, start: int) -> str:
    """Transfer syntax of a data set whose header is missing: one of the three native ones, by its first element."""
    if not _is_vr(content[start + 4 : start + 6]):
        return IMPLICIT_LITTLE
    return EXPLICIT_BIG if content[start : start + 1] == b"\0" else EXPLICIT_LITTLE


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


class _Reader:
    """Walks one byte string. Positions are checked before each use, so that no damage leads out of it."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = memoryview(data)
        self._order = order
        self._tag = struct.Struct(f"{order}HH")
        self._long = struct.Struct(f"{order}I")
        self._short = struct.Struct(f"{order}H")
        self._elements = 0
        self.pixels: memoryview | list[memoryview] | None = None
        self.pixels_vr = ""

    def read_meta(self, at: int) -> tuple[DataSet, int]:
        """The file meta elements (group 0002), and where the data set begins."""
        meta = DataSet()
        while at + 8 <= len(self._data) and bytes(self._data[at : at + 2]) == b"\x02\0":
            tag, vr, length, value_at = self._header(at)
            if length == _UNDEFINED:
                raise _damaged("a length in its header is undefined")
            at = self._end_of(value_at, length)
            meta[tag] = Element(vr, self._data[value_at:at], [])
        return meta, at

    def read_data_set(self, at: int, wanted: frozenset[int]) -> DataSet:
        """The wanted elements from `at` on, up to the pixel data, whose place is noted."""
        found = self._empty()
        while at < len(self._data):
            tag, vr, length, value_at = self._header(at)
            if tag == _PIXEL_DATA:
                self.pixels_vr = vr
                if length == _UNDEFINED:
                    self.pixels = self._fragments(value_at)
                else:
                    self.pixels = self._data[value_at : self._end_of(value_at, length)]
                return found
            element, at = self._value(vr, length, value_at, keep=tag in wanted, depth=0)
            if tag in wanted:
                found[tag] = element
        return found

    def _header(self, at: int) -> tuple[int, str, int, int]:
        """(tag, VR, length, position of the value) of the element at `at`. The VR is taken where there is one: some
        writers mix explicit and implicit elements, or declare the one and write the other."""
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise InputRefusedError(f"the DICOM has more than {_MAX_ELEMENTS:,} elements, which no radiograph has")
        self._end_of(at, 8)
        group, element = self._tag.unpack_from(self._data, at)
        tag, vr = group << 16 | element, bytes(self._data[at + 4 : at + 6])
        if tag in (_ITEM, _ITEM_END, _SEQUENCE_END) or not _is_vr(vr):
            return tag, "", self._long.unpack_from(self._data, at + 4)[0], at + 8
        if vr not in _LONG_VRS:
            return tag, vr.decode(), self._short.unpack_from(self._data, at + 6)[0], at + 8
        self._end_of(at, 12)
        return tag, vr.decode(), self._long.unpack_from(self._data, at + 8)[0], at + 12

    def _value(self, vr: str, length: int, at: int, keep: bool, depth: int) -> tuple[Element, int]:
        """The element's value, and the position after it. A sequence is entered if it is kept or has no length."""
        end = None if length == _UNDEFINED else self._end_of(at, length)
        if end is None or (keep and (vr == "SQ" or self._starts_item(at, end))):
            items, after = self._items(at, end, depth + 1)
            return Element(vr, self._data[:0], items), after
        return Element(vr, self._data[at:end], []), end

    def _starts_item(self, at: int, end: int) -> bool:
        return end - at >= 8 and self._tag.unpack_from(self._data, at) == (_ITEM >> 16, _ITEM & 0xFFFF)

    def _items(self, at: int, end: int | None, depth: int) -> tuple[Items, int]:
        if depth > _MAX_DEPTH:
            raise _damaged(f"its sequences are nested more than {_MAX_DEPTH} deep")
        items: Items = []
        while end is None or at < end:
            tag, _, length, at = self._header(at)
            if tag == _SEQUENCE_END and end is None:
                break
            if tag != _ITEM:
                raise _damaged("a sequence holds something that is no item")
            item, at = self._item(at, None if length == _UNDEFINED else self._end_of(at, length), depth)
            items.append(item)
        return items, at

    def _item(self, at: int, end: int | None, depth: int) -> tuple[DataSet, int]:
        item = self._empty()
        while end is None or at < end:
            tag, vr, length, value_at = self._header(at)
            if tag == _ITEM_END:
                return item, value_at
            item[tag], at = self._value(vr, length, value_at, keep=False, depth=depth)
        if at != end:
            raise _damaged("an element leads out of its item")
        return item, at

    def _fragments(self, at: int) -> list[memoryview]:
        """The items of encapsulated pixel data (PS3.5 A.4)."""
        fragments: list[memoryview] = []
        while True:
            tag, _, length, at = self._header(at)
            if tag == _SEQUENCE_END:
                return fragments
            if tag != _ITEM or length == _UNDEFINED:
                raise _damaged("its encapsulated pixel data is not made of items")
            end = self._end_of(at, length)
            fragments.append(self._data[at:end])
            at = end

    def _end_of(self, at: int, length: int) -> int:
        if at + length > len(self._data):
            raise _damaged("it is cut short")
        return at + length

    def _empty(self) -> DataSet:
        data_set = DataSet()
        data_set.order = self._order
        return data_set


def _is_vr(two: bytes) -> bool:
    return len(two) == 2 and 65 <= two[0] <= 90 and 65 <= two[1] <= 90


def _damaged(how: str) -> InputRefusedError:
    return InputRefusedError(f"the DICOM is damaged: {how}; send or copy it again")
