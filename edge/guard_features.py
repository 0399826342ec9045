"""What the guard looks at: the network's class activation maps and the image that it saw, as one vector of numbers.

Class activation maps are a linear view of the network's last features at each position, so they carry what the network
makes of an image; strangers that it was never shown to may still give ordinary maps, so a coarse picture of the image
and its contrast at several scales stand beside them. Every number is one that an ordinary image changes smoothly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAM_GRID = 3
"""Class activation maps are averaged over this many rows and columns of fields."""
PICTURE_GRID = 8
"""The same of the image."""
SCALES = 5
"""Contrast is measured at the image's own size and at its halves, this many sizes in all."""
_GRAY_STEP = 64.0
"""Gray levels in the picture's unit: phantoms and radiographs vary by about this much."""

Vector = NDArray[np.float64]


def feature_groups(
    pixels: NDArray[np.uint8], logits: NDArray[np.float32], cam: NDArray[np.float32] | None
) -> Mapping[str, Vector]:
    """Groups of like numbers, in a fixed order, of one image: `pixels` (S, S), `logits` (L,), `cam` (L, h, w) or None.

    With maps: ``spread``, ``highest`` and ``lowest`` of each (L,), ``where`` they are high (L * 9 fields). Without:
    ``logits`` (L,). Then ``contrast`` between neighbours along x and y at each scale, and the ``picture`` (64 fields).
    """
    network: dict[str, Vector]
    if cam is None:
        network = {"logits": logits.astype(np.float64)}
    else:
        maps = cam.astype(np.float64)
        network = {
            "spread": maps.std(axis=(1, 2)),
            "highest": maps.max(axis=(1, 2)),
            "lowest": maps.min(axis=(1, 2)),
            "where": _fields(maps, CAM_GRID).ravel(),
        }
    return {**network, "contrast": _contrast(pixels), "picture": _fields(pixels, PICTURE_GRID).ravel() / _GRAY_STEP}


def _fields(values: NDArray[np.float64] | NDArray[np.uint8], grid: int) -> Vector:
    """Means (..., grid, grid) over fields of (..., H, W) values; fewer fields where there are fewer rows or columns."""
    height, width = values.shape[-2:]
    rows, columns = min(grid, height), min(grid, width)
    row_starts, column_starts = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    sums = np.add.reduceat(values, row_starts, axis=-2, dtype=np.float64)
    sums = np.add.reduceat(sums, column_starts, axis=-1)
    sizes = np.outer(np.diff(row_starts, append=height), np.diff(column_starts, append=width))
    return np.asarray(sums / sizes, np.float64)


def _contrast(pixels: NDArray[np.uint8]) -> Vector:
    """Logarithm of the mean squared step to the next pixel, along x and y, at each scale that has four pixels a side.

    The quarter that is added is the square of half a gray level: an image without any contrast has a logarithm too.
    """
    import cv2  # heavy, and loaded by then where it decoded the image

    image: NDArray[Any] = pixels
    found = []
    for _ in range(SCALES):
        height, width = image.shape
        if min(height, width) < 4:
            break
        for one, other in ((image[:, 1:], image[:, :-1]), (image[1:], image[:-1])):
            found.append(np.log(cv2.norm(one, other, cv2.NORM_L2SQR) / one.size + 0.25))
        even = image[: height // 2 * 2, : width // 2 * 2].astype(np.float32)
        image = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)  # means of four pixels
    return np.array(found, np.float64)
