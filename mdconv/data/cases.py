"""A set of labelled images: the one form in which training, evaluation and experiments see any data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """Where a finding is."""

    finding: str
    x: float
    """Of the top left corner, as y; pixels of the image as it was asked for."""
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Cases(ABC):
    """N labelled images. Reading one is left to the data set, so that memory does not grow with N."""

    name: str
    """Of the set, for people: "chestxray14 train", "phantoms 0 to 11999"."""
    labels: tuple[str, ...]
    """The L labels, in the order of the network's outputs."""
    exclusive: bool
    """Whether each image has exactly one label (cross-entropy), or any number of them (binary cross-entropy)."""
    truth: NDArray[np.bool_]
    """(N, L)."""
    ids: tuple[str, ...]
    """One an image: its name in the data set."""
    patients: tuple[str, ...]
    """One an image: whose it is."""
    notice: str
    """What must be said wherever an output learned or measured on these images is shown."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        """Image `index` as (size, size) uint8 gray. Raises `InputRefusedError` that names the file."""

    @abstractmethod
    def select(self, indices: Sequence[int]) -> Cases:
        """The set of these images, in this order."""

    def chosen(self, indices: Sequence[int]) -> dict[str, Any]:
        """What every data set's `select` replaces: truth, ids and patients of these images."""
        return {
            "truth": self.truth[list(indices)],
            "ids": tuple(self.ids[i] for i in indices),
            "patients": tuple(self.patients[i] for i in indices),
        }

    def boxes(self, index: int, size: int) -> list[Box]:
        """Boxes of image `index`, in pixels of a (size, size) image; empty where none are known."""
        return []


def read_all(cases: Cases, size: int) -> NDArray[np.uint8]:
    """All images as (N, 1, size, size) uint8: for sets that fit into memory. Raises as `Cases.read`."""
    images = np.empty((len(cases), 1, size, size), np.uint8)
    for index in range(len(cases)):
        images[index, 0] = cases.read(index, size)
    return images
