from __future__ import annotations

import json
import math
import time
from datetime import datetime
from fractions import Fraction

import numpy as np
import pytest

from edge.results import STAGES, Timings, findings, image_result, probabilities, timestamp


def exact_sigmoid(x: float) -> float:
    """1 / (1 + e^-x) with e^-x summed in exact fractions, for small |x|."""
    power = sum(Fraction(-x) ** n / math.factorial(n) for n in range(60))
    return float(1 / (1 + power))


@pytest.mark.parametrize("x", [-8.0, -1.5, -0.25, 0.0, 0.25, 3.0, 8.0])
def test_probabilities_are_the_sigmoid(x: float) -> None:
    assert probabilities(np.array([x], np.float32))[0] == pytest.approx(exact_sigmoid(x), rel=1e-14)


def test_probabilities_of_huge_logits_neither_overflow_nor_leave_the_unit_interval() -> None:
    p = probabilities(np.array([-1e30, -800, 800, 1e30], np.float32))
    assert p.tolist() == [0.0, pytest.approx(math.exp(-800)), 1.0, 1.0]


def test_a_finding_is_positive_from_its_own_threshold_on() -> None:
    logits = np.array([0.0, 0.0, 2.0], np.float32)
    found = findings(("A", "B", "C"), {"B": 0.5001, "A": 0.5, "C": 0.9}, logits)
    assert [found[label]["positive"] for label in "ABC"] == [True, False, False]
    assert found["C"]["probability"] == pytest.approx(exact_sigmoid(2.0), abs=1e-8)


def test_findings_refuse_a_network_with_another_number_of_outputs() -> None:
    with pytest.raises(ValueError, match="zip"):
        findings(("A", "B"), {"A": 0.5, "B": 0.5}, np.zeros(3, np.float32))


def test_the_stages_add_up_to_the_total_and_waiting_is_queue() -> None:
    timings = Timings()
    with timings.stage("decode"):
        time.sleep(0.002)
    time.sleep(0.003)
    with timings.stage("infer"):
        time.sleep(0.002)
    figures = timings.milliseconds()
    assert list(figures) == ["queue", "decode", "infer", "total"]  # what did not run is absent
    assert sum(figures[name] for name in figures if name != "total") == pytest.approx(figures["total"], abs=1e-3)
    assert figures["queue"] >= 3


def test_a_stage_that_fails_is_timed_too() -> None:
    timings = Timings()
    with pytest.raises(KeyError), timings.stage("decode"):
        raise KeyError
    assert "decode" in timings.milliseconds()


def test_gpu_time_is_told_only_where_it_was_measured() -> None:
    assert "gpu" not in Timings().milliseconds()
    assert Timings(gpu_ms=1.25).milliseconds()["gpu"] == 1.25


def test_a_result_has_the_documented_keys_and_is_json() -> None:
    facts = {
        "id": "7",
        "source": "a.png",
        "sha256": "ab",
        "timings": Timings(),
        "bundle": "cd",
        "gate": "pass",
        "backend": "onnxruntime",
    }
    done = image_result(**facts, findings={"A": {"probability": 0.5, "positive": True}})
    refused = image_result(**facts, reason="it is empty")
    keys = "id source sha256 status reason findings cam guard timings_ms bundle gate backend time"
    assert " ".join(done) == " ".join(refused) == keys
    assert (done["status"], done["reason"]) == ("done", None)
    assert (refused["status"], refused["findings"]) == ("refused", None)
    assert json.loads(json.dumps(done)) == done
    assert set(done["timings_ms"]) <= set(STAGES)


def test_times_are_utc() -> None:
    offset = datetime.fromisoformat(timestamp()).utcoffset()
    assert offset is not None
    assert offset.total_seconds() == 0
