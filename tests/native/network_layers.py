"""The depthwise layers of the project's own network at 448x448, with half of the channels 3x3 and half 5x5."""

from __future__ import annotations

from mdconv.networks.mobilenet_v2 import STAGES, STEM_CHANNELS
from tests.native.layer import Layer

INPUT_SIZE = 448


def _shapes() -> list[tuple[int, int, int]]:
    """(channels, height and width of the input, stride), each once; without the first stage, which expands nothing."""
    shapes = []
    channels, size = STEM_CHANNELS, INPUT_SIZE // 2
    for expansion, out_channels, blocks, first_stride in STAGES.values():
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            if expansion > 1:
                shapes.append((channels * expansion, size, stride))
            channels, size = out_channels, -(-size // stride)
    return list(dict.fromkeys(shapes))


NETWORK_LAYERS = _shapes()


def network_layer(dtype: str, layout: str, channels: int, size: int, stride: int) -> Layer:
    first = channels // 2
    return Layer(dtype, layout, (first, channels - first), (3, 5), size, size, stride, x_scale=0.02, y_scale=0.03)
