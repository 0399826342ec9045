"""What the daemon is to its sources and to the web page: the calls that they may make, and how they are turned away.

Sources (folder, HTTP, DICOM, video) hand over images; nobody but the daemon itself touches the ledger or the pipeline.
Every call here may be made from any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import BusyError, StorageFullError
from edge.pipeline import Outcome

__all__ = ["BusyError", "Picture", "Receipt", "Service", "StorageFullError"]


@dataclass(frozen=True)
class Receipt:
    """The word given for an image that is safe on the disk."""

    id: str
    """The run's identifier, made here: 32 hexadecimal digits."""
    sha256: str
    new: bool
    """False where this content, or this DICOM instance, is known already: `id` is that run's."""


@dataclass(frozen=True)
class Picture:
    """What a person can look at of one finished image."""

    pixels: NDArray[np.uint8]
    """(S, S) uint8, what the network saw."""
    cam: NDArray[np.float32] | None
    """(L, h, w) float32 class activation maps, in the order of the labels of the bundle that made them."""
    labels: tuple[str, ...]


class Service(Protocol):
    """The running daemon."""

    @property
    def bundle(self) -> Bundle:
        """The bundle that new images are run with."""
        ...

    @property
    def max_bytes(self) -> int:
        """Largest file that is taken, in bytes."""
        ...

    def ready(self) -> bool:
        """Whether images are run: the backend is open and self-tested, and the daemon is not stopping."""
        ...

    def receive(
        self,
        content: bytes,
        *,
        origin: str,
        stat: bool = False,
        source: str | None = None,
        instance: str | None = None,
    ) -> Receipt:
        """Take one file; returns once it is on the disk for good.

        `origin` is the kind of source (``http``, ``dicom``...), for metrics; a `stat` image overtakes the others;
        `source` is the name to report (kept only where names are kept); `instance` the SOP Instance UID of a DICOM
        file. Raises `BusyError`, `StorageFullError`, and `InputRefusedError` for a file that is too large or empty.
        """
        ...

    def infer(self, images: NDArray[np.uint8], timeout: float) -> list[Outcome]:
        """Run ready images (N, 1, S, S) uint8 past the ledger, N at most the bundle's batch; waits for the outcomes.

        Raises `BusyError` where that takes longer than `timeout` seconds, `InputRefusedError` for a wrong shape.
        """
        ...

    def image(self, id: str) -> dict[str, Any] | None:
        """``{"id", "state", "received", "origin", "result"}`` of one run, None if there is none (any longer).

        ``state`` is received, running, done or refused; ``result`` None until the run is finished.
        """
        ...

    def results(self, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Finished results in the order of finishing, each with its cursor, from the first cursor above `after`."""
        ...

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The last runs received, newest first, each as `image` gives it."""
        ...

    def picture(self, id: str) -> Picture | None:
        """The picture of a done run; None if pictures are not kept, or not of this run."""
        ...

    def status(self) -> dict[str, Any]:
        """The live state, for the page: see `edge.daemon.Server.status`."""
        ...
