"""Sets of phantoms as arrays, rendered on all cores and kept in files where a caller wants them again."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import MachineError, describe_os_error
from edge.labels import CHESTXRAY14
from mdconv.data.cases import Box, Cases
from mdconv.data.phantom import NOTICE, boxes_of, render

GENERATOR_VERSION = 1
"""Raised when the same seed gives another picture, so that kept files are not taken for new ones."""


@dataclass(frozen=True)
class PhantomCases(Cases):
    """Phantoms as a data set. Made by `phantom_cases`."""

    images: NDArray[np.uint8]
    """(N, 1, size, size), perhaps mapped from a file."""
    seeds: tuple[int, ...]

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = np.asarray(self.images[index, 0])
        if image.shape[0] == size:
            return image
        return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), np.uint8)

    def select(self, indices: Sequence[int]) -> PhantomCases:
        images, seeds = self.images[list(indices)], tuple(self.seeds[i] for i in indices)
        return replace(self, **self.chosen(indices), images=images, seeds=seeds)

    def boxes(self, index: int, size: int) -> list[Box]:
        return [Box(*box) for box in boxes_of(self.seeds[index], size)]


def phantom_cases(seeds: range, size: int, cache: Path | None = None) -> PhantomCases:
    """The phantoms of `seeds`, rendered at `size` pixels (`PhantomCases.read` resizes to others).

    `cache` as for `phantom_set`.
    """
    images, truth = phantom_set(seeds, size, cache)
    names = tuple(f"phantom-{seed:07d}" for seed in seeds)
    return PhantomCases(
        name=f"phantoms {seeds[0]} to {seeds[-1]}",
        labels=CHESTXRAY14,
        exclusive=False,
        truth=truth,
        ids=names,
        patients=names,
        notice=NOTICE,
        images=images,
        seeds=tuple(seeds),
    )


def phantom_set(seeds: range, size: int, cache: Path | None = None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images (N, 1, size, size) uint8 and labels (N, 14) of the phantoms of `seeds`.

    With `cache`, a folder, the images are a file there, mapped into memory, and read back the next time. Raises
    `MachineError` if that folder cannot be written.
    """
    labels = np.empty((len(seeds), len(CHESTXRAY14)), bool)
    shape = (len(seeds), 1, size, size)
    if cache is None:
        images = np.empty(shape, np.uint8)
        _render_into(images, labels, seeds, size)
        return images, labels
    stem = cache / f"phantoms-v{GENERATOR_VERSION}-{seeds.start}-{len(seeds)}-{size}"
    pictures, truth = stem.with_suffix(".npy"), stem.with_suffix(".labels.npy")
    try:
        if not truth.exists():
            cache.mkdir(parents=True, exist_ok=True)
            mapped = np.lib.format.open_memmap(pictures, "w+", np.uint8, shape)
            _render_into(mapped, labels, seeds, size)
            mapped.flush()
            np.save(truth, labels)  # last: its presence says that the set is whole
        return np.load(pictures, mmap_mode="r"), np.load(truth)
    except OSError as error:
        raise MachineError(f"cannot keep phantoms: {describe_os_error(error)}") from error


def _render_into(images: NDArray[np.uint8], labels: NDArray[np.bool_], seeds: range, size: int) -> None:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), cv2.setNumThreads, (1,)) as workers:
        for index, (image, present) in enumerate(workers.imap(partial(_render_one, size=size), seeds, chunksize=8)):
            images[index, 0] = image
            labels[index] = present


def _render_one(seed: int, size: int) -> tuple[NDArray[np.uint8], tuple[bool, ...]]:
    phantom = render(seed, size)
    return phantom.image, phantom.labels
