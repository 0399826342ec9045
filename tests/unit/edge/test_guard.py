"""The guard's image limits, its features, and its distance as a bundle holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from build_engine.bundle_writer import write_manifest
from edge.bundle import GUARD, load_bundle
from edge.errors import BundleError, InputRefusedError
from edge.guard import GUARD_VERSION, SCORE, Distance, Guard, ImageLimits, check_image, refusal
from edge.guard_features import CAM_GRID, PICTURE_GRID, feature_groups
from edge.preprocess import Preprocess, decode
from mdconv.data.phantom import render
from tests.unit.edge.dicom_writer import REAL, without_scope

Gray = NDArray[np.uint8]
LIMITS = ImageLimits()
LABELS, SIZE = 14, 64
COUNT = LABELS * (3 + CAM_GRID**2) + 2 * 5 + PICTURE_GRID**2
"""Features of one image of the tiny network: its maps are 16 x 16."""


def reason(gray: Gray, limits: ImageLimits = LIMITS) -> str | None:
    try:
        check_image(gray, limits)
    except InputRefusedError as error:
        assert "expected" in str(error) or "send" in str(error)
        return str(error)
    return None


def noisy(height: int, width: int) -> Gray:
    """A smooth picture that uses the whole range."""
    coarse = np.random.default_rng(1).integers(0, 256, (9, 9)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def framed(picture: Gray, border: int, value: int) -> Gray:
    return np.pad(picture, border, constant_values=value)


# Gray images


@pytest.mark.parametrize("seed", range(4_500_000, 4_500_012))
@pytest.mark.parametrize("size", [64, 333])
def test_phantoms_pass(seed: int, size: int) -> None:
    assert reason(render(seed, size).image) is None


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG3_UNCR.dcm", "RG3_J2KI.dcm"])
def test_real_radiographs_pass_with_their_collimation(name: str) -> None:
    """RG3 is white over 44 % of its area: it is outside the collimator. What it shows is not for these limits."""
    gray = decode(without_scope(REAL / name), Preprocess(64))
    assert reason(gray) is None
    assert reason(255 - gray) is None


@pytest.mark.parametrize(
    ("shape", "passes"),
    [((100, 200), True), ((200, 100), True), ((100, 201), False), ((201, 100), False), ((60, 400), False)],
)
def test_a_side_of_more_than_twice_the_other_is_refused(shape: tuple[int, int], passes: bool) -> None:
    found = reason(noisy(*shape))
    if passes:
        assert found is None
    else:
        assert found is not None
        assert f"the image has {shape[1]} x {shape[0]} pixels, one side more than 2 times the other" in found


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 2), (37, 41), (513, 1021)])
def test_images_of_one_value_are_refused_at_any_size(shape: tuple[int, int]) -> None:
    for value in (0, 7, 255):
        found = reason(np.full(shape, value, np.uint8))
        assert found is not None
        assert "all but empty: it has 0 gray levels" in found


@pytest.mark.parametrize(("levels", "passes"), [(8, False), (15, False), (40, True), (200, True)])
def test_too_little_contrast_is_refused(levels: int, passes: bool) -> None:
    ramp = np.tile(100 + np.arange(levels + 1) * 1.0, (300, 8)).astype(np.uint8)[:, :300]
    gray = np.asarray(cv2.resize(ramp[:, : levels + 1], (300, 300)), np.uint8)
    assert (reason(gray) is None) == passes


def test_a_few_bright_pixels_are_no_contrast() -> None:
    gray = np.random.default_rng(0).integers(100, 108, (400, 400)).astype(np.uint8)
    gray[:20, :20], gray[-20:, -20:] = 255, 0
    assert "all but empty" in str(reason(gray))


@pytest.mark.parametrize("black", [False, True])
def test_a_page_of_text_is_refused(black: bool) -> None:
    page = np.full((600, 450), 255, np.uint8)
    for row in range(30, 590, 28):
        cv2.putText(page, "the quick brown fox jumps over", (10, row), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0,), 1)
    assert reason(255 - page if black else page) is not None


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("border", [0, 40, 150, 300])
def test_a_border_of_any_width_is_not_held_against_a_picture(border: int, value: int) -> None:
    """At 300 the picture is a quarter of the area of the whole."""
    assert reason(framed(noisy(600, 500), border, value)) is None


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("border", [0, 101])
def test_a_window_that_cuts_off_the_picture_is_refused(low: bool, border: int) -> None:
    wide = noisy(601, 499).astype(int)
    cut = np.clip(wide * 3 - (510 if low else 0), 0, 255).astype(np.uint8)
    share = ((cut <= 2) | (cut >= 253)).mean()
    assert share > 0.6
    found = reason(framed(cut, border, 0 if low else 255), ImageLimits(min_entropy=0.5))
    assert found is not None
    assert f"{share:.0%} of the image's pixels, borders apart, are black or white" in found


def test_limits_are_the_ones_given() -> None:
    gray = noisy(100, 190)
    assert reason(gray) is None
    assert reason(gray, ImageLimits(max_aspect=1.5)) is not None
    assert reason(gray, ImageLimits(min_gray_range=256)) is not None
    assert reason(gray, ImageLimits(min_entropy=7.99)) is not None
    assert reason(gray, ImageLimits(max_saturated=0.0)) is not None


# Features


def test_features_by_hand() -> None:
    """Against plain loops over the fields."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (61, 61)).astype(np.uint8)
    logits, cam = rng.normal(size=3).astype(np.float32), rng.normal(size=(3, 7, 5)).astype(np.float32)
    groups = feature_groups(pixels, logits, cam)
    assert list(groups) == ["spread", "highest", "lowest", "where", "contrast", "picture"]
    np.testing.assert_allclose(groups["spread"], [m.astype(float).std() for m in cam], rtol=1e-12)
    np.testing.assert_allclose(groups["highest"], [m.max() for m in cam])
    np.testing.assert_allclose(groups["lowest"], [m.min() for m in cam])
    rows, columns = [(0, 2), (2, 4), (4, 7)], [(0, 1), (1, 3), (3, 5)]
    where = [m[a:b, c:d].mean(dtype=float) for m in cam for a, b in rows for c, d in columns]
    np.testing.assert_allclose(groups["where"], where, rtol=1e-6)
    edges = [i * 61 // 8 for i in range(9)]
    fields = [pixels[edges[i] : edges[i + 1], edges[j] : edges[j + 1]].mean() / 64 for i in range(8) for j in range(8)]
    np.testing.assert_allclose(groups["picture"], fields, rtol=1e-12)
    image, contrast = pixels.astype(float), []
    while min(image.shape) >= 4 and len(contrast) < 10:
        for steps in (image[:, 1:] - image[:, :-1], image[1:] - image[:-1]):
            contrast.append(np.log((steps**2).mean() + 0.25))
        height, width = image.shape[0] // 2, image.shape[1] // 2
        image = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(groups["contrast"], contrast, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 4, 8, 33, 448])
