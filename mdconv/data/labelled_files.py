"""Labelled images that are files, decoded and resized as on the device."""

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
class LabelledFiles(Cases):
    """A data set of image files. What `edge.preprocess` makes of a file is what the deployed network will see."""

    files: tuple[str, ...]
    """One path an image, as text: 100,000 `Path` objects take several times the memory."""

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        file = self.files[index]
        try:
            return load_image(Path(file), Preprocess(input_size=size))
        except InputRefusedError as error:
            raise InputRefusedError(f"{file}: {error}") from None

    def select(self, indices: Sequence[int]) -> LabelledFiles:
        return replace(self, **self.chosen(indices), files=tuple(self.files[i] for i in indices))
