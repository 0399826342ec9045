"""Batches of a data set, in an order and with an augmentation that depend on the seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mdconv.data.augment import augment, source_size
from mdconv.data.cases import Cases
from mdconv.distributed import World

_ORDER, _PICTURE = range(2)


class _Epoch(Dataset[tuple[Tensor, Tensor]]):
    """One epoch's images as they are trained on: each drawn anew from (seed, epoch, its number)."""

    def __init__(self, cases: Cases, size: int, augmented: bool, seed: int, epoch: int) -> None:
        self._cases, self._size, self._augmented = cases, size, augmented
        self._key = (seed, _PICTURE, epoch)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((*self._key, index))
        image: NDArray[np.uint8]
        if self._augmented:
            image = augment(self._cases.read(index, source_size(self._size)), rng, self._size)
        else:
            image = self._cases.read(index, self._size)
            if rng.random() < 0.5:
                image = image[:, ::-1]
        truth = torch.from_numpy(self._cases.truth[index].astype(np.float32))
        return torch.from_numpy(np.ascontiguousarray(image))[None], truth


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
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's part of each batch of an epoch: images (n, 1, size, size) uint8 and truth (n, L) float32.

    Args:
        batch: images a step over all processes, which their number divides; an incomplete last batch is left out.
        augmented: random crop, rotation and mirroring; without it mirroring alone.
        skip: batches left out at the start, done before an interruption.
        workers: processes that read images; 0 reads in this one.

    Raises:
        InputRefusedError: an image cannot be read; it is named.
    """
    order = np.random.default_rng((seed, _ORDER, epoch)).permutation(len(cases))
    steps = len(cases) // batch
    part = world.share(batch)
    chosen = [order[step * batch : (step + 1) * batch][part].tolist() for step in range(skip, steps)]
    dataset = _Epoch(cases, size, augmented, seed, epoch)
    loader = DataLoader(dataset, batch_sampler=chosen, num_workers=workers, pin_memory=world.device.type == "cuda")
    for images, truth in loader:
        yield images.to(world.device, non_blocking=True), truth.to(world.device, non_blocking=True)