@pytest.mark.parametrize("maps", [None, (1, 1), (2, 3), (14, 14)])
def test_features_of_every_size_are_finite(size: int, maps: tuple[int, int] | None) -> None:
    cam = None if maps is None else np.zeros((2, *maps), np.float32)
    groups = feature_groups(np.zeros((size, size), np.uint8), np.zeros(2, np.float32), cam)
    assert ("logits" in groups) == (cam is None)
    assert all(np.isfinite(group).all() for group in groups.values())


# The distance


def test_the_distance_is_mahalanobis() -> None:
    """Against the definition, with the covariance solved for directly."""
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(6, 6))
    covariance, mean, scale = mixing @ mixing.T, rng.normal(size=6), rng.uniform(0.5, 2, 6)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    distance = Distance(mean, scale, whitening)
    for vector in rng.normal(size=(20, 6)):
        deviation = (vector - mean) / scale
        squared = deviation @ np.linalg.solve(covariance, deviation)
        assert distance(vector) == pytest.approx(np.sqrt(squared / 6), rel=1e-9)


ENTRY: dict[str, Any] = {
    "version": GUARD_VERSION,
    "score": SCORE,
    "file": GUARD,
    "threshold": 2.5,
    "reason": "",
    "image": {"max_aspect": 1.5, "min_gray_range": 20, "min_entropy": 3.0, "max_saturated": 0.5},
}


@pytest.fixture
def guarded(make_bundle: Callable[..., Path]) -> Callable[..., Path]:
    """A bundle whose guard has `arrays` (default: the distance from 0, in units of 1) and `changes` of its entry."""

    def make(arrays: dict[str, Any] | None = None, **changes: Any) -> Path:
        directory = make_bundle("guarded")
        plain = {"mean": np.zeros(COUNT), "scale": np.ones(COUNT), "whitening": np.eye(COUNT)}
        np.savez(directory / GUARD, **{**plain, **(arrays or {})})
        manifest = load_bundle(directory).manifest
        write_manifest(directory, {**manifest, "guard": {**ENTRY, **changes}})
        return directory

    return make


def outputs(value: float) -> tuple[Gray, NDArray[np.float32], NDArray[np.float32]]:
    return (
        np.zeros((SIZE, SIZE), np.uint8),
        np.zeros(LABELS, np.float32),
        np.full((LABELS, 16, 16), value, np.float32),
    )


