"""Points, boxes and rates against hand-made maps and against counting pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mdconv.data.cases import Box
from mdconv.localisation import (
    Located,
    Point,
    inside,
    intersection_over_union,
    locate,
    own_box,
    peak,
    rate,
    score,
    upsample,
)


def spot(size: int, row: int, column: int) -> np.ndarray:
    cam = np.full((size, size), -1.0, np.float32)
    cam[row, column] = 2.0
    return cam


@pytest.mark.parametrize("cells, size", [(7, 70), (14, 448), (5, 33), (3, 100)])
def test_the_peak_lies_in_the_middle_of_its_cell(cells: int, size: int) -> None:
    for row, column in [(0, 0), (cells - 1, cells // 2), (cells // 2, cells - 1)]:
        point = peak(spot(cells, row, column), size)
        cell = size / cells
        assert abs(point.y - (row + 0.5) * cell) <= cell / 2
        assert abs(point.x - (column + 0.5) * cell) <= cell / 2
        if 0 < row < cells - 1:  # beyond the border cells' centres the interpolation is free to rise further
            assert abs(point.y - (row + 0.5) * cell) <= 1


def test_a_map_as_large_as_the_image_stays_as_it_is_and_of_equal_maxima_the_first_counts() -> None:
    cam = np.zeros((9, 9), np.float32)
    cam[6, 1] = cam[2, 7] = cam[2, 3] = 5.0
    np.testing.assert_array_equal(upsample(cam, 9), cam)
    assert peak(cam, 9) == Point(3.5, 2.5)
    assert peak(np.full((4, 4), -3.0, np.float32), 4) == Point(0.5, 0.5)


def test_the_peak_is_found_where_nothing_is_positive() -> None:
    cam = np.full((9, 9), -4.0, np.float32)
    cam[7, 2] = -1.0
    assert peak(cam, 9) == Point(2.5, 7.5)
    assert own_box(cam, 9, "Mass") is None


def test_inside_agrees_with_the_pixels_that_a_box_covers() -> None:
    box = Box("Mass", 3, 5, 4, 2)
    for tolerance in (0, 2):
        mask = np.zeros((12, 12), bool)
        mask[5 - tolerance : 7 + tolerance, 3 - tolerance : 7 + tolerance] = True
        found = np.array([[inside(Point(x + 0.5, y + 0.5), box, tolerance) for x in range(12)] for y in range(12)])
        np.testing.assert_array_equal(found, mask)


def test_overlap_agrees_with_counting_pixels() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        boxes, masks = [], []
        for _ in range(2):
            x, y = rng.integers(0, 20, 2)
            width, height = rng.integers(1, 21 - max(x, y), 2)
            boxes.append(Box("Mass", float(x), float(y), float(width), float(height)))
            mask = np.zeros((21, 21), bool)
            mask[y : y + height, x : x + width] = True
            masks.append(mask)
        expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert intersection_over_union(*boxes) == pytest.approx(expected)
        assert intersection_over_union(*boxes[::-1]) == pytest.approx(expected)


def test_overlap_of_boxes_without_area_is_0() -> None:
    assert intersection_over_union(Box("Mass", 1, 1, 0, 0), Box("Mass", 1, 1, 0, 5)) == 0


def flood_box(shown: np.ndarray) -> tuple[int, int, int, int]:
    """Box of the largest part of a mask, sides and corners touching: by walking from pixel to pixel."""
    left, parts = {tuple(at) for at in np.argwhere(shown)}, []
    for start in map(tuple, np.argwhere(shown)):
        if start not in left:
            continue
        left.discard(start)
        part = walk = [start]
        for row, column in walk:
            near = [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (row + i, column + j) in left]
            left.difference_update(near)
            walk += near
        parts.append(part)
    rows, columns = np.array(max(parts, key=len)).T  # the first of the largest
    return columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1


@pytest.mark.parametrize("size", [8, 13, 31])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_maps_own_box_is_that_of_the_largest_part(size: int, share: float) -> None:
    rng = np.random.default_rng(size)
    for _ in range(20):
        cam = (rng.random((size, size)) ** 4).astype(np.float32)  # many small parts, at the borders too
        own = own_box(cam, size, "Mass", share)
        assert own is not None
        assert own == ("Mass", *flood_box(cam >= np.float32(share) * cam.max()))


def test_of_equally_large_parts_the_first_is_boxed_and_corners_join() -> None:
    cam = np.zeros((9, 9), np.float32)
    cam[1, 6] = cam[2, 7] = 1.0  # two pixels that touch by a corner
    cam[5, 0:2] = 1.0  # two, at the border
    assert own_box(cam, 9, "Mass") == Box("Mass", 6, 1, 2, 2)
    cam[8, 0:3] = 1.0
    assert own_box(cam, 9, "Mass") == Box("Mass", 0, 8, 3, 1)


def test_locating_takes_the_best_of_several_boxes_and_the_largest_side() -> None:
    cam = np.zeros((16, 16), np.float32)
    cam[4:8, 4:8] = 1.0
    cam[5, 5] = 1.5
    boxes = [Box("Mass", 12, 12, 4, 4), Box("Mass", 4, 4, 4, 2)]
    one = locate(cam, boxes, 16)
    assert (one.finding, one.hit, one.near) == ("Mass", True, True)
    assert one.overlap == pytest.approx(0.5)
    assert one.side == pytest.approx(4 / 16)


@pytest.mark.parametrize(
    "distance, hit, near", [(0, True, True), (1, False, True), (15, False, True), (16, False, False)]
)
def test_the_tolerance_is_15_pixels_of_448(distance: int, hit: bool, near: bool) -> None:
    cam = np.zeros((448, 448), np.float32)
    cam[100, 200] = 1.0
    one = locate(cam, [Box("Nodule", 200 + distance, 90, 30, 30)], 448)
    assert (one.hit, one.near) == (hit, near)


@pytest.mark.parametrize("boxes", [[], [Box("Mass", 0, 0, 1, 1), Box("Nodule", 0, 0, 1, 1)]])
def test_boxes_of_no_finding_or_of_several_are_refused(boxes: list[Box]) -> None:
    with pytest.raises(ValueError, match="boxes of one finding"):
        locate(np.ones((2, 2), np.float32), boxes, 8)


def game(adverse: bool) -> list[Located]:
    """Boxes in random places, each with a map that is high just there, or everywhere else but there."""
    rng, located = np.random.default_rng(1), []
    for _ in range(40):
        width, height = rng.integers(8, 33, 2)
        x, y = rng.integers(0, 64 - width), rng.integers(0, 64 - height)
        cam = np.zeros((64, 64), np.float32)
        cam[y : y + height, x : x + width] = 1.0
        located.append(locate(1 - cam if adverse else cam, [Box("Mass", x, y, width, height)], 64))
    return located


def test_a_perfect_map_always_hits_and_an_adverse_one_never() -> None:
    perfect, adverse = score(game(adverse=False)), score(game(adverse=True))
    assert (perfect.hit.rate, perfect.hit.of, perfect.near.rate) == (1.0, 40, 1.0)
    assert [one.rate for one in perfect.overlap.values()] == [1.0, 1.0, 1.0]
    assert (adverse.hit.rate, adverse.hit.held) == (0.0, 0)
    assert adverse.overlap[0.5].rate == 0.0


def test_a_box_is_right_above_t_not_at_it() -> None:
    located = [Located("Mass", 0.5, True, True, overlap) for overlap in (0.0, 0.1, 0.25, 0.3, 0.5, 0.6)]
    assert {least: one.held for least, one in score(located).overlap.items()} == {0.1: 4, 0.25: 3, 0.5: 1}


def wilson_by_search(held: int, of: int) -> tuple[float, float]:
    """The interval by its definition: all p with |share - p| <= z sqrt(p (1 - p) / n)."""
    p = np.linspace(0, 1, 200_001)
    kept = p[np.abs(held / of - p) <= 1.959964 * np.sqrt(p * (1 - p) / of) + 1e-12]
    return kept.min(), kept.max()


@pytest.mark.parametrize("held, of", [(0, 5), (5, 5), (1, 3), (40, 50), (399, 400)])
def test_the_interval_is_wilsons(held: int, of: int) -> None:
    found = rate([True] * held + [False] * (of - held))
    assert (found.held, found.of, found.rate) == (held, of, held / of)
    assert (found.low, found.high) == pytest.approx(wilson_by_search(held, of), abs=1e-5)


def test_the_rate_of_nothing_is_no_number() -> None:
    found = rate([])
    assert found.of == 0
    assert all(map(math.isnan, found[2:]))
