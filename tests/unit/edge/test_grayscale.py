"""Looking up gray levels, beside NumPy's own index."""

from __future__ import annotations

import numpy as np
import pytest

from edge import grayscale
from edge.grayscale import apply_table, patterns_present

SHAPES = [(1, 1), (1, 9), (9, 1), (37, 41), (513, 1021)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_opencv", [True, False])
def test_a_table_is_an_index(dtype, shape, by_opencv, monkeypatch):
    if by_opencv and not grayscale._OPENCV_LOOKS_UP_16_BITS and dtype == np.uint16:
        pytest.skip("this OpenCV looks up 8 bits only")
    monkeypatch.setattr(grayscale, "_OPENCV_LOOKS_UP_16_BITS", by_opencv)
    rng = np.random.default_rng(shape[1])
    count = np.iinfo(dtype).max + 1
    stored, table = rng.integers(0, count, shape).astype(dtype), rng.integers(0, 256, count).astype(np.uint8)
    stored.flat[:2] = (count - 1, 0)[: stored.size]
    stored.flags.writeable = False
    found = apply_table(stored, table)
    assert (found.dtype, found.shape) == (np.uint8, shape)
    np.testing.assert_array_equal(found, table[stored])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", SHAPES)
def test_which_patterns_are_present(dtype, shape):
    count = np.iinfo(dtype).max + 1
    for seed in range(3):
        few = np.random.default_rng(seed).integers(0, count, 200)
        few[:2] = 0, count - 1
        stored = np.random.default_rng(seed).choice(few, shape).astype(dtype)
        np.testing.assert_array_equal(np.flatnonzero(patterns_present(stored)), np.unique(stored))


def test_every_pattern_has_a_place_of_its_own():
    stored = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for absent in (0, 1, 255, 256, 32767, 32768, 65534, 65535):
        image = np.where(stored == absent, stored ^ 1, stored)
        np.testing.assert_array_equal(np.flatnonzero(~patterns_present(image)), [absent])
