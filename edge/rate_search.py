"""The highest rate of images at which a server keeps its latency, as MLPerf Inference's server scenario asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

STEPS = 7
"""Halvings: the rate is found to within 1/128 of what the pipeline does at most."""


class Trial(NamedTuple):
    """One rate that was tried."""

    rate: float
    """Images a second."""
    p99_ms: float
    """Infinite where the pipeline fell so far behind that not all images were sent."""


def highest_rate(run: Callable[[float], float], most: float, target_ms: float) -> tuple[float | None, list[Trial]]:
    """The highest rate between 0 and `most` whose 99th percentile is at most `target_ms`, by bisection.

    `run` runs a rate (images a second) and returns its 99th percentile in milliseconds, which is taken to grow with the
    rate. None if no rate that was tried meets the target. The trials come in the order in which they were run.
    """
    met, missed, trials = 0.0, most, list[Trial]()
    for _ in range(STEPS):
        rate = (met + missed) / 2
        trials.append(Trial(rate, run(rate)))
        if trials[-1].p99_ms <= target_ms:
            met = rate
        else:
            missed = rate
    return met or None, trials


def describe(trials: list[Trial]) -> str:
    """The trials as a person reads them, in the order of their rates."""
    return ", ".join(
        f"{trial.rate:.3g}/s: " + (f"{trial.p99_ms:.3g} ms" if math.isfinite(trial.p99_ms) else "fell behind")
        for trial in sorted(trials)
    )
