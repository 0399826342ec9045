"""edge.bench_against: the statistic on simulated latencies whose ratio is known, and real runs of two bundles."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from edge.backends import Outputs
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bench_against import IMAGES, OPENINGS, Four, in_words, judge, log_ratios, run_against
from edge.bundle import load_bundle
from edge.errors import InputRefusedError, MachineError, UsageError
from edge.intervals import Interval, of_groups

MARGIN = 0.03


def simulated(seed, ratio, openings, fours=8):
    """Latencies of a noisy machine: a slow drift, spikes, bursts of other load, and each opening's own luck."""
    rng = np.random.default_rng(seed)
    found, now = [], 0.0
    for _ in range(openings):
        luck = {"a": math.exp(rng.normal(0, 0.012)), "b": ratio * math.exp(rng.normal(0, 0.012))}
        opening = []
        for _ in range(fours):
            blocks = {"a": [], "b": []}
            for name in ("abba", "baab")[rng.integers(2)]:
                speed = 5 * (1 + 0.2 * math.sin(now / 7)) * (1.5 if rng.random() < 0.05 else 1.0)
                times = speed * luck[name] * np.exp(rng.gamma(2, 0.01, IMAGES))
                times[rng.random(IMAGES) < 0.05] *= 4
                blocks[name].append({"total": times.tolist(), "infer": (0.8 * times).tolist()})
                now += 0.05
            opening.append(Four(blocks))
        found.append(opening)
    return found


def finding(seed, ratio, openings=30):
    interval = of_groups(log_ratios(simulated(seed, ratio, openings), "total"))
    return judge(interval, MARGIN), interval


@pytest.mark.parametrize("seed", range(20))
def test_the_same_is_no_difference_and_ten_per_cent_are_seen(seed):
    assert finding(seed, 1.0)[0] == "no difference"
    assert finding(seed, 1.10)[0] == "slower"
    assert finding(seed, 1 / 1.10)[0] == "faster"


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    held = 0
    for seed in range(100):
        _, interval = finding(seed, 1.05, openings=12)
        held += interval.low <= 1.05 <= interval.high
    assert held >= 88  # 95 are 95 %


def test_what_an_opening_brings_is_not_taken_for_certainty_by_measuring_it_longer():
    """Ten openings of 40 comparisons: their luck, 1.2 % of each side, stays in the interval."""
    interval = of_groups(log_ratios(simulated(3, 1.0, OPENINGS, fours=40), "total"))
    assert math.log(interval.high / interval.low) / 2 > 0.012 * math.sqrt(2 / OPENINGS)


def test_a_steady_drift_falls_out_of_four_blocks():
    def block(start):
        return {"total": [start] * IMAGES}

    for order in ("abba", "baab"):
        blocks = {"a": [], "b": []}
        for step, name in enumerate(order):
            blocks[name].append(block(math.exp(0.3 * step) * (1.1 if name == "b" else 1.0)))
        assert Four(blocks).log_ratio("total") == pytest.approx(math.log(1.1))


def test_a_four_without_a_time_has_no_ratio():
    times = {"total": [1.0]}
    assert Four({"a": [times, times], "b": [times, {}]}).log_ratio("total") is None
    assert Four({"a": [times, times], "b": [times, {"total": [0.0]}]}).log_ratio("total") is None
    found = log_ratios([[], [Four({"a": [times, times], "b": [times, times]})]], "total")
    assert [ratios.tolist() for ratios in found] == [[], [0.0]]


@pytest.mark.parametrize(
    ("interval", "expected", "words"),
    [
        (None, "undecided", "too few blocks"),
        (
            Interval(1.001, 0.99, 1.02),
            "no difference",
            "B takes 1.001 times as long as A (95 % interval 0.990 to 1.020)",
        ),
        (Interval(1.015, 1.01, 1.02), "no difference", "within the 3 % that matter"),
        (Interval(1.10, 1.08, 1.12), "slower", "B is slower by 10.0 % (95 % interval 8.0 to 12.0 %)."),
        (Interval(1.025, 1.005, 1.045), "slower", "It may be less than the 3 % that matter."),
        (Interval(0.9, 0.88, 0.92), "faster", "B is faster by 10.0 % (95 % interval 8.0 to 12.0 %)."),
        (Interval(0.98, 0.962, 0.999), "faster", "It may be less than the 3 % that matter."),
        (Interval(1.02, 0.98, 1.06), "undecided", "a difference beyond the 3 % that matter is not ruled out"),
        (Interval(1.0, 0.96, 1.02), "undecided", "Give a longer --duration."),
    ],
)
def test_the_verdict_is_of_the_whole_interval(interval, expected, words):
    assert judge(interval, MARGIN) == expected
    assert words in in_words(expected, interval, MARGIN)


