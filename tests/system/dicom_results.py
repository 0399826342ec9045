"""Results and their deliveries, as the tests of the sinks need them."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle import Bundle
from edge.results import Timings, findings, image_result
from edge.service import Picture
from edge.sinks import Delivery


def result_of(bundle: Bundle, content: bytes | None, *, seed: int = 3, reason: str | None = None) -> dict[str, Any]:
    """What the daemon would say of `content`, with logits made up from `seed`."""
    logits = np.random.default_rng(seed).normal(0, 2, len(bundle.labels))
    return image_result(
        id=uuid.UUID(int=seed + 1).hex,
        source=None,
        sha256=None if content is None else hashlib.sha256(content).hexdigest(),
        timings=Timings(),
        bundle=bundle.sha256,
        gate=bundle.gate_verdict,
        backend="onnxruntime",
        findings=None if reason else findings(bundle.labels, bundle.thresholds, logits),
        reason=reason,
    )


def delivery_of(
    bundle: Bundle, content: bytes | Path | None, *, seed: int = 3, reason: str | None = None, pictured: bool = True
) -> Delivery:
    """One delivery, with a map whose peak lies in the top left corner."""
    data = content.read_bytes() if isinstance(content, Path) else content
    cam = np.zeros((len(bundle.labels), 16, 16), np.float32)
    cam[:, :4, :4] = 5.0
    picture = Picture(np.full((64, 64), 100, np.uint8), cam, bundle.labels)
    return Delivery(
        result=result_of(bundle, data, seed=seed, reason=reason),
        content=data,
        picture=picture if pictured and reason is None else None,
        bundle=bundle,
        attempt=1,
    )
