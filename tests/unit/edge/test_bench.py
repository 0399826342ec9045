"""edge.bench: each scenario on the real pipeline and ONNX Runtime, or on a backend whose pace is known."""

from __future__ import annotations

import functools
import itertools
import time

import cv2
import numpy as np
import pytest

from edge.backends import Outputs
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bench import SAMPLES_PER_QUERY, WARM_UP, run_bench
from edge.errors import InputRefusedError, MachineError, UsageError

SCENARIOS = ("single-stream", "multi-stream", "server", "offline")


class PacedBackend:
    """Takes a known time for an image, and counts what it was given."""

    name = "paced"

    def __init__(self, labels, seconds, fails_after=None):
        self.facts = {"seconds": seconds}
        self.given = []
        self._labels, self._seconds, self._fails_after = labels, seconds, fails_after

    def infer(self, images):
        if self._fails_after is not None and sum(self.given) >= self._fails_after:
            raise MachineError("the device went away: plug it in")
        time.sleep(self._seconds * len(images))
        self.given.append(len(images))
        return Outputs(np.zeros((len(images), self._labels), np.float32), None, 1.25)

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def paced(tiny_bundle):
    """Makes a backend of a known pace and what opens it."""

    def make(seconds, **options):
        backend = PacedBackend(len(tiny_bundle.labels), seconds, **options)
        return backend, lambda: backend

    return make


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(3)
    paths = []
    for index in range(3):
        path = tmp_path / f"picture{index}.png"
        assert cv2.imwrite(str(path), rng.integers(0, 256, (90, 80), dtype=np.uint8))
        paths.append(path)
    return paths


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_golden_inputs_need_no_files(tiny_bundle, scenario):
    opener = functools.partial(OnnxRuntimeBackend, tiny_bundle)
    report = run_bench(tiny_bundle, opener, scenario=scenario, duration=0.3)
    assert report["scenario"] == scenario
    assert report["counts"]["done"] > 0
    assert report["counts"]["refused"] == 0
    assert set(report["stages"]) == {"queue", "infer", "postprocess", "total"}
    assert report["bundle"]["sha256"] == tiny_bundle.sha256
    assert report["backend"]["name"] == "onnxruntime"
    assert report["settings"]["images"] == "5 golden inputs of the bundle"
    assert report["throughput"] == pytest.approx(report["counts"]["done"] / report["wall_seconds"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_files_are_decoded_too(tiny_bundle, pictures, scenario):
    opener = functools.partial(OnnxRuntimeBackend, tiny_bundle)
    report = run_bench(tiny_bundle, opener, pictures, scenario, 0.3)
    assert set(report["stages"]) == {"queue", "decode", "preprocess", "infer", "postprocess", "total"}
    means = [figures["mean"] for stage, figures in report["stages"].items() if stage != "total"]
    assert sum(means) == pytest.approx(report["stages"]["total"]["mean"], rel=1e-3)
    assert "picture0" not in str(report)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_warm_up_is_not_counted(tiny_bundle, paced, scenario):
    backend, opener = paced(0.001)
    report = run_bench(
        tiny_bundle,
        opener,
        scenario=scenario,
        duration=0.2,
        rate=200.0 if scenario == "server" else None,
        generator="own",
    )
    assert report["counts"]["done"] == sum(backend.given) - WARM_UP
    assert report["gpu_ms"]["max"] == 1.25


def test_single_stream_has_one_image_under_way(tiny_bundle, paced):
    backend, opener = paced(0.002)
    report = run_bench(tiny_bundle, opener, scenario="single-stream", duration=0.2)
    assert set(backend.given[-report["counts"]["done"] :]) == {1}


def test_a_multi_stream_query_takes_as_long_as_its_last_image(tiny_bundle, paced):
    _, opener = paced(0.002)
    report = run_bench(tiny_bundle, opener, scenario="multi-stream", duration=0.2)
    assert report["counts"]["done"] == report["query"]["count"] * SAMPLES_PER_QUERY
    assert report["query"]["max"] == report["stages"]["total"]["max"]
    # The backend alone takes 2 ms for each of the 8 images, one batch after the other.
    assert report["query"]["mean"] >= 16
    assert report["query"]["mean"] > report["stages"]["total"]["mean"]


def test_a_server_times_images_from_when_they_were_due(tiny_bundle, paced):
    """100 images/s arrive at a backend that does 50: without coordinated omission the last ones have waited long."""
    _, opener = paced(0.02)
    report = run_bench(tiny_bundle, opener, scenario="server", duration=1, rate=100.0, generator="own")
    assert report["settings"]["due"] == 100
    assert report["counts"]["done"] == report["settings"]["sent"] == 100
    # 100 images take 2 s at least, and the last one was due at about 1.2 s; the queues hold 20 images, or 0.4 s.
    assert report["stages"]["total"]["max"] > 400


@pytest.mark.parametrize("generator", ["own", "auto"])
def test_a_server_that_falls_hopelessly_behind_says_how_much_was_never_sent(tiny_bundle, paced, generator):
    _, opener = paced(0.02)
    report = run_bench(tiny_bundle, opener, scenario="server", duration=0.2, rate=1000.0, generator=generator)
    settings = report["settings"]
    due, sent = settings["due"], settings["sent"]
    assert due == 200 if generator == "own" else 100 < due < 300
    assert 0 < sent < due
    assert report["counts"]["done"] == sent
    assert any(f"{due - sent} of {due} images due were never sent" in note for note in report["notes"])


def test_a_server_without_a_rate_gets_half_of_what_the_pipeline_does(tiny_bundle, paced):
    _, opener = paced(0.004)
    report = run_bench(tiny_bundle, opener, scenario="server", duration=0.2)
    assert 0 < report["settings"]["rate"] <= 125


def test_a_server_keeps_its_target_at_the_rate_that_is_found(tiny_bundle, paced, monkeypatch):
    monkeypatch.setattr("edge.bench.TRIAL_SECONDS", 0.1)
    _, opener = paced(0.001)
    report = run_bench(tiny_bundle, opener, scenario="server", duration=0.5, target_p99_ms=200.0)
    settings = report["settings"]
    assert report["stages"]["total"]["p99"] <= 200.0 or "was met in shorter runs" in report["notes"][-1]
    assert settings["target_p99_ms"] == 200.0
    assert settings["tried"].count("/s: ") >= 7
    assert report["counts"]["done"] >= 100


def test_a_target_that_no_rate_meets_is_told(tiny_bundle, paced, monkeypatch):
    monkeypatch.setattr("edge.bench.TRIAL_SECONDS", 0.1)
    monkeypatch.setattr("edge.rate_search.STEPS", 2)
    _, opener = paced(0.002)
    with pytest.raises(MachineError, match=r"no rate meets a 99th percentile of 1 ms \(.*give a longer --target-p99"):
        run_bench(tiny_bundle, opener, scenario="server", duration=0.1, target_p99_ms=1.0)


def test_offline_keeps_the_pipeline_full(tiny_bundle, paced):
    backend, opener = paced(0.005)
    run_bench(tiny_bundle, opener, scenario="offline", duration=0.3)
    batches = backend.given[-10:-2]
    assert np.mean(batches) > tiny_bundle.batch / 2


def test_progress_is_told_in_seconds(tiny_bundle, paced):
    _, opener = paced(0.002)
    told = []
    run_bench(tiny_bundle, opener, scenario="offline", duration=1.1, progress=lambda *step: told.append(step))
    assert told[0] == ("measuring", 0, 1)
    assert told[-1] == ("measuring", 1, 1)
    assert all(before[1] <= after[1] for before, after in itertools.pairwise(told))


def test_images_that_cannot_be_used_are_counted(tiny_bundle, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    opener = functools.partial(OnnxRuntimeBackend, tiny_bundle)
    report = run_bench(tiny_bundle, opener, [bad, *pictures], "offline", 0.3)
    assert report["counts"]["refused"] > 0
    assert report["counts"]["done"] > report["counts"]["refused"]
    assert report["stages"]["total"]["count"] == report["counts"]["done"]


def test_no_usable_image_is_an_error(tiny_bundle, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    opener = functools.partial(OnnxRuntimeBackend, tiny_bundle)
    with pytest.raises(InputRefusedError, match="none of the images can be used; the first:"):
        run_bench(tiny_bundle, opener, [bad], "single-stream", 0.1)


def test_usable_images_behind_many_bad_ones_are_found(tiny_bundle, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    opener = functools.partial(OnnxRuntimeBackend, tiny_bundle)
    report = run_bench(tiny_bundle, opener, [*[bad] * (2 * WARM_UP), *pictures], "offline", 0.3)
    assert report["counts"]["done"] > 0


def test_a_backend_that_fails_ends_the_run(tiny_bundle, paced):
    _, opener = paced(0.001, fails_after=WARM_UP + 20)
    with pytest.raises(MachineError, match="the device went away"):
        run_bench(tiny_bundle, opener, scenario="offline", duration=30.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "burst"}, "is none of single-stream, multi-stream, server, offline"),
        ({"target_p99_ms": 5.0}, "is for the scenario server, not single-stream"),
        ({"scenario": "server", "target_p99_ms": 0.0}, "expected a positive number and no rate"),
        ({"scenario": "server", "target_p99_ms": 5.0, "rate": 1.0}, "expected a positive number and no rate"),
        ({"duration": 0.0}, "not a positive number of seconds"),
        ({"duration": float("nan")}, "not a positive number of seconds"),
        ({"duration": float("inf")}, "not a positive number of seconds"),
        ({"scenario": "server", "rate": 0.0}, "not a positive number of images a second"),
        ({"scenario": "offline", "rate": 5.0}, "a rate is for the scenario server, not offline"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_opened(tiny_bundle, arguments, message):
    def opener():
        raise AssertionError("must not be opened")

    with pytest.raises(UsageError, match=message):
        run_bench(tiny_bundle, opener, **arguments)
