"""Where results go besides the ledger: one module a kind of sink, each delivered at least once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from edge.bundle import Bundle
from edge.errors import EdgeError
from edge.service import Picture


class SinkError(EdgeError):
    """The other side cannot be reached or did not take it: it is tried again later, after a growing pause."""


class SinkRefusedError(EdgeError):
    """This one result can never be delivered, and the text says why: it is given up, logged and counted."""


@dataclass(frozen=True)
class Delivery:
    """One result on its way to one sink."""

    result: dict[str, Any]
    """See `edge.results.image_result`; its ``id`` is the stable identifier: the same at every attempt."""
    content: bytes | None
    """The file as it was received; None if the spool holds it no longer."""
    picture: Picture | None
    """None for a refused image, and where pictures are not kept."""
    bundle: Bundle
    """The bundle now served: labels, notice and passport. The result itself names, by hash, the one that made it."""
    attempt: int
    """1 at the first try. At a later one the other side may have it already."""


class Sink(Protocol):
    """Delivers results, one at a time, in one thread of its own. Opened lazily: the other side may be down."""

    name: str
    """As it is known in the ledger, logs and metrics, such as ``jsonl``."""

    def deliver(self, delivery: Delivery) -> None:
        """Hand over one result; returns once the other side has it. Raises `SinkError` or `SinkRefusedError`."""
        ...

    def close(self) -> None: ...
