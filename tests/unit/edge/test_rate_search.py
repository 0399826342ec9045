from __future__ import annotations

import math

import numpy as np
import pytest

from edge.rate_search import STEPS, Trial, describe, highest_rate
from edge.statistics import nearest_rank


def queue_p99(rate: float, service_ms: float, images: int = 20_000) -> float:
    """99th percentile of the time in a queue of Poisson arrivals and one server, by Lindley's recursion."""
    gaps = np.random.default_rng(1).exponential(1e3 / rate, images)
    wait, waits = 0.0, []
    for gap in gaps:
        wait = max(0.0, wait + service_ms - gap)
        waits.append(wait + service_ms)
    return nearest_rank(sorted(waits), "99")


@pytest.mark.parametrize("target", [21.0, 40.0, 100.0, 400.0])
def test_it_finds_the_rate_of_a_queue_that_can_be_computed(target: float) -> None:
    """One server of 20 ms: 50 images a second at most. The next higher rate that was tried misses the target."""
    rate, trials = highest_rate(lambda rate: queue_p99(rate, 20.0), 50.0, target)
    assert rate is not None
    assert queue_p99(rate, 20.0) <= target
    assert queue_p99(rate + 50.0 / 2**STEPS, 20.0) > target
    assert len(trials) == STEPS


def test_a_target_below_the_service_time_is_met_by_no_rate() -> None:
    rate, trials = highest_rate(lambda rate: queue_p99(rate, 20.0), 50.0, 19.0)
    assert rate is None
    assert all(trial.p99_ms > 19.0 for trial in trials)


def test_trials_are_told_by_rate() -> None:
    assert describe([Trial(20.0, math.inf), Trial(10.0, 12.345)]) == "10/s: 12.3 ms, 20/s: fell behind"
