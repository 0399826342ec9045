"""Phantoms as a data set that holds no picture: each is rendered when it is read, at the size that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge.labels import CHESTXRAY14
from mdconv.data.cases import Box, Cases
from mdconv.data.phantom import NOTICE, boxes_of, labels_of, render


@dataclass(frozen=True)
class PhantomsOnDemand(Cases):
    """For sets that are read once. Made by `phantoms_on_demand`."""

    seeds: tuple[int, ...]

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        return render(self.seeds[index], size).image

    def select(self, indices: Sequence[int]) -> PhantomsOnDemand:
        return replace(self, **self.chosen(indices), seeds=tuple(self.seeds[i] for i in indices))

    def boxes(self, index: int, size: int) -> list[Box]:
        return [Box(*box) for box in boxes_of(self.seeds[index], size)]


def phantoms_on_demand(seeds: range) -> PhantomsOnDemand:
    """The phantoms of `seeds`, one patient each; those that `mdconv.data.phantom.sets.phantom_cases` has in memory."""
    names = tuple(f"phantom-{seed:07d}" for seed in seeds)
    return PhantomsOnDemand(
        name=f"phantoms {seeds[0]} to {seeds[-1]}",
        labels=CHESTXRAY14,
        exclusive=False,
        truth=np.array([labels_of(seed) for seed in seeds]),
        ids=names,
        patients=names,
        notice=NOTICE,
        seeds=tuple(seeds),
    )
