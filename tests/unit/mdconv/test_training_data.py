"""Batches: their order, their augmentation, what reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edge.errors import InputRefusedError
from mdconv.data.augment import augment, source_size
from mdconv.distributed import World
from mdconv.training_data import training_batches, validation_batches
from tests.unit.mdconv.squares import Squares, squares

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
CASES = squares(21, seed=3)


def an_epoch(cases: Squares = CASES, **changes: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    settings: dict[str, Any] = {"size": 32, "batch": 8, "augmented": True, "seed": 5, "epoch": 2, "world": ALONE}
    return list(training_batches(cases, **{**settings, **changes}))


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for x, y in zip(one, other) for a, b in zip(x, y))


def numbered(count: int) -> Squares:
    """Images that say which they are: 32 x 32, the left half of value 2 n, the right one of 2 n + 1."""
    images = np.arange(2 * count, dtype=np.uint8).reshape(count, 1, 2).repeat(16, axis=2).repeat(32, axis=1)
    return replace(squares(count, seed=0), images=images)


def test_an_epoch_shows_each_image_once_some_mirrored_and_no_incomplete_batch() -> None:
    cases = numbered(43)
    batches = an_epoch(cases, augmented=False)
    assert [images.shape for images, _ in batches] == [(8, 1, 32, 32)] * 5
    pixels, truth = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    left = pixels[:, 0, 0, 0].int()
    number = left // 2
    assert len(set(number.tolist())) == 40
    assert number.tolist() != sorted(number.tolist())
    assert truth.dtype == torch.float32 and np.array_equal(truth.numpy() == 1, cases.truth[number.numpy()])
    mirrored = left % 2 == 1
    assert 10 < int(mirrored.sum()) < 30
    assert torch.equal(pixels[:, 0, 5, 31].int(), torch.where(mirrored, 2 * number, 2 * number + 1))


def test_order_and_augmentation_depend_on_seed_and_epoch_alone() -> None:
    epoch = an_epoch()
    assert same(epoch, an_epoch())
    assert not same(epoch, an_epoch(epoch=3)) and not same(epoch, an_epoch(seed=6))
    assert same(epoch[1:], an_epoch(skip=1))  # an interrupted epoch goes on with the batches that it would have had
    assert an_epoch(skip=2) == []


def test_augmented_images_are_views_of_the_image_at_its_source_size() -> None:
    """Each image of the batch is `augment` of that image at 8/7 of the size, by a generator of its own."""
    order = np.random.default_rng((5, 0, 2)).permutation(21)
    (images, _), _ = an_epoch()
    for place, number in enumerate(order[:8]):
        rng = np.random.default_rng((5, 1, 2, number))
        expected = augment(CASES.read(int(number), source_size(32)), rng, 32)
        assert np.array_equal(images[place, 0].numpy(), expected)


def test_processes_share_a_batch() -> None:
    parts = [an_epoch(world=World(rank, 2, CPU)) for rank in range(2)]
    together = [tuple(torch.cat(both) for both in zip(*pair)) for pair in zip(*parts)]
    assert same(together, an_epoch())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where fewer cores are visible
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_workers_read_the_same_in_the_same_order_and_name_what_they_cannot_read() -> None:
    assert same(an_epoch(workers=2), an_epoch())
    broken = replace(CASES, corrupt=CASES.ids[4])
    with pytest.raises(InputRefusedError, match=r"^square-3-4.png: not an image$"):
        an_epoch(broken, batch=7, workers=2)
    with pytest.raises(InputRefusedError, match=r"^square-3-4.png: not an image$"):
        list(validation_batches(broken, size=32, world=ALONE))


def test_validation_shows_all_images_as_they_are_each_process_its_own() -> None:
    cases = numbered(41)
    for rank in range(2):
        batches = list(validation_batches(cases, size=32, world=World(rank, 2, CPU)))
        assert (torch.cat([images for images, _ in batches])[:, 0, 0, 0] // 2).tolist() == list(range(rank, 41, 2))
