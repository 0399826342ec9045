"""Mapping of stored pixel values to 8 bits by one table over all values that the bits can hold.

A table of at most 65,536 entries is computed in float64; the image itself, millions of pixels, is only looked up.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import InputRefusedError

Stored = NDArray[np.uint8] | NDArray[np.uint16]
"""(H, W) stored values as bit patterns: a negative value is its two's complement."""

_OPENCV_LOOKS_UP_16_BITS = tuple(int(part) for part in cv2.__version__.split(".")[:2]) >= (4, 13)
"""Several times as fast as NumPy (docs/figures.md)."""
_BLOCK_PIXELS = 1 << 18
"""NumPy turns a table's indices into 8-byte integers: block by block, so that they fit a cache and not 8 images."""


def apply_table(stored: Stored, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) uint8: ``table[stored]``. `table` has an entry for each value that the dtype of `stored` can hold."""
    if stored.itemsize == 1 or _OPENCV_LOOKS_UP_16_BITS:
        return np.asarray(cv2.LUT(stored, table), np.uint8)
    result = np.empty(stored.shape, np.uint8)
    rows = max(1, _BLOCK_PIXELS // stored.shape[1])
    for start in range(0, stored.shape[0], rows):
        block = slice(start, start + rows)
        # Every index fits the table, so "clip" never clips: it only spares NumPy the check.
        np.take(table, stored[block], out=result[block], mode="clip")
    return result


def patterns_present(stored: Stored) -> NDArray[np.bool_]:
    """(256,) or (65536,) bool: which bit patterns occur in the image."""
    count = 1 << 8 * stored.itemsize
    present: NDArray[np.bool_] = cv2.calcHist([stored], [0], None, [count], [0, count]).ravel() > 0
    return present


def scale_to_byte(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """`values` from [low, high] to 0..255, rounded to the nearest (half to even), clipped outside."""
    return to_byte((values - low) / (high - low))


def to_byte(fraction: NDArray[np.float64]) -> NDArray[np.uint8]:
    """0..1 -> 0..255, rounded to the nearest (half to even), clipped outside."""
    return np.rint(np.clip(fraction, 0.0, 1.0) * 255.0).astype(np.uint8)


def full_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Minimum and maximum of `values`, an image's. Raises `InputRefusedError` if they leave no contrast."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if low == high:
        raise InputRefusedError(
            "every pixel has the same value and the file declares no window: there is no image; export it again"
        )
    return low, high
