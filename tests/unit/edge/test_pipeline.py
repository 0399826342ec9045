from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edge.backends import Backend, Outputs
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import Bundle
from edge.errors import InputRefusedError, MachineError
from edge.pipeline import Item, Outcome, Pipeline, read_file
from edge.preprocess import Preprocess, load_image


class Recording:
    """The real backend; remembers each call's thread and batch, and can wait at a gate or fail on a chosen call."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, fail_on: int | None = None, gate: threading.Event | None = None) -> None:
        self._real = OnnxRuntimeBackend(bundle, threads=1)
        self.facts = self._real.facts
        self.threads = {threading.get_ident()}
        self.batches: list[int] = []
        self.closed = False
        self.waiting = threading.Event()
        self._fail_on = fail_on
        self._gate = gate

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        self.threads.add(threading.get_ident())
        self.batches.append(len(images))
        if self._gate is not None:
            self.waiting.set()
            assert self._gate.wait(30)
        if len(self.batches) == self._fail_on:
            raise MachineError("the device is gone: connect it")
        return self._real.infer(images)

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed = True
        self._real.close()

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Opener:
    """Opens a `Recording` and keeps it for the test to look at."""

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        self._open: Callable[[], Recording] = lambda: Recording(bundle, **options)
        self.backend: Recording | None = None
        self.opened = threading.Event()

    def __call__(self) -> Backend:
        self.backend = self._open()
        self.opened.set()
        return self.backend


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PNG files of odd sizes, smaller and larger than the network's input."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    paths = []
    for number in range(13):
        coarse = rng.integers(0, 256, (9, 11), dtype=np.uint8)
        image = cv2.resize(coarse, (45 + 29 * number, 67 + 23 * number), interpolation=cv2.INTER_CUBIC)
        paths.append(folder / f"{number}.png")
        paths[-1].write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return paths


def reference(bundle: Bundle, path: Path) -> list[float]:
    """Probabilities of a file by way of ONNX Runtime alone, image by image."""
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    pixels = load_image(path, Preprocess(bundle.input_size))
    logits = session.run(["logits"], {"image": pixels[np.newaxis, np.newaxis]})[0][0]
    return [float(1 / (1 + np.exp(-np.float64(x)))) for x in logits]


def chances(result: dict[str, Any]) -> list[float]:
    return [entry["probability"] for entry in result["findings"].values()]


@pytest.mark.parametrize("decoders", [1, 3])
def test_each_image_has_its_own_result_once_and_a_bad_one_stops_none(
    tiny_bundle: Bundle, files: list[Path], decoders: int
) -> None:
    items, expected = [], {}
    for number, path in enumerate(files):
        content = path.read_bytes()
        pixels = load_image(path, Preprocess(tiny_bundle.input_size))
        for kind, given in (("path", path), ("content", content), ("pixels", pixels)):
            items.append(Item(f"{kind} {number}", source=f"name {number}", **{kind: given}))
            expected[items[-1].id] = reference(tiny_bundle, path)
        items.append(Item(f"bad {number}", content=content[: len(content) // 2]))
    outcomes: list[Outcome] = []
    with Pipeline(tiny_bundle, Opener(tiny_bundle), outcomes.append, decoders=decoders) as pipeline:
        for item in items:
            pipeline.submit(item)
    by_id = {outcome.result["id"]: outcome for outcome in outcomes}
    assert sorted(outcome.result["id"] for outcome in outcomes) == sorted(item.id for item in items)
    for id, outcome in by_id.items():
        result = outcome.result
        assert result["bundle"] == tiny_bundle.sha256
        assert result["timings_ms"]["total"] > 0
        if id.startswith("bad"):
            assert result["status"] == "refused"
            assert result["reason"]
            assert outcome.cam is None
        else:
            assert result["status"] == "done"
            assert result["source"] == f"name {id.split()[1]}"
            assert chances(result) == pytest.approx(expected[id], abs=1e-6)
            assert outcome.cam is not None
            assert outcome.cam.shape == (14, 16, 16)
    for number, path in enumerate(files):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert by_id[f"path {number}"].result["sha256"] == by_id[f"content {number}"].result["sha256"] == digest


def test_only_the_stages_that_ran_are_timed(tiny_bundle: Bundle, files: list[Path]) -> None:
    outcomes: list[Outcome] = []
    with Pipeline(tiny_bundle, Opener(tiny_bundle), outcomes.append) as pipeline:
        pipeline.submit(Item("file", path=files[0]))
        pipeline.submit(Item("pixels", pixels=np.zeros((64, 64), np.uint8)))
        pipeline.submit(Item("bad", content=b"text"))
    timings = {outcome.result["id"]: outcome.result["timings_ms"] for outcome in outcomes}
    assert list(timings["file"]) == ["queue", "decode", "preprocess", "infer", "postprocess", "total"]
    assert list(timings["pixels"]) == ["queue", "infer", "postprocess", "total"]
    assert list(timings["bad"]) == ["queue", "decode", "total"]


def test_the_backend_lives_in_one_thread_and_is_closed(tiny_bundle: Bundle, files: list[Path]) -> None:
    opener = Opener(tiny_bundle)
    with Pipeline(tiny_bundle, opener, lambda outcome: None) as pipeline:
        assert pipeline.wait_until_open()
        assert pipeline.backend_name == "onnxruntime"
        assert pipeline.backend_facts["threads"] == 1
        pipeline.submit(Item("a", path=files[0]))
    assert opener.backend is not None
    assert opener.backend.closed
    assert len(opener.backend.threads) == 1
    assert threading.get_ident() not in opener.backend.threads


def test_images_that_wait_are_batched_up_to_the_bundles_batch(tiny_bundle: Bundle) -> None:
    gate = threading.Event()
    opener = Opener(tiny_bundle, gate=gate)
    outcomes: list[Outcome] = []
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 64, 64), dtype=np.uint8)
    with Pipeline(tiny_bundle, opener, outcomes.append, decoders=4) as pipeline:
        pipeline.submit(Item("0", pixels=images[0]))
        pipeline.wait_until_open()
        assert opener.backend is not None
        assert opener.backend.waiting.wait(30)
        for number in range(1, 8):
            pipeline.submit(Item(str(number), pixels=images[number]))
        ready = pipeline._ready
        while len(ready._items) < 7:
            time.sleep(0.001)
        gate.set()
    assert opener.backend.batches == [1, 4, 3]
    session = OnnxRuntimeBackend(tiny_bundle)
    alone = session.infer(images[:, np.newaxis])
    for outcome in outcomes:
        number = int(outcome.result["id"])
        assert outcome.cam is not None
        np.testing.assert_array_equal(outcome.cam, (alone.cam if alone.cam is not None else [])[number])


def test_the_backend_reads_an_image_where_it_was_resized(tiny_bundle: Bundle, files: list[Path]) -> None:
    """And the outcome holds the same memory: it is another for each image, so a later one cannot overwrite it."""
    seen: list[NDArray[np.uint8]] = []

    class Seeing(Recording):
        def infer(self, images: NDArray[np.uint8]) -> Outputs:
            seen.append(images)
            return super().infer(images)

    outcomes: list[Outcome] = []
    with Pipeline(tiny_bundle, lambda: Seeing(tiny_bundle), outcomes.append) as pipeline:
        for number, path in enumerate(files):
            pipeline.submit(Item(str(number), path=path))
            while len(outcomes) <= number:  # one at a time: several that wait are stacked into one array
                time.sleep(0.001)
                pipeline.check()
    assert [images.shape for images in seen] == [(1, 1, 64, 64)] * len(files)
    for images, outcome, path in zip(seen, outcomes, files, strict=True):
        assert outcome.pixels is not None
        assert np.shares_memory(images, outcome.pixels)
        np.testing.assert_array_equal(outcome.pixels, load_image(path, Preprocess(64)))
    assert not any(np.shares_memory(one, other) for one, other in itertools.combinations(seen, 2))


def test_decoding_and_results_go_on_while_an_inference_runs(tiny_bundle: Bundle) -> None:
    gate = threading.Event()
    refused = threading.Event()

    def deliver(outcome: Outcome) -> None:
        if outcome.result["status"] == "refused":
            refused.set()

    with Pipeline(tiny_bundle, Opener(tiny_bundle, gate=gate), deliver) as pipeline:
        pipeline.submit(Item("slow", pixels=np.zeros((64, 64), np.uint8)))
        pipeline.submit(Item("bad", content=b""))
        assert refused.wait(30)  # though the inference of the first still waits at the gate
        gate.set()


def test_a_slow_reader_holds_up_the_writer(tiny_bundle: Bundle) -> None:
    """However much is submitted, only so many images are in the pipeline at once: memory is bounded."""
    gate = threading.Event()
    delivered = threading.Event()
    submitted = []

    def deliver(outcome: Outcome) -> None:
        delivered.set()
        gate.wait(30)

    image = np.zeros((64, 64), np.uint8)
    pipeline = Pipeline(tiny_bundle, Opener(tiny_bundle), deliver, decoders=2)

    def submit() -> None:
        for number in range(500):
            pipeline.submit(Item(str(number), pixels=image))
            submitted.append(number)

    thread = threading.Thread(target=submit)
    thread.start()
    assert delivered.wait(30)
    before = -1
    while len(submitted) != before:  # until the pipeline is full
        before = len(submitted)
        time.sleep(0.2)
    # intake 4, with the decoders 2, ready 10, in inference 4, finished 10, with deliver 1
    assert before <= 31
    gate.set()
    thread.join(30)
    pipeline.drain()
    assert len(submitted) == 500


def test_a_failing_backend_stops_all_and_reports_nothing_twice_or_stale(tiny_bundle: Bundle) -> None:
    opener = Opener(tiny_bundle, fail_on=3)
    outcomes: list[Outcome] = []
    rng = np.random.default_rng(1)
    images = {str(number): rng.integers(0, 256, (64, 64), dtype=np.uint8) for number in range(60)}
    with (
        pytest.raises(MachineError, match="the device is gone"),
        Pipeline(tiny_bundle, opener, outcomes.append) as pipeline,
    ):
        for id, image in images.items():
            pipeline.submit(Item(id, pixels=image))
        pipeline.drain()
    assert opener.backend is not None
    assert opener.backend.closed
    ids = [outcome.result["id"] for outcome in outcomes]
    assert len(ids) == len(set(ids)) == sum(opener.backend.batches[:2])
    with OnnxRuntimeBackend(tiny_bundle) as alone:
        for outcome in outcomes:
            cam = alone.infer(images[outcome.result["id"]][np.newaxis, np.newaxis]).cam
            np.testing.assert_array_equal(outcome.cam, cam[0] if cam is not None else None)
    with pytest.raises(MachineError, match="the device is gone"):
        pipeline.submit(Item("later", pixels=images["0"]))


def test_what_was_computed_before_a_failure_is_delivered_though_its_reader_is_slow(tiny_bundle: Bundle) -> None:
    opener = Opener(tiny_bundle, fail_on=3)
    delivered: list[str] = []

    def deliver(outcome: Outcome) -> None:
        while pipeline._error is None:
            time.sleep(0.001)
        time.sleep(0.02)  # the submitter has left the block by now
        delivered.append(outcome.result["id"])

    with (
        pytest.raises(MachineError, match="the device is gone"),
        Pipeline(tiny_bundle, opener, deliver) as pipeline,
    ):
        for number in range(60):
            pipeline.submit(Item(str(number), pixels=np.zeros((64, 64), np.uint8)))
    assert opener.backend is not None
    assert len(delivered) == len(set(delivered)) == sum(opener.backend.batches[:2])


def test_a_backend_that_does_not_open_is_told_at_once(tiny_bundle: Bundle) -> None:
    def opener() -> Backend:
        raise MachineError("no such device: connect one")

    pipeline = Pipeline(tiny_bundle, opener, lambda outcome: None)
    with pytest.raises(MachineError, match="no such device"):
        pipeline.wait_until_open()
    with pytest.raises(MachineError, match="no such device"):
        pipeline.drain()


def test_an_abort_does_not_wait_for_a_backend_that_opens_for_minutes(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.pipeline.ABORT_SECONDS", 0.05)
    built = threading.Event()

    def opener() -> Backend:
        built.wait(60)  # an engine is being built
        raise MachineError("never seen")

    with Pipeline(tiny_bundle, opener, lambda outcome: None) as pipeline:
        assert not pipeline.wait_until_open(0.01)
        pipeline.abort()
        assert not built.is_set()
    built.set()
    for thread in pipeline._threads:
        thread.join(60)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_never_results(tiny_bundle: Bundle, value: float) -> None:
    class Broken(Recording):
        def infer(self, images: NDArray[np.uint8]) -> Outputs:
            outputs = super().infer(images)
            outputs.logits[-1, 3] = value
            return outputs

    outcomes: list[Outcome] = []
    pipeline = Pipeline(tiny_bundle, lambda: Broken(tiny_bundle), outcomes.append)
    pipeline.submit(Item("a", pixels=np.zeros((64, 64), np.uint8)))
    with pytest.raises(MachineError, match="no numbers"):
        pipeline.drain()
    assert outcomes == []


def test_a_failing_deliver_comes_out_of_drain(tiny_bundle: Bundle) -> None:
    def deliver(outcome: Outcome) -> None:
        raise BrokenPipeError("nobody reads")

    pipeline = Pipeline(tiny_bundle, Opener(tiny_bundle), deliver)
    with pytest.raises(BrokenPipeError):
        for number in range(1000):
            pipeline.submit(Item(str(number), pixels=np.zeros((64, 64), np.uint8)))
        pipeline.drain()
    pipeline.abort()


def test_leaving_by_an_exception_stops_and_closes(tiny_bundle: Bundle) -> None:
    opener = Opener(tiny_bundle)
    with pytest.raises(KeyboardInterrupt), Pipeline(tiny_bundle, opener, lambda outcome: None) as pipeline:
        pipeline.wait_until_open()
        for number in range(20):
            pipeline.submit(Item(str(number), pixels=np.zeros((64, 64), np.uint8)))
        raise KeyboardInterrupt
    assert opener.backend is not None
    assert opener.backend.closed


def test_a_file_that_changed_since_it_was_received_is_refused(tiny_bundle: Bundle, files: list[Path]) -> None:
    outcomes: list[Outcome] = []
    with Pipeline(tiny_bundle, Opener(tiny_bundle), outcomes.append) as pipeline:
        pipeline.submit(Item("a", path=files[0], sha256=hashlib.sha256(files[1].read_bytes()).hexdigest()))
    assert outcomes[0].result["status"] == "refused"
    assert "changed after it was received" in outcomes[0].result["reason"]


def test_reading_refuses_what_is_no_plain_file_and_never_names_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "DOE^JANE.pipe")
    (tmp_path / "DOE^JANE.large").write_bytes(b"12345")
    (tmp_path / "DOE^JANE.folder").mkdir()
    (tmp_path / "DOE^JANE.loop").symlink_to(tmp_path / "DOE^JANE.loop")
    for name, said in {
        "DOE^JANE.pipe": "not a regular file",
        "DOE^JANE.large": "has 5 bytes, an image may have 4",
        "DOE^JANE.folder": "is a folder",
        "DOE^JANE.missing": "no such file",
        "DOE^JANE.loop": "cannot be read",
    }.items():
        with pytest.raises(InputRefusedError, match=said) as refusal:
            read_file(tmp_path / name, limit=4)
        assert "DOE" not in str(refusal.value)
    (tmp_path / "small").write_bytes(b"1234")
    assert read_file(tmp_path / "small", limit=4) == b"1234"
