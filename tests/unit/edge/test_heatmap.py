from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.heatmap import CAPTION_HEIGHT, normalised, overlay, write_heatmap


def test_normalised_is_the_positive_part_with_maximum_1() -> None:
    cam = np.array([[-3.0, 0.0], [2.0, 4.0]], np.float32)
    assert normalised(cam).tolist() == [[0.0, 0.0], [0.5, 1.0]]


@pytest.mark.parametrize("cam", [np.zeros((3, 4), np.float32), np.full((3, 4), -2, np.float32)])
def test_a_map_with_no_positive_part_is_zero_and_leaves_the_image_as_it_is(cam: np.ndarray) -> None:
    assert not normalised(cam).any()
    pixels = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)
    np.testing.assert_array_equal(overlay(pixels, cam), np.repeat(pixels[..., None], 3, axis=2))


def test_the_colour_lies_where_the_map_is() -> None:
    cam = np.zeros((7, 7), np.float32)
    cam[1, 5] = 3.0
    drawn = overlay(np.full((70, 70), 100, np.uint8), cam).astype(int)
    coloured = np.abs(drawn - 100).max(axis=2) > 20
    rows, columns = np.nonzero(coloured)
    assert (rows.min(), rows.max()) >= (5, 15)
    assert abs(rows.mean() - 14.5) < 1
    assert abs(columns.mean() - 54.5) < 1
    assert not coloured[25:, :].any()


@pytest.mark.parametrize("size", [64, 448])
def test_the_files_hold_all_maps_and_a_picture_of_the_likeliest(tmp_path: Path, size: int) -> None:
    cam = np.random.default_rng(0).normal(size=(3, 5, 5)).astype(np.float32)
    result = {"findings": {label: {"probability": p} for label, p in (("A", 0.2), ("B", 0.9), ("C", 0.5))}}
    written = write_heatmap(
        tmp_path,
        "chest",
        pixels=np.zeros((size, size), np.uint8),
        cam=cam,
        labels=("A", "B", "C"),
        result=result,
        notice="for tests",
    )
    assert written["finding"] == "B"
    np.testing.assert_array_equal(np.load(written["array"]), cam)
    picture = cv2.imread(written["overlay"])
    assert picture is not None
    assert picture.shape == (size + CAPTION_HEIGHT, size, 3)
    assert picture[size : size + 20].any()  # the finding
    assert picture[size + 20 :].any()  # the notice
