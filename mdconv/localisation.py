"""How well a map of evidence says where a finding is: the pointing game, and boxes compared.

- Pointing game (Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016): a map's maximum lies in
  a box of the finding, or it does not.
- Boxes: a map's own box encloses the largest connected part of what exceeds a share of its maximum (Zhou et al.,
  "Learning Deep Features for Discriminative Localization", CVPR 2016, with a share of 0.2). It is right if its
  intersection over union with the true box is above T (Wang et al., "ChestX-ray8", CVPR 2017, section 4.3).

Where a finding has several boxes in an image, the best of them counts: one map cannot point at all. Coordinates are
continuous: pixel (0, 0) covers [0, 1) x [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.heatmap import normalised
from mdconv.data.cases import Box

SHARE = 0.2
"""Of a map's maximum, above which it belongs to the map's own box."""
OVERLAPS = (0.1, 0.25, 0.5)
"""Intersections over union, T, above which a box is right."""
LARGE = 64 / 448
"""A lesion is large if the square root of its box's area exceeds this share of the image's side."""
TOLERANCE = 15 / 448
"""How far from the box the tolerant pointing game lets the maximum lie, a share of the image's side: the 15 pixels that
are customary on photographs of about 500 pixels."""


class Point(NamedTuple):
    """The centre of a pixel."""

    x: float
    y: float


class Located(NamedTuple):
    """How well the map of one finding of one image says where the finding is."""

    finding: str
    side: float
    """Square root of the area of the finding's (largest) box, as a share of the image's side."""
    hit: bool
    """Whether the map's maximum lies in a box of the finding."""
    near: bool
    """Whether it lies within `TOLERANCE` of one."""
    overlap: float
    """Intersection over union of the map's own box with the finding's (best) box; 0 if the map has no positive part."""
    image: str = ""
    probability: float = math.nan
    """Of the finding, as the network says."""


class Rate(NamedTuple):
    """How often something held, with its 95 % interval (Wilson, J. Am. Stat. Assoc. 22, 1927)."""

    held: int
    of: int
    rate: float
    low: float
    high: float


def upsample(cam: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """A map (h, w) at the image's (size, size), as `edge.heatmap.overlay` shows it: cubic, pixel centres aligned."""
    return np.asarray(cv2.resize(cam, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def peak(cam: NDArray[np.float32], size: int) -> Point:
    """Where the map (h, w), spread over the image, is largest; of equal maxima the topmost, then the leftmost."""
    row, column = divmod(int(upsample(cam, size).argmax()), size)
    return Point(column + 0.5, row + 0.5)


def inside(point: Point, box: Box, tolerance: float = 0.0) -> bool:
    """Whether a point is in a box that is widened by `tolerance` pixels on each side (its corners stay square)."""
    return (
        box.x - tolerance <= point.x < box.x + box.width + tolerance
        and box.y - tolerance <= point.y < box.y + box.height + tolerance
    )


def own_box(cam: NDArray[np.float32], size: int, finding: str, share: float = SHARE) -> Box | None:
    """The box, in whole pixels of the (size, size) image, around the largest connected part of what a map shows.

    A pixel belongs if it has at least `share` of the largest value; neighbours touch by sides or corners. Of equally
    large parts the one whose first pixel comes first, row by row, counts. None if the map (h, w) has no positive part.
    """
    heat = upsample(normalised(cam), size)
    if heat.max() <= 0:
        return None
    shown = (heat >= share * heat.max()).astype(np.uint8)
    _, _, parts, _ = cv2.connectedComponentsWithStats(shown, connectivity=8)
    largest = 1 + int(parts[1:, cv2.CC_STAT_AREA].argmax())  # 0 is what does not belong
    x, y, width, height = (float(value) for value in parts[largest, : cv2.CC_STAT_AREA])
    return Box(finding, x, y, width, height)


def intersection_over_union(first: Box, second: Box) -> float:
    """Of two boxes, 0 to 1; 0 if neither has an area."""
    width = min(first.x + first.width, second.x + second.width) - max(first.x, second.x)
    height = min(first.y + first.height, second.y + second.height) - max(first.y, second.y)
    common = max(width, 0.0) * max(height, 0.0)
    union = first.width * first.height + second.width * second.height - common
    return common / union if union > 0 else 0.0


def locate(cam: NDArray[np.float32], boxes: Sequence[Box], size: int, share: float = SHARE) -> Located:
    """Compare a finding's map (h, w) with the boxes of that finding, in pixels of a (size, size) image.

    `image` and `probability` are left to the caller. Raises `ValueError` if there is no box, or boxes of several
    findings.
    """
    if len({box.finding for box in boxes}) != 1:
        raise ValueError(f"expected boxes of one finding, got {[box.finding for box in boxes]}")
    point, own = peak(cam, size), own_box(cam, size, boxes[0].finding, share)
    return Located(
        finding=boxes[0].finding,
        side=max(math.sqrt(box.width * box.height) for box in boxes) / size,
        hit=any(inside(point, box) for box in boxes),
        near=any(inside(point, box, TOLERANCE * size) for box in boxes),
        overlap=0.0 if own is None else max(intersection_over_union(own, box) for box in boxes),
    )


def rate(held: Iterable[bool]) -> Rate:
    """How often `held` is true, and the 95 % interval; all NaN of nothing."""
    values = list(held)
    if not values:
        return Rate(0, 0, math.nan, math.nan, math.nan)
    count, share, z = len(values), sum(values) / len(values), 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Rate(sum(values), count, share, max(middle - half, 0.0), min(middle + half, 1.0))


class Score(NamedTuple):
    """Of a set of located findings."""

    hit: Rate
    near: Rate
    overlap: dict[float, Rate]
    """How often the map's own box is right, by T."""


def score(located: Sequence[Located]) -> Score:
    """The rates of the pointing game and of right boxes."""
    return Score(
        rate(one.hit for one in located),
        rate(one.near for one in located),
        {least: rate(one.overlap > least for one in located) for least in OVERLAPS},
    )
