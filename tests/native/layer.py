"""One MD-Conv layer on one shape, and operands to run it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
"""In the order of the kernels' DataType."""

ACTIVATIONS = ("none", "relu", "relu6", "hardswish")


@dataclass(frozen=True)
class Layer:
    """What the kernels call a Problem. `x_scale` and `y_scale` are int8's only."""

    dtype: str
    layout: str
    channel_splits: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    height: int
    width: int
    stride: int = 1
    activation: str = "relu6"
    batch: int = 1
    x_scale: float = 1.0
    y_scale: float = 1.0

    @property
    def channels(self) -> int:
        return sum(self.channel_splits)

    @property
    def largest(self) -> int:
        return max(self.kernel_sizes)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.height, self.width

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, -(-self.height // self.stride), -(-self.width // self.stride)


@dataclass(frozen=True)
class Operands:
    """`x` (N, C, H, W) and `weight` (C, 1, K, K) of the layer's type; `bias` (C,) of it, but float32 for int8;
    `weight_scale` float32 (C,) for int8, else None."""

    x: NDArray[Any]
    weight: NDArray[Any]
    bias: NDArray[Any]
    weight_scale: NDArray[np.float32] | None


def random_operands(layer: Layer, rng: np.random.Generator) -> Operands:
    """Operands whose outputs reach both ends of the activation and, in int8, saturate here and there."""
    weight = np.zeros((layer.channels, 1, layer.largest, layer.largest), DTYPES[layer.dtype])
    first = 0
    for size, count in zip(layer.kernel_sizes, layer.channel_splits):
        margin = (layer.largest - size) // 2
        kernel = weight[first : first + count, :, margin : margin + size, margin : margin + size]
        if layer.dtype == "int8":
            kernel[...] = rng.integers(-128, 128, kernel.shape)
        else:
            kernel[...] = rng.normal(0, 2.5 / size, kernel.shape)
        first += count
    if layer.dtype != "int8":
        x = rng.normal(0, 1.5, layer.x_shape).astype(DTYPES[layer.dtype])
        return Operands(x, weight, rng.normal(1, 1, layer.channels).astype(DTYPES[layer.dtype]), None)
    x = rng.integers(-128, 128, layer.x_shape, dtype=np.int8)
    # An int8 sum has a deviation of about 5500 K: codes get one of 30 to 100.
    codes = rng.uniform(30, 100, layer.channels) / (5500 * layer.largest)
    weight_scale = (codes * layer.y_scale / layer.x_scale).astype(np.float32)
    bias = (rng.normal(20, 30, layer.channels) * layer.y_scale).astype(np.float32)
    return Operands(x, weight, bias, weight_scale)
