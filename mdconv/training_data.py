"""Batches of a data set, in an order and with an augmentation that depend on the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edge.errors import EdgeError
from mdconv.data.augment import augment, source_size
from mdconv.data.cases import Cases
from mdconv.distributed import World

VALIDATION_BATCH = 32

_ORDER, _PICTURE = range(2)

Batch = tuple[Tensor, Tensor]
"""Images (n, 1, size, size) uint8 and truth (n, L) float32."""


def training_batches(
    cases: Cases,
    *,
    size: int,
    batch: int,
    augmented: bool,
    seed: int,
    epoch: int,
    skip: int = 0,
    world: World,
    workers: int = 0,
) -> Iterator[Batch]:
    """This process's part of each batch of an epoch.

    Args:
        batch: images a step over all processes, which their number divides; an incomplete last batch is left out.
        augmented: random crop, rotation and mirroring; without it mirroring alone.
        skip: batches left out at the start, done before an interruption.
        workers: processes that read images; 0 reads in this one.

    Raises:
        InputRefusedError: an image cannot be read; it is named.
        RuntimeError: a worker died.
    """
    order = np.random.default_rng((seed, _ORDER, epoch)).permutation(len(cases))
    part = world.share(batch)
    chosen = [order[start : start + batch][part] for start in range(0, len(cases) - batch + 1, batch)]
    yield from _read(_Batches(cases, size, augmented, (seed, _PICTURE, epoch)), chosen[skip:], world, workers)


def validation_batches(cases: Cases, *, size: int, world: World, workers: int = 0) -> Iterator[Batch]:
    """The images of process r, which are r, r + processes, ..., as they are. Raises as `training_batches`."""
    mine = np.arange(world.rank, len(cases), world.size)
    chosen = [mine[start : start + VALIDATION_BATCH] for start in range(0, len(mine), VALIDATION_BATCH)]
    yield from _read(_Batches(cases, size, False, None), chosen, world, workers)


class _Batches(Dataset[Any]):
    """Indexed by the numbers of a batch's images. An error is an item, since a worker's exception loses its text."""

    def __init__(self, cases: Cases, size: int, augmented: bool, key: tuple[int, ...] | None) -> None:
        self._cases, self._size, self._augmented, self._key = cases, size, augmented, key

    def __getitem__(self, numbers: NDArray[np.int64]) -> Batch | EdgeError:
        images = np.empty((len(numbers), 1, self._size, self._size), np.uint8)
        try:
            for place, number in enumerate(numbers.tolist()):
                images[place, 0] = self._view(number)
        except EdgeError as error:
            return error
        return torch.from_numpy(images), torch.from_numpy(self._cases.truth[numbers].astype(np.float32))

    def _view(self, number: int) -> NDArray[np.uint8]:
        """Image `number` as the network sees it: drawn from (key, number), or without a key as it is."""
        if self._key is None:
            return self._cases.read(number, self._size)
        rng = np.random.default_rng((*self._key, number))
        if self._augmented:
            return augment(self._cases.read(number, source_size(self._size)), rng, self._size)
        image = self._cases.read(number, self._size)
        return image[:, ::-1] if rng.random() < 0.5 else image


def _read(dataset: _Batches, chosen: Sequence[NDArray[np.int64]], world: World, workers: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,  # an item is a batch already
        sampler=chosen,
        collate_fn=_as_it_is,
        num_workers=min(workers, len(chosen)),
        pin_memory=world.device.type == "cuda",
        worker_init_fn=_start_worker,
    )
    for item in loader:
        if isinstance(item, EdgeError):
            raise item
        images, truth = item
        yield images.to(world.device, non_blocking=True), truth.to(world.device, non_blocking=True)


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's threads do not outlive a fork, and a worker is one thread of many already
