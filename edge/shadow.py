"""Shadow mode: a share of the images is run on the bundle's float32 model too, and what differs is counted.

The reference runs in ONNX Runtime on one core, in a thread of its own with a queue of a few images: when it is busy, an
image is skipped, and counted. A result never waits for it and never depends on it.
"""

from __future__ import annotations

import logging
import random
import threading
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends.onnxruntime import open_session
from edge.bundle import PORTABLE_MODEL, Bundle
from edge.metrics import Metrics
from edge.results import findings

log = logging.getLogger(__name__)

QUEUE = 8


class Shadow:
    """Compares with the float32 reference of one bundle, until it is closed."""

    def __init__(self, bundle: Bundle, fraction: float, metrics: Metrics, seed: int | None = None) -> None:
        """Choose each image with probability `fraction`. Raises `BundleError` if the reference cannot be loaded."""
        self._bundle = bundle
        self._fraction = fraction
        self._metrics = metrics
        self._chosen = random.Random(seed)
        self._session = open_session(bundle.directory / PORTABLE_MODEL, threads=1)
        self._queue: Queue[tuple[dict[str, Any], NDArray[np.uint8]]] = Queue(QUEUE)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, result: dict[str, Any], pixels: NDArray[np.uint8] | None) -> None:
        """Compare a done result, perhaps. Never waits."""
        if pixels is None or result["findings"] is None or self._chosen.random() >= self._fraction:
            return
        try:
            self._queue.put_nowait((result, pixels))
        except Full:
            self._metrics.shadow_skipped.inc()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._compare(*self._queue.get(timeout=1.0))
            except Empty:
                continue
            except Exception:  # it only watches: whatever is wrong with it must not stop the daemon
                log.exception("the float32 reference failed: images go on without it")
                return

    def _compare(self, result: dict[str, Any], pixels: NDArray[np.uint8]) -> None:
        name = self._session.get_inputs()[0].name
        (logits,) = self._session.run(["logits"], {name: pixels[np.newaxis, np.newaxis]})
        reference = findings(self._bundle.labels, self._bundle.thresholds, logits[0])
        found = result["findings"]
        difference = max(abs(found[label]["probability"] - entry["probability"]) for label, entry in reference.items())
        changed = sum(found[label]["positive"] != entry["positive"] for label, entry in reference.items())
        self._metrics.shadowed.inc()
        self._metrics.shadow_difference.observe(difference)
        self._metrics.shadow_changed.inc(changed)
