"""Interleaved timing, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.errors import MachineError
from edge.interleaved import Timing, time_interleaved

IMAGES = np.zeros((2, 1, 4, 4), np.uint8)


class Machine:
    """A clock that only inference moves, and a record of what was done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.open: set[str] = set()

    def clock(self) -> float:
        return self.now


class TimedBackend:
    """Takes the next of `seconds`, over and over, for an inference."""

    facts: dict[str, Any] = {}  # noqa: RUF012  (the protocol has an instance's)

    def __init__(self, machine: Machine, name: str, seconds: list[float]) -> None:
        self.machine, self.name, self.seconds = machine, name, seconds
        self.calls = 0

    def infer(self, images: np.ndarray[Any, Any]) -> Any:
        assert images is IMAGES
        assert self.machine.open == {self.name}
        self.machine.now += self.seconds[self.calls % len(self.seconds)]
        self.calls += 1

    def close(self) -> None: ...

    def __enter__(self) -> TimedBackend:
        assert not self.machine.open, "two at a time would share the device"
        self.machine.open.add(self.name)
        self.machine.log.append(self.name)
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.open.remove(self.name)


def test_rounds_alternate_and_warm_up_does_not_count() -> None:
    machine = Machine()
    seconds = {"a": [9.0, 9.0, 0.010, 0.011, 0.012], "b": [9.0, 9.0, 0.020, 0.020, 0.080]}
    openers = {name: lambda name=name: TimedBackend(machine, name, seconds[name]) for name in seconds}
    timings = time_interleaved(openers, IMAGES, rounds=3, runs=3, warm_up=2, clock=machine.clock)
    assert machine.log == ["a", "b", "b", "a", "a", "b"]
    assert timings["a"] == Timing(*map(pytest.approx, (11, 10, 12)), 9)
    assert timings["b"] == Timing(*map(pytest.approx, (20, 20, 80)), 9)


def test_what_fails_is_closed_and_told() -> None:
    machine = Machine()

    class Failing(TimedBackend):
        def infer(self, images: np.ndarray[Any, Any]) -> Any:
            raise MachineError("the device is gone")

    with pytest.raises(MachineError, match="the device is gone"):
        time_interleaved({"a": lambda: Failing(machine, "a", [1.0])}, IMAGES)
    assert not machine.open
