"""The least time of the network's MD-Conv layers on Jetson modules, modelled: bytes and instructions at peak rates.

    python benchmarks/kernel_roofline.py

Nothing here was measured on a Jetson. A layer takes at least as long as its compulsory bytes (X, Y and the weights,
each once) take at the module's memory bandwidth, and as its arithmetic takes if every lane finishes an instruction a
clock (plugin/instructions.csv, linear layout, the tactic with most rows; half of the channels 3x3 and half 5x5). The
larger of the two is the bound. What lies in the L2 cache already can be faster than the first.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from build_engine.jetsons import jetson  # noqa: E402
from tests.native.layer import DTYPES  # noqa: E402
from tests.native.network_layers import NETWORK_LAYERS, network_layer  # noqa: E402

MODULES = [jetson(name) for name in ("Orin Nano 8 GB", "Orin NX 16 GB", "AGX Orin 64 GB", "Thor T5000")]


def instructions(dtype: str, stride: int) -> float:
    """An output element."""
    with (ROOT / "plugin" / "instructions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["type"], row["layout"]) == (dtype, "linear")]
    return min(float(row["mean"]) for row in rows if int(row["stride"]) == stride)


def table(dtype: str) -> list[tuple[str, ...]]:
    """A line for each layer: shape, bytes, multiply-accumulates; a module's µs of memory and issue, and its bound."""
    lines = [("C, H = W, stride", "KB", "MMAC", *(module.name for module in MODULES))]
    for channels, size, stride in NETWORK_LAYERS:
        layer = network_layer(dtype, "linear", channels, size, stride)
        outputs = int(np.prod(layer.y_shape))
        item = np.dtype(DTYPES[dtype]).itemsize
        weights = channels * layer.largest**2
        bytes_ = item * (int(np.prod(layer.x_shape)) + outputs + weights)
        macs = outputs * (9 + 25) // 2
        bounds = []
        for module in MODULES:
            memory = bytes_ / module.gigabytes * 1e-3
            issue = outputs * instructions(dtype, stride) / (module.cores * module.megahertz)
            bounds.append(f"{memory:.1f} / {issue:.1f} {'memory' if memory >= issue else 'issue'}")
        lines.append((f"{channels}, {size}, {stride}", f"{bytes_ / 1e3:.0f}", f"{macs / 1e6:.1f}", *bounds))
    return lines


def markdown(lines: list[tuple[str, ...]]) -> str:
    head, *rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rows])


def main() -> None:
    for dtype in ("int8", "float16"):
        print(f"{dtype}, modelled:\n\n{markdown(table(dtype))}\n")


if __name__ == "__main__":
    main()
