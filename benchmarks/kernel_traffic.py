"""What the fused kernel moves to and from global memory, counted, beside what it must and what an unfused runtime does.

    python benchmarks/kernel_traffic.py

One image through the network's depthwise layers at 448x448, the channels split 1:1 between 3x3 and 5x5. The shipped
kernels run on this CPU (plugin/host), whole, and each request of a warp counts the 32-byte sectors that it touches:
what leaves the multiprocessor for the L2 cache if nothing is found in L1. For each type, layout and layer:

- must: X read once, Y written once (with the padding channels that the layout stores), weights, biases and scales
- fused: what the default tactic requests, and its ratio to that
- unfused: split, a convolution a kernel size, concat, bias and activation (benchmarks/kernels) in the linear layout,
  and how many times the fused kernel's that is
- conflicts: the share of wavefronts of shared memory that bank conflicts cause
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.native.host_kernel import default_tactic, run, run_unfused  # noqa: E402
from tests.native.layer import DTYPES, Layer, random_operands  # noqa: E402
from tests.native.layouts import FORMATS, padded_channels  # noqa: E402
from tests.native.network_layers import NETWORK_LAYERS, network_layer  # noqa: E402


@dataclass(frozen=True)
class Traffic:
    """Bytes of one run of a layer."""

    must: int
    fused: int
    unfused: int
    conflict_share: float


def traffic_of(layer: Layer) -> Traffic:
    """Count a layer's bytes, exactly."""
    operands = random_operands(layer, np.random.default_rng(0))
    stored = padded_channels(layer.channels, layer.layout) * np.dtype(DTYPES[layer.dtype]).itemsize
    must = stored * sum(n * h * w for n, _, h, w in (layer.x_shape, layer.y_shape))
    must += operands.weight.nbytes + operands.bias.nbytes
    must += 0 if operands.weight_scale is None else operands.weight_scale.nbytes
    fused = run(layer, operands, count=True).report
    return Traffic(must, fused.global_bytes, unfused_bytes(replace(layer, layout="linear")), fused.conflict_share)


@functools.cache
def unfused_bytes(layer: Layer) -> int:
    return run_unfused(layer, random_operands(layer, np.random.default_rng(0)), count=True).report.global_bytes


def main() -> None:
    print("| type | layout | C | input | stride | tactic | must | fused | ratio | unfused | ratio | conflicts |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for dtype, layout in FORMATS:
        for shape in NETWORK_LAYERS:
            layer = network_layer(dtype, layout, *shape)
            seen = traffic_of(layer)
            print(
                f"| {dtype} | {layout} | {layer.channels} | {layer.height}x{layer.width} | {layer.stride} "
                f"| {default_tactic(layer)} | {seen.must:,} | {seen.fused:,} | {seen.fused / seen.must:.3f} "
                f"| {seen.unfused:,} | {seen.unfused / seen.fused:.2f} | {seen.conflict_share:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
