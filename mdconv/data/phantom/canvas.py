"""Drawing in the coordinates of a patient, at any resolution.

Body coordinates are those of a standard patient whose image is the unit square: x to the image's right, y down. A pose
maps them to the image, and all lengths are fractions of its side, so that the same drawing at two sizes shows the same
anatomy. Masks are uint8, 255 where the shape is.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
Points = NDArray[np.float64]
"""(N, 2) x and y in body coordinates."""

RIM_SIZE = 448
"""An antialiased outline has a rim of one pixel. Larger images draw it as wide as it is here, so that fine structures
keep their weight; in smaller ones it is a pixel, and shapes agree to within that."""

_SUBPIXEL_BITS = 6


class Canvas:
    """Makes masks of one size under one pose.

    Args:
        size: side of the square image, pixels.
        scale, degrees, shift: the pose about the image's centre; `shift` in fractions of the side.
    """

    def __init__(self, size: int, scale: float, degrees: float, shift: tuple[float, float]) -> None:
        self.size = size
        self.scale = scale
        angle = np.deg2rad(degrees)
        self._rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._rim = round(size / RIM_SIZE)
        self._centre = np.array([0.5, 0.5])
        self._shift = np.array(shift)

    def to_pixels(self, points: Points) -> NDArray[np.float64]:
        """Body coordinates (..., 2) to pixel coordinates, in which pixel i covers [i - 0.5, i + 0.5)."""
        image: NDArray[np.float64] = (points - self._centre) @ self._rotation.T + self._centre + self._shift
        return image * self.size - 0.5

    def empty(self) -> Mask:
        return np.zeros((self.size, self.size), np.uint8)

    def fill(self, mask: Mask, outlines: Points, values: int | Sequence[int] = 255) -> None:
        """Fill a closed outline (N, 2), or each of several (M, N, 2) in turn, with a value (or one each), antialiased.

        What was there is overwritten.
        """
        pixels = np.rint(self.to_pixels(outlines) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        polygons = pixels.reshape(-1, *pixels.shape[-2:])
        each = [values] * len(polygons) if isinstance(values, int) else values
        for polygon, value in zip(polygons, each):
            cv2.fillPoly(mask, [polygon], value, cv2.LINE_AA, _SUBPIXEL_BITS)
            if self._rim > 1:
                cv2.polylines(mask, [polygon], True, value, self._rim, cv2.LINE_AA, _SUBPIXEL_BITS)

    def shape(self, outline: Points, soft: float = 0.0) -> Mask:
        """The mask of a closed outline, its edge blurred with the standard deviation `soft`."""
        mask = self.empty()
        self.fill(mask, outline)
        return self.blur(mask, soft)

    def blur(self, mask: Mask, soft: float) -> Mask:
        """Gaussian blur of standard deviation `soft`; a wide one is done on a smaller copy, which looks the same."""
        sigma = soft * self.scale * self.size
        if sigma < 0.3:
            return mask
        shrink = min(16, int(sigma / 1.3))
        if shrink < 2:
            return cv2.GaussianBlur(mask, (0, 0), sigma)  # type: ignore[return-value]
        small = cv2.resize(mask, (-(-self.size // shrink),) * 2, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma * small.shape[0] / self.size)
        return cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]

    def texture(self, rng: np.random.Generator, cells: int) -> NDArray[np.float32]:
        """(size, size) smooth noise, about standard normal, of `cells` grains along a side; the same at every size."""
        grains = rng.standard_normal((cells, cells), np.float32)
        return cv2.resize(grains, (self.size, self.size), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


def smooth(points: Points, steps: int = 6) -> Points:
    """An open Catmull-Rom curve through (N, 2) points, `steps` segments between neighbours."""
    padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    before, start, end, after = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return np.vstack([curve.reshape(-1, 2), points[-1]])


def band(centrelines: Points, width: Points | float) -> Points:
    """The outlines of bands along centrelines (..., N, 2); `width` is one number or (..., N)."""
    direction = np.empty_like(centrelines)
    direction[..., 1:-1, :] = centrelines[..., 2:, :] - centrelines[..., :-2, :]
    direction[..., 0, :] = centrelines[..., 1, :] - centrelines[..., 0, :]
    direction[..., -1, :] = centrelines[..., -1, :] - centrelines[..., -2, :]
    half = np.asarray(width) / 2 / np.maximum(np.hypot(direction[..., 0], direction[..., 1]), 1e-9)
    offset = np.stack([-direction[..., 1] * half, direction[..., 0] * half], -1)
    return np.concatenate([centrelines + offset, (centrelines - offset)[..., ::-1, :]], -2)


def ellipse(centre: Points | tuple[float, float], width: float, height: float, tilt: float = 0.0) -> Points:
    """An ellipse whose bounding box, however tilted (radians of phase), is `width` by `height`."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x, y = np.cos(t), np.sin(t + tilt)  # a shift in phase tilts the ellipse and leaves its bounding box
    return np.asarray(centre) + np.stack([width / 2 * x, height / 2 * y], 1)


def lump(rng: np.random.Generator, centre: tuple[float, float], width: float, height: float, rough: float) -> Points:
    """An ellipse with an irregular edge, rescaled so that its bounding box is `width` by `height`."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(t)
    for harmonic in range(2, 8):
        amplitude, phase = rough / harmonic**0.7 * rng.standard_normal(), rng.uniform(0, 2 * np.pi)
        radius += amplitude * np.cos(harmonic * t + phase)
    outline = np.maximum(radius, 0.3)[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
    low, high = outline.min(0), outline.max(0)
    unit: Points = (outline - (low + high) / 2) / (high - low)
    return np.asarray(centre) + unit * (width, height)
