"""Data sets that take no time to read and little to learn: bright squares on a dim ground, and noise in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import InputRefusedError
from mdconv.data.cases import Cases

LABELS = ("Upper", "Lower", "Bright")
SIDE = 40


@dataclass(frozen=True)
class Squares(Cases):
    """A square in the upper half, one in the lower half, a bright ground: each in half of the images, by chance."""

    images: NDArray[np.uint8]
    corrupt: str = ""
    """Id of an image that cannot be read."""

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        if self.ids[index] == self.corrupt:
            raise InputRefusedError(f"{self.corrupt}: not an image")
        return np.asarray(cv2.resize(self.images[index], (size, size), interpolation=cv2.INTER_AREA), np.uint8)

    def select(self, indices: Sequence[int]) -> Squares:
        chosen = list(indices)
        return replace(
            self,
            truth=self.truth[chosen],
            ids=tuple(self.ids[i] for i in chosen),
            patients=tuple(self.patients[i] for i in chosen),
            images=self.images[chosen],
        )


def squares(count: int, seed: int, exclusive: bool = False) -> Squares:
    """`count` images drawn from `seed`; with `exclusive` each has one square, and the two places are the labels."""
    rng = np.random.default_rng(seed)
    truth = rng.random((count, 3)) < 0.5
    if exclusive:
        truth = truth[:, :2]
        truth[:, 1] = ~truth[:, 0]
    images = rng.integers(0, 60, (count, SIDE, SIDE), np.uint8)
    half = SIDE // 2
    for image, present in zip(images, truth):
        for place in np.flatnonzero(present[:2]):
            top, left = place * half + rng.integers(2, half - 12), rng.integers(2, SIDE - 12)
            image[top : top + 10, left : left + 10] += 150
        if present[2:].any():
            image += 45
    names = tuple(f"square-{seed}-{number}.png" for number in range(count))
    labels = LABELS[:2] if exclusive else LABELS
    return Squares(f"squares {seed}", labels, exclusive, truth, names, names, "squares, of no use to anybody", images)


def write_children(root: Path) -> Path:
    """Noise, 40 x 40, in the folders of ChestX-ray2017: 60 children with bacterial pneumonia, 60 with viral, 20 with
    none, all in `train`; three of them in `test` too."""
    rng = np.random.default_rng(0)
    names = [f"PNEUMONIA/person{n}_{'bacteria' if n % 2 else 'virus'}_{n}.jpeg" for n in range(120)]
    names += [f"NORMAL/IM-{n:04d}-0001.jpeg" for n in range(200, 220)]
    for part in ("train", "test"):
        for name in names if part == "train" else (names[0], names[1], names[-1]):
            path = root / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 120 if "virus" in name else 255, (SIDE, SIDE), np.uint8))
    return root
