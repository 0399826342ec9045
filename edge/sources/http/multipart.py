"""The parts of a ``multipart/related`` body as they complete, each within a bound of its size (RFC 2387, RFC 2046)."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, field
from enum import Enum

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from edge.sources.http.answers import Refusal
from edge.sources.http.bodies import Held, ShortOfMemoryError

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings quote what came in


class Fault(Enum):
    """Why a part's content was thrown away."""

    TOO_LARGE = "too large"
    NO_MEMORY = "no memory"


@dataclass
class Part:
    """One part of the body."""

    headers: dict[str, str] = field(default_factory=dict)
    """By lower-case name."""
    content: bytes = b""
    fault: Fault | None = None
    held: int = 0
    """Bytes of memory that are accounted for it: whoever is done with the part gives them back."""


def boundary_of(request: Request, kind: str) -> bytes:
    """The boundary of a request whose type is ``multipart/related`` of `kind`. Raises `Refusal` (415, 400)."""
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type != b"multipart/related" or options.get(b"type", kind.encode()).lower() != kind.encode():
        text = f'the body has another type, expected multipart/related; type="{kind}": send DICOM files that way'
        raise Refusal(415, text)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Refusal(400, "the Content-Type has no boundary, expected one that parts the body: add it")
    return boundary


HEADER_BYTES = 16384
"""All headers of one part, at most."""


class PartReader:
    """Takes the body piece by piece. A part that outgrows `limit` or the memory goes on without its content."""

    def __init__(self, boundary: bytes, limit: int, copies: int, held: Held) -> None:
        """`copies` is how often a part's content will be in memory until it is dealt with.

        Raises `Refusal` (400) for a boundary that is too long.
        """
        self._limit = limit
        self._copies = copies
        self._held = held
        self._name = self._value = b""
        self._part = Part()
        self._buffer = io.BytesIO()
        self._complete: list[Part] = []
        self.ended = False
        """Whether the closing boundary has come."""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_part_data": self._data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise Refusal(400, "the boundary is longer than the 70 characters of RFC 2046: choose another") from None

    def feed(self, piece: bytes) -> list[Part]:
        """Take one piece; the parts that it completes. Raises `python_multipart.exceptions.FormParserError`."""
        self._parser.write(piece)
        complete, self._complete = self._complete, []
        return complete

    def _begin(self) -> None:
        self._part = Part()
        self._header_bytes = 0
        self._buffer = io.BytesIO()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._value += data[start:end]

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES:
            raise FormParserError

    def _header_end(self) -> None:
        self._part.headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.fault:
            return
        size = end - start
        try:
            self._held.grow(size * self._copies)
        except ShortOfMemoryError:
            self._drop(Fault.NO_MEMORY)
            return
        self._part.held += size * self._copies
        self._buffer.write(memoryview(data)[start:end])
        if self._buffer.tell() > self._limit:
            self._drop(Fault.TOO_LARGE)

    def _drop(self, fault: Fault) -> None:
        self._part.fault = fault
        self._buffer = io.BytesIO()
        self._held.give_back(self._part.held)
        self._part.held = 0

    def _end_part(self) -> None:
        self._part.content = self._buffer.getvalue()
        self._buffer = io.BytesIO()
        self._complete.append(self._part)

    def _end(self) -> None:
        self.ended = True
