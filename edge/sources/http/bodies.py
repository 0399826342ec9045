"""Reading request bodies within bounds: of each one's size and time, and of the memory of all together."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import Request

from edge.sources.http.answers import Refusal, retry_after

BYTES_PER_SECOND = 65536
"""How slow a client may be: each of these earns its body one more second."""
RETRY_SECONDS = 5.0


class ShortOfMemoryError(Exception):
    """The bodies that are being read fill the memory that they may have."""


class Memory:
    """Counts the bytes that bodies take. Used in the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, size: int, seconds: float) -> AsyncIterator[Held]:
        """Hold `size` bytes for the block; waits for them at most `seconds`, then raises `ShortOfMemoryError`."""
        async with self._freed:
            with anyio.move_on_after(seconds):
                await self._freed.wait_for(lambda: self._held + size <= self.limit)
            if self._held + size > self.limit:
                raise ShortOfMemoryError
            self._held += size
        held = Held(self, size)
        try:
            yield held
        finally:
            held.give_back(held.size)
            with anyio.CancelScope(shield=True):
                async with self._freed:
                    self._freed.notify_all()

    def change(self, size: int) -> None:
        """Take `size` more bytes, or give back if it is negative. Raises `ShortOfMemoryError`, and takes none then."""
        if size > 0 and self._held + size > self.limit:
            raise ShortOfMemoryError
        self._held += size


class Held:
    """What one request holds of the `memory`."""

    def __init__(self, memory: Memory, size: int) -> None:
        self._memory = memory
        self.size = size

    def grow(self, size: int) -> None:
        """Take `size` more bytes. Waits for nothing: two bodies that wait for each other's would wait for ever."""
        self._memory.change(size)
        self.size += size

    def give_back(self, size: int) -> None:
        self._memory.change(-size)
        self.size -= size


def declared_length(request: Request) -> int | None:
    """The body's length as the header has it (the HTTP parser has checked that it is a number); None if chunked."""
    length = request.headers.get("content-length")
    return None if length is None else int(length)


def check_length(request: Request, limit: int) -> None:
    """Turn away a body that is too large before any of it is read."""
    length = declared_length(request)
    if length is not None and length > limit:
        raise too_large(f"{length} bytes", limit)


def check_encoding(request: Request) -> None:
    """Turn away a compressed body: images hardly shrink, and what a small one inflates to has no bound."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise Refusal(415, "the body has a Content-Encoding, expected none: send it uncompressed")


async def pieces(request: Request, limit: int, seconds: float) -> AsyncIterator[bytes]:
    """The body as it arrives, at most `limit` bytes, in `seconds` and a time that grows with what has come."""
    check_length(request, limit)
    stream = request.stream()
    start = anyio.current_time()
    count = 0
    while True:
        try:
            with anyio.fail_after(start + seconds + count / BYTES_PER_SECOND - anyio.current_time()):
                piece = await anext(stream, b"")
        except TimeoutError:
            text = f"the body had not come after {anyio.current_time() - start:.0f} s: send it faster"
            raise Refusal(408, text, {"Connection": "close"}) from None
        if not piece:  # the stream has one such piece, at its end
            return
        count += len(piece)
        if count > limit:
            raise too_large(f"more than {limit} bytes", limit)
        yield piece


@asynccontextmanager
async def whole_body(request: Request, memory: Memory, limit: int, seconds: float) -> AsyncIterator[bytes]:
    """The whole body, at most `limit` bytes, whose memory is accounted for until the block ends."""
    limit = min(limit, memory.limit)
    check_encoding(request)
    check_length(request, limit)
    try:
        async with memory.hold(declared_length(request) or 0, seconds) as held:
            buffer = io.BytesIO()
            async for piece in pieces(request, limit, seconds):
                if buffer.tell() + len(piece) > held.size:
                    held.grow(buffer.tell() + len(piece) - held.size)
                buffer.write(piece)
            yield buffer.getvalue()
    except ShortOfMemoryError:
        raise Refusal(
            503, "other bodies fill the memory that they may have: send it again later", retry_after(RETRY_SECONDS)
        ) from None


def too_large(what: str, limit: int) -> Refusal:
    return Refusal(413, f"the body has {what}, expected at most {limit}: send less at a time")
