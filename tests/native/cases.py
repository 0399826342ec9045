"""The layers on which the kernels are compared with the reference: seeded, and the same in every run."""

from __future__ import annotations

import itertools

import numpy as np

from tests.native.layer import ACTIVATIONS, Layer
from tests.native.layouts import FORMATS

CHANNELS = (1, 960, 2, 33, 96, 3, 144, 31, 576, 8, 17, 384, 64, 5, 192, 32)
SIZES = (113, 1, 7, 28, 56, 3, 15, 99, 14, 2, 31, 112, 5, 57, 16, 9, 71, 20)
KERNELS = ((3, 5), (5, 3), (3,), (5,), (7,), (3, 5, 7), (7, 3), (5, 7), (7, 5, 3), (3, 7, 5, 3))


def sweep(per_layout: int, most_outputs: int = 120_000, seed: int = 20) -> list[Layer]:
    """`per_layout` layers for each type and layout. Channels, heights and activations walk through their lists, which
    have different lengths; the rest is random. No layer has more than `most_outputs` at stride 1, or one a channel."""
    rng = np.random.default_rng(seed)
    return [_layer(dtype, layout, index, most_outputs, rng) for dtype, layout in FORMATS for index in range(per_layout)]


def _layer(dtype: str, layout: str, index: int, most_outputs: int, rng: np.random.Generator) -> Layer:
    channels = CHANNELS[index % len(CHANNELS)]
    kernels = KERNELS[int(rng.integers(len(KERNELS)))][:channels]
    batch = (1, 3)[int(rng.integers(2))] if channels < 200 else 1
    height, width = SIZES[index % len(SIZES)], int(rng.choice(SIZES))
    while batch * channels * height * width > max(most_outputs, batch * channels):
        height, width = (-(-height // 2), width) if height > width else (height, -(-width // 2))
    return Layer(
        dtype,
        layout,
        _split(channels, len(kernels), index, rng),
        kernels,
        height,
        width,
        stride=1 + int(rng.integers(2)),
        activation=ACTIVATIONS[index % len(ACTIVATIONS)],
        batch=batch,
        x_scale=float(np.float32(rng.uniform(0.005, 0.1))),
        y_scale=float(np.float32(rng.uniform(0.005, 0.2))),
    )


def _split(channels: int, groups: int, index: int, rng: np.random.Generator) -> tuple[int, ...]:
    """`channels` into even parts for every other index, else into random ones, each at least 1."""
    if index % 2 == 0:
        cuts = [channels * i // groups for i in range(1, groups)]
    else:
        cuts = sorted(int(cut) for cut in rng.choice(np.arange(1, channels), groups - 1, replace=False))
    edges = [0, *cuts, channels]
    return tuple(end - start for start, end in itertools.pairwise(edges))
