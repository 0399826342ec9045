"""Where the elements of an (N, C, H, W) tensor lie in each layout of the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUTS = ("linear", "chw4", "chw32", "hwc8")
"""In the order of the kernels' Layout."""

LAYOUTS_OF = {
    "float32": ("linear",),
    "float16": ("linear", "hwc8"),
    "int8": ("linear", "chw4", "chw32"),
}

FORMATS = tuple((dtype, layout) for dtype, layouts in LAYOUTS_OF.items() for layout in layouts)

_UNIT = {"linear": 1, "chw4": 4, "chw32": 32, "hwc8": 8}


def padded_channels(channels: int, layout: str) -> int:
    """`channels` rounded up to what the layout stores."""
    return -(-channels // _UNIT[layout]) * _UNIT[layout]


def pack(tensor: NDArray[Any], layout: str, filler: Any) -> NDArray[Any]:
    """The (N, C, H, W) tensor as it lies in memory, contiguous; padding channels hold `filler`."""
    n, c, h, w = tensor.shape
    padded = np.full((n, padded_channels(c, layout), h, w), filler, tensor.dtype)
    padded[:, :c] = tensor
    if layout == "hwc8":
        return np.ascontiguousarray(padded.transpose(0, 2, 3, 1))  # (N, H, W, C')
    if layout == "linear":
        return padded
    blocks = padded.reshape(n, -1, _UNIT[layout], h, w)
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 4, 2))  # (N, C' / unit, H, W, unit)


def unpack(memory: NDArray[Any], layout: str, shape: tuple[int, int, int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The (N, C, H, W) tensor of what `pack` makes, and its padding channels (N, C' - C, H, W)."""
    n, c, h, w = shape
    stored = padded_channels(c, layout)
    if layout == "hwc8":
        padded = memory.reshape(n, h, w, stored).transpose(0, 3, 1, 2)
    else:
        unit = _UNIT[layout]
        padded = memory.reshape(n, stored // unit, h, w, unit).transpose(0, 1, 4, 2, 3).reshape(n, stored, h, w)
    return padded[:, :c], padded[:, c:]
