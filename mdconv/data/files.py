"""Image files of which nothing is known, in the form of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, load_image
from mdconv.data.cases import Cases


@dataclass(frozen=True)
class FileCases(Cases):
    """Files without labels or boxes; an image's id is its path. Made by `file_cases`."""

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        try:
            return load_image(Path(self.ids[index]), Preprocess(size))
        except InputRefusedError as error:
            raise InputRefusedError(f"{self.ids[index]}: {error}") from None

    def select(self, indices: Sequence[int]) -> FileCases:
        return file_cases([Path(self.ids[index]) for index in indices])


def file_cases(paths: Sequence[Path]) -> FileCases:
    """These files, in this order."""
    names = tuple(map(str, paths))
    return FileCases(
        name=f"{len(names)} files",
        labels=(),
        exclusive=False,
        truth=np.zeros((len(names), 0), bool),
        ids=names,
        patients=names,
        notice="",
    )
