"""Takes images in: bounds what may wait, and says of each that it is safe, or why it was not taken."""

from __future__ import annotations

from edge.config import QueueConfig
from edge.errors import BusyError, InputRefusedError, StorageFullError
from edge.ledger import Ledger
from edge.metrics import Metrics
from edge.service import Receipt
from edge.state import LiveState


class Reception:
    """In front of the ledger; used by every source, in its own threads."""

    def __init__(self, ledger: Ledger, limits: QueueConfig, metrics: Metrics, live: LiveState) -> None:
        self._ledger = ledger
        self._limits = limits
        self._metrics = metrics
        self._live = live

    def receive(
        self,
        content: bytes,
        *,
        max_bytes: int,
        origin: str,
        stat: bool,
        source: str | None,
        instance: str | None,
        key: str | None,
    ) -> Receipt:
        """See `edge.service.Service.receive`."""
        try:
            if len(content) > max_bytes:
                raise InputRefusedError(f"it has {len(content)} bytes, an image may have {max_bytes}: is it an image?")
            if not content:
                raise InputRefusedError("it is empty, expected a DICOM, PNG or JPEG image: send it again")
            self._check_queue(len(content))
            receipt = self._ledger.receive(
                content,
                origin=origin,
                stat=stat,
                source=source,
                instance=instance or _instance(content),
                key=key,
            )
        except (BusyError, StorageFullError, InputRefusedError) as error:
            self._metrics.turned_away.labels(origin, _WHY[type(error)]).inc()
            raise
        (self._metrics.received if receipt.new else self._metrics.repeated).labels(origin).inc()
        return receipt

    def _check_queue(self, size: int) -> None:
        count, total = self._ledger.waiting()
        limits = self._limits
        if count < limits.max_images and total + size <= limits.max_mb * 1_000_000:
            return
        raise BusyError(
            f"{count} images ({total // 1_000_000} MB) wait, {limits.max_images} ({limits.max_mb} MB) may: come again",
            retry_after=self._live.seconds_for(max(1, count // 4)),
        )


def _instance(content: bytes) -> str | None:
    if content[128:132] != b"DICM":
        return None
    from edge.dicom.identity import sop_instance  # a daemon that gets no DICOM loads nothing of it

    return sop_instance(content)


_WHY = {BusyError: "busy", StorageFullError: "disk full", InputRefusedError: "not an image"}
