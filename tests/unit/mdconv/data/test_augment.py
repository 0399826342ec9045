"""Augmentation against plain steps: crop, mirroring, rotation, and how they are drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mdconv.data.augment import DEGREES, augment, source_size, warp
from mdconv.data.phantom import render


def noise(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (side, side), dtype=np.uint8)


def test_sizes_are_the_paper_s() -> None:
    assert {size: source_size(size) for size in (448, 224)} == {448: 512, 224: 256}
    assert all(source_size(size) >= size for size in range(1, 600))


@pytest.mark.parametrize(
    ("side", "size", "left", "top"), [(512, 448, 17, 64), (146, 128, 0, 0), (37, 32, 5, 2), (32, 32, 0, 0)]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_without_rotation_it_is_a_slice(side: int, size: int, left: int, top: int, mirrored: bool) -> None:
    image = noise(side)
    crop = image[top : top + size, left : left + size]
    np.testing.assert_array_equal(warp(image, size, 0.0, left, top, mirrored), crop[:, ::-1] if mirrored else crop)


@pytest.mark.parametrize("degrees", [-10.0, -3.3, 7.0, 10.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_equals_rotating_cropping_and_mirroring_one_after_the_other(degrees: float, mirrored: bool) -> None:
    image = cv2.GaussianBlur(render(3, 146).image, (5, 5), 0)
    # OpenCV's own matrix counts degrees anticlockwise as seen.
    matrix = cv2.getRotationMatrix2D((72.5, 72.5), -degrees, 1.0)
    turned = cv2.warpAffine(image, matrix, (146, 146), flags=cv2.INTER_LINEAR)[9 : 9 + 128, 4 : 4 + 128]
    expected = turned[:, ::-1] if mirrored else turned
    found = warp(np.asarray(image, np.uint8), 128, np.deg2rad(degrees), 4, 9, mirrored)
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 3  # OpenCV rounds positions to 1/32 pixel, not to the same one
    assert difference.mean() < 0.2


@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_maps_a_known_point(mirrored: bool) -> None:
    y, x = np.mgrid[:256, :256]
    image = (255 * np.exp(-((x - 187.5) ** 2 + (y - 127.5) ** 2) / 18)).astype(np.uint8)  # 60 right of the centre
    turned = warp(image, 224, np.deg2rad(10), 12, 20, mirrored).astype(float)
    v, u = np.mgrid[:224, :224]
    found = (u * turned).sum() / turned.sum(), (v * turned).sum() / turned.sum()
    across, down = 127.5 + 60 * np.cos(np.deg2rad(10)) - 12, 127.5 + 60 * np.sin(np.deg2rad(10)) - 20
    assert found == pytest.approx((223 - across if mirrored else across, down), abs=0.05)


def test_what_comes_in_from_outside_is_black() -> None:
    white = np.full((256, 256), 255, np.uint8)
    turned = warp(white, 224, np.deg2rad(10), 0, 0, False)
    assert turned[0, 0] == 0 and turned[100:, 100:].min() == 255
    assert (warp(white, 224, 0.0, 32, 32, True) == 255).all()


@pytest.mark.parametrize("size", [32, 128, 224])
def test_shape_type_and_determinism(size: int) -> None:
    image = noise(source_size(size))
    first = augment(image, np.random.default_rng(3), size)
    assert (first.shape, first.dtype) == ((size, size), np.uint8)
    np.testing.assert_array_equal(augment(image, np.random.default_rng(3), size), first)
    assert not np.array_equal(augment(image, np.random.default_rng(4), size), first)
    np.testing.assert_array_equal(image, noise(source_size(size)))  # the source is left as it was


def test_what_is_drawn_fills_its_range_evenly() -> None:
    """Angle, place and mirroring, read back from what became of two ramps."""
    ramp = np.broadcast_to(np.arange(146, dtype=np.uint8), (146, 146))
    angles, corners, mirrored = [], [], []
    inner = np.arange(32, 96)  # no black corner reaches here
    u, v = np.meshgrid(inner, inner)
    design = np.column_stack([u.ravel(), v.ravel(), np.ones(u.size)])
    for seed in range(1000):
        across = augment(np.ascontiguousarray(ramp), np.random.default_rng(seed), 128)[32:96, 32:96]
        down = augment(np.ascontiguousarray(ramp.T), np.random.default_rng(seed), 128)[32:96, 32:96]
        (a, b, shift_x), (c, d, shift_y) = (
            np.linalg.lstsq(design, each.ravel(), rcond=None)[0] for each in (across, down)
        )
        flip = a < 0
        angles.append(np.rad2deg(np.arctan2(b, d)))
        mirrored.append(flip)
        # Undo the turn about the centre to find the crop's corner in the turned image.
        source = np.array([shift_x + (127 * a if flip else 0), shift_y + (127 * c if flip else 0)]) - 72.5
        corners.append(np.linalg.inv(np.array([[-a if flip else a, b], [-c if flip else c, d]])) @ source + 72.5)
    assert np.abs(angles).max() <= DEGREES + 0.05
    assert (np.min(angles), np.max(angles)) == pytest.approx((-10, 10), abs=0.15)
    assert np.mean(angles) == pytest.approx(0, abs=0.6)  # three deviations of the mean of a thousand
    assert np.std(angles) == pytest.approx(20 / np.sqrt(12), abs=0.3)
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.05)
    places = np.rint(corners).astype(int)
    np.testing.assert_allclose(corners, places, atol=0.2)
    for axis in (0, 1):
        counts = np.bincount(places[:, axis], minlength=19)
        assert len(counts) == 19 and counts.min() > 0.5 * 1000 / 19 and counts.max() < 1.6 * 1000 / 19
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.1
