"""A set of labelled image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, load_image
from mdconv.data.cases import Cases


@dataclass(frozen=True)
class FileCases(Cases):
    """Images that are read from their files each time."""

    files: tuple[str, ...]
    """One an image: its path."""

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        try:
            return load_image(Path(self.files[index]), Preprocess(size))
        except InputRefusedError as error:
            raise InputRefusedError(f"{self.files[index]}: {error}") from None

    def select(self, indices: Sequence[int]) -> FileCases:
        chosen = list(indices)
        return replace(
            self,
            truth=self.truth[chosen],
            ids=tuple(self.ids[i] for i in chosen),
            patients=tuple(self.patients[i] for i in chosen),
            files=tuple(self.files[i] for i in chosen),
        )