# Real runs


class CountingBackend:
    """Answers at once, and counts what it was given."""

    def __init__(self, name, labels, log, fails_after=None):
        self.name, self.facts = name, {"threads": 1, "chosen_because": name}
        self._labels, self._log, self._fails_after = labels, log, fails_after
        log.append(f"open {name}")

    def infer(self, images):
        self._log += [self.name] * len(images)
        if self._fails_after is not None and self._log.count(self.name) > self._fails_after:
            raise MachineError("the device went away: plug it in")
        return Outputs(np.zeros((len(images), self._labels), np.float32), None, 0.5)

    def close(self):
        self._log.append(f"close {self.name}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def counting(tiny_bundle):
    """What the two sides of a run are, with the log of what was called."""
    log = []

    def make(**fails_after):
        return [
            (tiny_bundle, functools.partial(CountingBackend, n, len(tiny_bundle.labels), log, fails_after.get(n)))
            for n in ("first", "second")
        ], log

    return make


def test_both_take_turns_and_are_opened_anew(counting):
    (a, b), log = counting()
    found = run_against(a, b, duration=0.05, margin=0.9)
    opened = [entry.split()[1] for entry in log if entry.startswith("open")]
    assert len(opened) >= 2 * OPENINGS
    assert all({*pair} == {"first", "second"} for pair in zip(opened[::2], opened[1::2]))
    assert {*opened[::2]} == {"first", "second"}, "the lot decides which is opened first"
    assert [entry for entry in log if entry.startswith("close")].count("close first") == opened.count("first")
    assert log.count("first") == log.count("second")
    assert len(found["log_ratios"]) == len(opened) // 2


def test_a_real_run_has_all_that_a_comparison_needs(tiny_bundle):
    opener = functools.partial(OnnxRuntimeBackend, tiny_bundle)
    told = []
    found = run_against(
        (tiny_bundle, opener), (tiny_bundle, opener), duration=0.3, margin=0.5, progress=lambda *step: told.append(step)
    )
    assert found["paired"] is True
    assert found["finding"] in ("no difference", "slower", "faster", "undecided")
    assert [row["what"] for row in found["rows"]] == ["total, p50", "queue, p50", "infer, p50", "postprocess, p50"]
    for row in found["rows"]:
        assert row["low"] <= row["ratio"] <= row["high"]
    assert found["warnings"] == []
    assert found["a"] == found["b"]
    assert found["a"]["bundle"]["sha256"] == tiny_bundle.sha256
    assert found["taints"]
    assert told[-1][0] == "measuring"
    assert f"opened {len(found['log_ratios'])} times" in found["notes"][0]


def test_what_differs_between_the_bundles_is_said(tiny_bundle, make_bundle):
    other = load_bundle(make_bundle("other", size=32, gate={"verdict": "pass"}))
    sides = [(bundle, functools.partial(OnnxRuntimeBackend, bundle)) for bundle in (tiny_bundle, other)]
    found = run_against(*sides, duration=0.05, margin=0.9)
    assert found["warnings"] == ["bundle differs: input size: 64 against 32; gate: not assessed against pass"]


def test_a_backend_that_fails_ends_the_run(counting):
    (a, b), log = counting(second=60)
    with pytest.raises(MachineError, match="the device went away"):
        run_against(a, b, duration=30.0)
    assert log.count("close first") == sum(entry == "open first" for entry in log)


def test_images_that_none_can_use_are_refused(tiny_bundle, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    opener = functools.partial(OnnxRuntimeBackend, tiny_bundle)
    with pytest.raises(InputRefusedError, match="none of the images can be used"):
        run_against((tiny_bundle, opener), (tiny_bundle, opener), [bad], 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"duration": 0.0}, "not a positive number of seconds"),
        ({"duration": float("inf")}, "not a positive number of seconds"),
        ({"margin": 0.0}, "a margin of 0 % is not between 0 and 100"),
        ({"margin": 1.0}, "a margin of 100 % is not between"),
        ({"margin": float("nan")}, "a margin of nan % is not between"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_opened(counting, arguments, message):
    (a, b), log = counting()
    with pytest.raises(UsageError, match=message):
        run_against(a, b, **arguments)
    assert log == []