def test_a_score_up_to_the_threshold_is_accepted(guarded: Callable[..., Path]) -> None:
    guard = Guard.from_bundle(load_bundle(guarded()))
    assert guard.limits == ImageLimits(1.5, 20, 3.0, 0.5)
    zero = guard.check(*outputs(0))
    assert zero is not None
    flat = np.sqrt(10 * np.log(0.25) ** 2 / COUNT)  # images without contrast have its logarithm
    assert zero == {"score": pytest.approx(flat, abs=1e-4), "threshold": 2.5, "refused": False, "off": False}
    assert refusal(zero) is None
    far = guard.check(*outputs(5))
    assert far is not None
    assert far["refused"]
    text = refusal(far)
    assert text is not None
    assert f"its distance is {far['score']:.2f}, expected at most 2.50" in text


def test_a_score_that_is_no_number_is_refused(guarded: Callable[..., Path]) -> None:
    guard = Guard.from_bundle(load_bundle(guarded()))
    verdict = guard.check(*outputs(float("nan")))
    assert verdict is not None
    assert verdict["refused"]


def test_without_a_threshold_the_score_is_given_and_refuses_nothing(guarded: Callable[..., Path]) -> None:
    verdict = Guard.from_bundle(load_bundle(guarded(threshold=None))).check(*outputs(1e6))
    assert verdict is not None
    assert verdict["score"] > 1e5
    assert not verdict["refused"]


def test_a_bundle_without_a_guard_has_the_limits_of_the_code(make_bundle: Callable[..., Path]) -> None:
    guard = Guard.from_bundle(load_bundle(make_bundle()))
    assert guard.limits == ImageLimits()
    assert guard.check(*outputs(1e6)) is None
    assert guard.unscored() is None
    with pytest.raises(InputRefusedError):
        guard.check_image(np.zeros((9, 9), np.uint8))


def test_a_guard_that_is_off_says_so_and_lets_everything_pass(guarded: Callable[..., Path]) -> None:
    guard = Guard.from_bundle(load_bundle(guarded()), off=True)
    guard.check_image(np.zeros((9, 900), np.uint8))
    said = {"score": None, "threshold": None, "refused": False, "off": True}
    assert guard.check(*outputs(1e6)) == guard.unscored() == said


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": GUARD_VERSION + 1}, "version"),
        ({"version": None}, "version"),
        ({"threshold": "2"}, "threshold '2', expected a number or null"),
        ({"threshold": True}, "threshold True"),
        ({"image": None}, "image limits"),
        ({"image": {**ENTRY["image"], "max_aspect": "2"}}, "image limits"),
        ({"image": {**ENTRY["image"], "more": 2}}, "image limits"),
        ({"file": None}, "a threshold and no guard.npz"),
    ],
)
def test_an_entry_that_this_version_cannot_run_is_refused(
    guarded: Callable[..., Path], changes: dict[str, Any], text: str
) -> None:
    bundle = load_bundle(guarded(**changes))
    with pytest.raises(BundleError, match=text):
        Guard.from_bundle(bundle)
    Guard.from_bundle(bundle, off=True)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mean": np.zeros((COUNT, 1))},
        {"scale": np.zeros(COUNT)},
        {"scale": np.ones(COUNT + 1)},
        {"whitening": np.eye(COUNT - 1)},
        {"mean": np.array([None, {}])},
        {"mean": np.array("text")},
    ],
)
def test_arrays_of_another_form_are_refused(guarded: Callable[..., Path], arrays: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="build the bundle anew"):
        Guard.from_bundle(load_bundle(guarded(arrays)))


def test_an_altered_file_is_refused(guarded: Callable[..., Path]) -> None:
    directory = guarded()
    content = bytearray((directory / GUARD).read_bytes())
    content[-40] ^= 1
    (directory / GUARD).write_bytes(content)
    with pytest.raises(BundleError, match="was altered"):
        load_bundle(directory)


def test_a_file_that_the_manifest_does_not_list_is_refused(guarded: Callable[..., Path]) -> None:
    directory = guarded()
    manifest = load_bundle(directory).manifest
    (directory / GUARD).unlink()
    write_manifest(directory, manifest)
    with pytest.raises(BundleError, match=r"guard\.npz is not in files"):
        Guard.from_bundle(load_bundle(directory))


def test_outputs_of_another_form_are_refused(guarded: Callable[..., Path]) -> None:
    guard = Guard.from_bundle(load_bundle(guarded()))
    pixels, logits, cam = outputs(0)
    for other in ((pixels, logits, None), (pixels, logits[:3], cam[:3])):
        with pytest.raises(BundleError, match=f"fitted on {COUNT} features"):
            guard.check(*other)


@pytest.mark.parametrize("guard", [[], "on", 1])
def test_a_manifest_whose_guard_is_no_object_is_no_manifest(make_bundle: Callable[..., Path], guard: object) -> None:
    with pytest.raises(BundleError, match="guard is"):
        load_bundle(make_bundle(guard=guard))
