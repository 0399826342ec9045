"""Fitting the guard: the statistics against independent references, and a bundle from its images to its refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from build_engine.bundle_writer import write_manifest
from build_engine.guard_fit import (
    FOLDS,
    MEASURABLE,
    Features,
    choose_threshold,
    fit,
    fit_guard,
    ledoit_wolf,
    left_out_distances,
    upper_limit,
)
from build_engine.images import Calibration
from calibration.dataset import from_folder
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import GUARD, PORTABLE_MODEL, Bundle, load_bundle, sha256_of
from edge.guard import Guard
from edge.guard_features import feature_groups
from edge.passport import passport, render
from edge.pipeline import Item, Outcome, Pipeline
from edge.preprocess import Preprocess

SIZE = 64
RNG = np.random.default_rng


def drawn(count: int, size: int, seed: int = 0) -> NDArray[np.float64]:
    """Correlated vectors (N, P)."""
    rng = RNG(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)


# Statistics


@pytest.mark.parametrize(("count", "size"), [(2, 5), (12, 7), (40, 40), (30, 90), (500, 6)])
def test_ledoit_and_wolf_by_their_definition(count: int, size: int) -> None:
    """Lemma 3.2 to theorem 3.2 of the paper, term by term, with its norm |A|^2 = tr(A A') / p."""
    centred = drawn(count, size)
    centred -= centred.mean(axis=0)
    sample = sum(np.outer(x, x) for x in centred) / count
    mean = np.trace(sample) / size
    d2 = np.square(sample - mean * np.eye(size)).sum() / size
    b2 = min(sum(np.square(np.outer(x, x) - sample).sum() / size for x in centred) / count**2, d2)
    expected = b2 / d2 * mean * np.eye(size) + (d2 - b2) / d2 * sample
    covariance, shrinkage = ledoit_wolf(centred)
    assert shrinkage == pytest.approx(b2 / d2, abs=2e-6)
    np.testing.assert_allclose(covariance, expected, rtol=1e-5, atol=1e-5 * mean)


def test_ledoit_and_wolf_shrinks_less_the_more_it_has_seen() -> None:
    shrunk = [ledoit_wolf(RNG(1).normal(size=(count, 20)) * np.arange(1, 21))[1] for count in (10, 100, 1000, 10000)]
    assert shrunk == sorted(shrunk, reverse=True)
    assert shrunk[-1] < 0.01


def test_vectors_that_are_all_one_leave_the_identity() -> None:
    covariance, shrinkage = ledoit_wolf(np.zeros((9, 4)))
    assert (covariance == np.eye(4)).all()
    assert shrinkage == 1


@pytest.mark.parametrize(("count", "size"), [(9, 30), (100, 30)])
def test_the_fitted_distance_is_mahalanobis(count: int, size: int) -> None:
    """By solving for the shrunk covariance of the scaled vectors, without a factor of it."""
    features = Features(drawn(count, size), (size,))
    distance, _ = fit(features)
    scaled = (features.values - features.values.mean(axis=0)) / distance.scale
    covariance, _ = ledoit_wolf(scaled)
    for vector in drawn(10, size, seed=5):
        deviation = (vector - features.values.mean(axis=0)) / distance.scale
        expected = math.sqrt(deviation @ np.linalg.solve(covariance, deviation) / size)
        assert distance(vector) == pytest.approx(expected, rel=1e-6)


def test_the_distance_does_not_depend_on_the_features_units() -> None:
    values, units = drawn(60, 8), np.array([1e-1, 1, 10, 1e2, 1e3, 1, 1, 5])
    plain, _ = fit(Features(values, (1,) * 8))
    other, _ = fit(Features(values * units, (1,) * 8))
    for vector in drawn(10, 8, seed=2):
        assert other(vector * units) == pytest.approx(plain(vector), rel=1e-9)


def test_a_feature_that_is_all_but_constant_is_scaled_by_its_group() -> None:
    values = RNG(3).normal(size=(50, 6))
    values[:, 4] = 7.0
    distance, _ = fit(Features(values, (3, 3)))
    assert distance.scale[4] == pytest.approx(0.1 * np.median(values[:, 3:].std(axis=0)))
    np.testing.assert_allclose(np.delete(distance.scale, 4), np.delete(values.std(axis=0), 4))
    constant, _ = fit(Features(np.ones((50, 6)), (3, 3)))
    assert np.isfinite(constant(np.zeros(6)))


def test_images_left_out_are_scored_by_a_fit_on_the_others() -> None:
    features = Features(drawn(19, 5), (5,))
    found = left_out_distances(features)
    for index in range(19):
        others = [i for i in range(19) if i % FOLDS != index % FOLDS]
        distance, _ = fit(Features(features.values[others], (5,)))
        assert found[index] == pytest.approx(distance(features.values[index]), rel=1e-9)
    inside, _ = fit(features)
    assert found.mean() > np.mean([inside(vector) for vector in features.values])


def test_the_threshold_is_four_deviations_of_the_logarithms() -> None:
    assert choose_threshold(np.exp(np.array([-1.0, 1.0, -1.0, 1.0]))) == pytest.approx(math.exp(4 * math.sqrt(4 / 3)))


@pytest.mark.parametrize(
    ("refused", "count", "limit"),
    # The solution of the binomial tail of at most `refused` being 5 %: in closed form for none, else from tables.
    [(0, 128, 1 - 0.05 ** (1 / 128)), (0, 10, 1 - 0.05**0.1), (1, 10, 0.3942), (5, 100, 0.1023), (10, 10, 1.0)],
)
def test_clopper_and_pearsons_limit(refused: int, count: int, limit: float) -> None:
    assert upper_limit(refused, count) == pytest.approx(limit, abs=1e-4)


def test_that_limit_of_many_images_is_finite() -> None:
    assert 0.05 < upper_limit(500, 10_000) < 0.06


# From images to refusals


def blob(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A bright disc on a dark ground with some noise: this test's kind of radiograph."""
    picture = np.full((SIZE, SIZE), rng.uniform(30, 60))
    centre = tuple(int(c) for c in rng.integers(26, 38, 2))
    cv2.circle(picture, centre, int(rng.integers(12, 18)), rng.uniform(150, 200), -1)
    return np.clip(cv2.GaussianBlur(picture, (0, 0), 2) + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def write_blobs(folder: Path, count: int, seed: int = 0) -> list[Path]:
    folder.mkdir()
    rng = RNG(seed)
    paths = [folder / f"{number:04}.png" for number in range(count)]
    for path in paths:
        path.write_bytes(cv2.imencode(".png", blob(rng))[1].tobytes())
    return paths


@pytest.fixture
def build(make_bundle: Callable[..., Path], tmp_path: Path) -> Callable[..., Bundle]:
    """A tiny bundle with a guard fitted on so many blobs."""

    def make(count: int, *, cam: bool = True) -> Bundle:
        directory = make_bundle(f"blobs-{count}", size=SIZE)
        if not cam:
            model = onnx.load(directory / PORTABLE_MODEL)
            del model.graph.output[1]
            onnx.save(model, directory / PORTABLE_MODEL)
            manifest = read_facts(directory)
            write_manifest(directory, {**manifest, "model": {**manifest["model"], "cam": False}})
        write_blobs(tmp_path / f"blobs-{count}", count)
        images = from_folder(tmp_path / f"blobs-{count}", count, Preprocess(SIZE))
        bundle = load_bundle(directory)
        entry = fit_guard(bundle, Calibration(images, "blobs"))
        write_manifest(directory, {**bundle.manifest, "guard": entry})
        return load_bundle(directory)

    return make


def read_facts(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
    return found


def run(bundle: Bundle, images: list[NDArray[np.uint8]], **options: Any) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with Pipeline(bundle, lambda: OnnxRuntimeBackend(bundle, 1), outcomes.append, **options) as pipeline:
        for number, image in enumerate(images):
            content = cv2.imencode(".png", image)[1].tobytes()
            pipeline.submit(Item(f"{number}", content=content))
    return sorted(outcomes, key=lambda outcome: int(outcome.result["id"]))


@pytest.mark.parametrize("cam", [True, False])
def test_a_bundle_refuses_what_it_was_not_calibrated_on(
    build: Callable[..., Bundle], capsys: pytest.CaptureFixture[str], cam: bool
) -> None:
    bundle = build(80, cam=cam)
    guard = bundle.manifest["guard"]
    assert GUARD in bundle.manifest["files"]
    assert guard["fitted_on"]["images"] == 80
    assert guard["fitted_on"]["origin"] == "blobs"
    assert guard["false_refusals"]["of"] == 80
    assert 0 <= guard["false_refusals"]["refused"] <= 2
    assert f"up to {guard['threshold']:.2f} are accepted" in capsys.readouterr().err

    rng = RNG(99)
    own = [blob(rng) for _ in range(60)]
    foreign = [255 - own[0], np.roll(own[1], 30, axis=0), cv2.GaussianBlur(own[2], (0, 0), 5)]
    foreign += [rng.integers(0, 256, (SIZE, SIZE)).astype(np.uint8)]
    outcomes = run(bundle, own + foreign)
    accepted, refused = outcomes[:60], outcomes[60:]
    assert sum(outcome.result["status"] == "refused" for outcome in accepted) <= 1
    for outcome in refused:
        result = outcome.result
        assert result["status"] == "refused"
        assert "unlike those that the guard was fitted on" in result["reason"]
        assert result["findings"] is None
        assert result["guard"]["score"] > result["guard"]["threshold"] == guard["threshold"]
        assert result["guard"]["refused"]
        assert outcome.pixels is outcome.cam is outcome.logits is None
    for outcome in accepted:
        if outcome.result["status"] == "done":
            assert outcome.result["guard"]["score"] <= guard["threshold"]
            assert outcome.pixels is not None

    for outcome in run(bundle, foreign, guard=False):
        assert outcome.result["status"] == "done"
        assert outcome.result["guard"] == {"score": None, "threshold": None, "refused": False, "off": True}


def test_the_limits_of_a_gray_image_come_before_the_network(build: Callable[..., Bundle]) -> None:
    bundle = build(10)
    (outcome,) = run(bundle, [np.full((40, 40), 9, np.uint8)])
    assert outcome.result["status"] == "refused"
    assert "all but empty" in outcome.result["reason"]
    assert outcome.result["guard"] is None
    assert "infer" not in outcome.result["timings_ms"]
    (unguarded,) = run(bundle, [np.full((40, 40), 9, np.uint8)], guard=False)
    assert unguarded.result["status"] == "done"
    assert unguarded.result["guard"]["off"]


@pytest.mark.parametrize("count", [FOLDS, 16, MEASURABLE - 1])
def test_few_images_give_a_score_that_refuses_nothing_and_say_so(
    build: Callable[..., Bundle], capsys: pytest.CaptureFixture[str], count: int
) -> None:
    bundle = build(count)
    guard = bundle.manifest["guard"]
    assert guard["threshold"] is None
    assert f"{count} images are too few to measure a threshold on" in guard["reason"]
    assert guard["reason"] in capsys.readouterr().err
    rng = RNG(5)
    own, foreign = run(bundle, [blob(rng), rng.integers(0, 256, (SIZE, SIZE)).astype(np.uint8)])
    assert own.result["status"] == foreign.result["status"] == "done"
    assert own.result["guard"]["score"] < foreign.result["guard"]["score"]
    assert guard["reason"] in " ".join(render(passport(bundle)).split())


def test_fewer_images_give_no_score(build: Callable[..., Bundle]) -> None:
    bundle = build(FOLDS - 1)
    assert bundle.manifest["guard"]["file"] is None
    assert GUARD not in bundle.manifest["files"]
    assert "too few to fit" in bundle.manifest["guard"]["reason"]
    assert run(bundle, [blob(RNG(1))])[0].result["guard"] is None


def test_without_images_of_its_own_there_is_no_score(tiny_bundle: Bundle) -> None:
    entry = fit_guard(tiny_bundle, None)
    assert entry["file"] is entry["threshold"] is None
    assert "no --calibration-data" in entry["reason"]


def test_one_set_of_images_gives_one_guard(build: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = build(20)
    before = sha256_of(bundle.directory / GUARD)
    images = from_folder(tmp_path / "blobs-20", 20, Preprocess(SIZE))
    assert fit_guard(bundle, Calibration(images, "blobs")) == bundle.manifest["guard"]
    assert sha256_of(bundle.directory / GUARD) == before


def test_the_passport_puts_the_guard_into_words(build: Callable[..., Bundle], tiny_bundle: Bundle) -> None:
    bundle = build(70)
    guard = bundle.manifest["guard"]
    words = " ".join(render(passport(bundle)).split())
    assert f"Guard refuses an image whose Mahalanobis distance is above {guard['threshold']:.2f}: 4 standard" in words
    assert "fitted on 70 images (blobs), digest" in words
    assert "of 70 such images left out of the fit" in words
    assert "limits of a gray image: max_aspect 2.0" in words
    assert "Guard no distance is measured" in " ".join(render(passport(tiny_bundle)).split())


def test_the_file_is_read_as_it_was_fitted(build: Callable[..., Bundle], tmp_path: Path) -> None:
    """Against a fit in memory: the file keeps float32."""
    bundle = build(30)
    guard = Guard.from_bundle(bundle)
    vectors, rng = [], RNG(8)
    with OnnxRuntimeBackend(bundle, 1) as backend:

        def groups(image: NDArray[np.uint8]) -> tuple[dict[str, Any], dict[str, Any]]:
            found = backend.infer(image)
            assert found.cam is not None
            verdict = guard.check(image[0, 0], found.logits[0], found.cam[0])
            assert verdict is not None
            return dict(feature_groups(image[0, 0], found.logits[0], found.cam[0])), verdict

        for image in from_folder(tmp_path / "blobs-30", 30, Preprocess(SIZE)):
            features, _ = groups(image)
            vectors.append(np.concatenate(list(features.values())))
        distance, _ = fit(Features(np.stack(vectors), tuple(len(group) for group in features.values())))
        for _ in range(5):
            features, verdict = groups(blob(rng)[None, None])
            assert verdict["score"] == pytest.approx(distance(np.concatenate(list(features.values()))), abs=1e-3)
