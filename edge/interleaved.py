"""Times several bundles against each other so that what changes meanwhile (clocks, other load) hits them all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.backends import Backend
from edge.statistics import nearest_rank

ROUNDS = 5
RUNS = 8
"""Timed inferences of a bundle in a round."""
WARM_UP = 2
"""Inferences before them."""


class Timing(NamedTuple):
    """Milliseconds of one inference, from call to result: nearest-rank percentiles over all rounds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


def time_interleaved(
    openers: Mapping[str, Callable[[], Backend]],
    images: NDArray[np.uint8],
    *,
    rounds: int = ROUNDS,
    runs: int = RUNS,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the backends that `openers` open, by name, on the batch `images` (N, 1, H, W) uint8.

    Each round opens one after the other, in every second round in reverse, and closes it before the next: no two share
    the device. `clock` returns seconds. Raises what opening and running a backend raises.
    """
    samples: dict[str, list[float]] = {name: [] for name in openers}
    for number in range(rounds):
        for name in list(openers)[:: -1 if number % 2 else 1]:
            with openers[name]() as backend:
                for _ in range(warm_up):
                    backend.infer(images)
                for _ in range(runs):
                    start = clock()
                    backend.infer(images)
                    samples[name].append((clock() - start) * 1e3)
    return {name: _timing(sorted(values)) for name, values in samples.items()}


def _timing(ordered: list[float]) -> Timing:
    median, low, high = (nearest_rank(ordered, percentile) for percentile in ("50", "10", "90"))
    return Timing(median, low, high, len(ordered))
