"""The golden images: what every machine's self-test compares its outputs with, and how closely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.judge import portable_runner
from edge.bundle import GOLDEN, PORTABLE_MODEL

GOLDEN_IMAGES = 8
GOLDEN_LIMIT = {
    "fp32": {"max": 1e-3, "mean": 1e-4},
    "fp16": {"max": 1e-2, "mean": 1e-3},
    "int8": {"max": 0.3, "mean": 0.03},
}
"""How far probabilities may lie from float32 on the golden images for a build to be accepted at all, by precision."""


def write_golden(directory: Path, images: NDArray[np.uint8]) -> None:
    """Keep a few real inputs with the float32 outputs: what every machine's self-test compares with."""
    logits, cam = portable_runner(directory / PORTABLE_MODEL)(images)
    maps: dict[str, Any] = {} if cam is None else {"cam": cam}
    np.savez_compressed(directory / GOLDEN, images=images, logits=logits, **maps)


def golden_tolerance(precision: str, difference: Mapping[str, float]) -> dict[str, float]:
    """The self-test's tolerances on a device, from the differences that the build itself showed, each by kind.

    Another backend may round differently, so twice the difference is granted, and at least a tenth of the limit.
    """
    return {kind: min(limit, max(2 * difference[kind], limit / 10)) for kind, limit in GOLDEN_LIMIT[precision].items()}


def golden_entry(tolerance: Mapping[str, float]) -> dict[str, float]:
    """The manifest's ``golden`` of a `tolerance` by kind."""
    return {f"{kind}_probability_difference": value for kind, value in tolerance.items()}
