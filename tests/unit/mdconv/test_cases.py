"""The phantoms as a data set, by the interface that every data set has."""

from __future__ import annotations

import cv2
import numpy as np

from edge.labels import CHESTXRAY14
from mdconv.data.cases import read_all
from mdconv.data.phantom import render
from mdconv.data.phantom.sets import phantom_cases


def test_phantoms_are_cases() -> None:
    cases = phantom_cases(range(3, 9), 64)
    phantoms = [render(seed, 64) for seed in range(3, 9)]
    assert (len(cases), cases.labels, cases.exclusive) == (6, CHESTXRAY14, False)
    assert "synthetic" in cases.notice
    np.testing.assert_array_equal(cases.truth, [phantom.labels for phantom in phantoms])
    np.testing.assert_array_equal(read_all(cases, 64)[:, 0], [phantom.image for phantom in phantoms])
    small = cv2.resize(phantoms[2].image, (32, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(cases.read(2, 32), small)


def test_boxes_are_in_pixels_of_the_size_asked_for() -> None:
    cases = phantom_cases(range(40), 64)
    found = 0
    for index, seed in enumerate(range(40)):
        boxes = cases.boxes(index, 128)
        assert [tuple(box) for box in boxes] == render(seed, 128).boxes
        found += len(boxes)
    assert found > 10


def test_a_selection_keeps_what_belongs_together() -> None:
    cases = phantom_cases(range(3, 9), 64)
    chosen = cases.select([4, 1])
    assert chosen.ids == ("phantom-0000007", "phantom-0000004") == chosen.patients
    np.testing.assert_array_equal(chosen.truth, cases.truth[[4, 1]])
    np.testing.assert_array_equal(chosen.read(1, 64), cases.read(1, 64))
    assert chosen.boxes(0, 64) == cases.boxes(4, 64)
