"""What is turned away is told, but not at every time."""

from __future__ import annotations

import logging

import pytest

from edge.refusals import Refusals

log = logging.getLogger("test_refusals")


def test_a_flood_gives_one_line_a_second_and_a_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """1000 refusals in ten seconds, with one of another kind amid them."""
    clock = [100.0]
    monkeypatch.setattr("edge.refusals.time.monotonic", lambda: clock[0])
    refusals = Refusals(log)
    for i in range(1000):
        refusals.tell("door", "refused from %s", "10.0.0.1")
        if i == 500:
            refusals.tell("other", "rejected")
        clock[0] += 1 / 100
    doors = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert doors[0] == "refused from 10.0.0.1"
    assert 10 <= len(doors) <= 11
    counted = [int(line.split("(and ")[1].split()[0]) for line in doors[1:]]
    assert set(counted) <= {98, 99, 100}
    assert [record.getMessage() for record in caplog.records].count("rejected") == 1
    assert {record.levelname for record in caplog.records} == {"WARNING"}
