"""The benchmark of the guard counts what it is given."""

from __future__ import annotations

import numpy as np

from benchmarks.foreign_images import no_radiographs, other_modalities, real_radiographs, strange_phantoms
from benchmarks.guard import Judged, row
from mdconv.data.phantom import render


def judged(scores: list[float], refused: list[bool]) -> Judged:
    return Judged(np.array(refused), np.array(scores), 1.0)


def test_a_row_by_hand() -> None:
    """Of the eight pairs of a phantom and a foreign image the foreign one is farther in seven."""
    phantoms = judged([0.5, 1.5], [False, False])
    found = judged([1.0, 3.0, 4.0, float("5.5")], [True, True, False, False])
    assert row("kind", found, phantoms, 2.0) == "| kind | 4 | 0.875 | 50% | 75% | 100% | 1.0 to 5.5 |"


def test_the_kinds_are_there_and_differ() -> None:
    phantom = render(4_800_000, 96).image
    kinds = [*strange_phantoms([phantom]), *no_radiographs(96, 2), *real_radiographs(), *other_modalities()]
    names = [name for name, _ in kinds]
    assert len(set(names)) == len(names) == 20
    for name, pictures in kinds:
        for picture in pictures:
            assert picture.dtype == np.uint8 and picture.ndim == 2, name
            assert picture.shape != phantom.shape or (picture != phantom).any(), name
