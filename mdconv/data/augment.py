"""Augmentation of training images (Hu et al., IEEE Access 2020, section IV-B).

The image is resized to 512 pixels, rotated by up to 10 degrees about its centre, cropped to 448 at a random place, and
mirrored half the time; to 256 and 224 likewise. Rotation, crop and mirroring are one interpolation, not three.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

DEGREES = 10.0
"""Largest rotation, either way."""


def source_size(size: int) -> int:
    """Side of the image that a crop of `size` pixels is taken from: 512 for 448, 256 for 224."""
    return round(size * 8 / 7)


def augment(image: NDArray[np.uint8], rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A random view, (size, size) uint8, of an image (S, S) uint8, S >= size. Draws four numbers from `rng`.

    What a rotation brings in from outside the image is black, as the margin of a radiograph is.
    """
    angle = np.deg2rad(rng.uniform(-DEGREES, DEGREES))
    left, top = rng.integers(0, len(image) - size + 1, 2)
    mirrored = rng.random() < 0.5
    return warp(image, size, angle, int(left), int(top), bool(mirrored))


def warp(image: NDArray[np.uint8], size: int, angle: float, left: int, top: int, mirrored: bool) -> NDArray[np.uint8]:
    """`image` (S, S), turned by `angle` (radians, clockwise as seen) about its centre, then the (size, size) crop at
    (`left`, `top`), then mirrored left to right."""
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]])  # from a pixel of the turned image to the one that it shows
    flip = np.diag([-1.0 if mirrored else 1.0, 1.0])
    centre = np.full(2, (len(image) - 1) / 2)
    corner = np.array([left + (size - 1 if mirrored else 0), top], np.float64)
    shift = turn @ (corner - centre) + centre
    matrix = np.column_stack([turn @ flip, shift])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT))
