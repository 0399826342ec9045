"""A daemon of a few lines, to see what its HTTP side makes of every way in which it answers."""

from __future__ import annotations

import hashlib
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import InputRefusedError
from edge.pipeline import Outcome
from edge.service import Picture, Receipt


@dataclass
class Received:
    """One call of `FakeService.receive`."""

    content: bytes
    origin: str
    stat: bool
    instance: str | None


@dataclass
class FakeService:
    """Keeps what it is given; raises `error` once it is set; `infer` answers with sums of the pixels."""

    bundle: Bundle
    max_bytes: int = 1_000_000
    error: Exception | None = None
    is_ready: bool = True
    received: list[Received] = field(default_factory=list)
    finished: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: str | None = None
    """Why `infer` refuses every image that is black; None: it does not."""
    gate: threading.Event | None = None
    """Calls wait for it, if it is there."""

    def ready(self) -> bool:
        return self.is_ready

    def receive(
        self, content: bytes, *, origin: str, stat: bool = False, source: str | None = None, instance: str | None = None
    ) -> Receipt:
        self._maybe_raise()
        if not content:
            raise InputRefusedError("the file is empty: send an image")
        sha256 = hashlib.sha256(content).hexdigest()
        new = all(content != known.content for known in self.received)
        self.received.append(Received(content, origin, stat, instance))
        id = uuid.uuid5(uuid.NAMESPACE_OID, sha256).hex
        self.images[id] = {
            "id": id,
            "state": "received",
            "received": "2026-01-02T03:04:05.678+00:00",
            "origin": origin,
            "result": None,
        }
        return Receipt(id, sha256, new)

    def infer(self, images: NDArray[np.uint8], timeout: float) -> list[Outcome]:
        self._maybe_raise()
        return [self._outcome(image) for image in images]

    def _outcome(self, image: NDArray[np.uint8]) -> Outcome:
        if self.refused is not None and not image.any():
            return Outcome({"status": "refused", "reason": self.refused}, None, None, None)
        labels = len(self.bundle.labels)
        cam = np.full((labels, 2, 2), image.mean(), np.float32)
        logits = np.linspace(-8, 8, labels, dtype=np.float32) + np.float32(image.mean() / 255)
        return Outcome({"status": "done"}, cam, image[0], logits)

    def image(self, id: str) -> dict[str, Any] | None:
        self._maybe_raise()
        return self.images.get(id)

    def results(self, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        self._maybe_raise()
        return [entry for entry in self.finished if entry[0] > after][:limit]

    def recent(self, limit: int) -> list[dict[str, Any]]:
        return list(self.images.values())[-limit:]

    def picture(self, id: str) -> Picture | None:
        return None

    def status(self) -> dict[str, Any]:
        self._maybe_raise()
        return {"state": "serving"}

    def _maybe_raise(self) -> None:
        if self.gate is not None:
            self.gate.wait(20)
        if self.error is not None:
            raise self.error
