"""What do MD-Conv's larger kernels cost on a processor: beside plain 3x3 depthwise convolutions, in each lowering?

    python -m benchmarks.lowering_speed [--precision int8 fp32] [--backend openvino onnxruntime] [--rounds 9]

Builds the demo's network three times into a temporary folder, with random weights: with plain 3x3 depthwise
convolutions, and with MD-Conv in all layers in the lowerings ``padded`` and ``split``. Then compares them as
`benchmarks.cpu_speed` does, in turns, at batch 1: ratios are to the plain one.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.cpu_speed import compare, timed
from build_engine.make import main as make
from edge.backends import CHOICES, open_backend
from edge.bundle import load_bundle

VARIANTS = {
    "plain 3x3": ("none", "padded"),
    "MD-Conv, padded": ("all", "padded"),
    "MD-Conv, split": ("all", "split"),
}
"""Stages with MD-Conv, and the lowering."""


def build(output: Path, precision: str, md_stages: str, lowering: str, size: int) -> None:
    """Build one; what it is worth does not matter, so it is calibrated on few images and judged by none."""
    options = ["--network", "mobilenet_v2", "--md-stages", md_stages, "--lowering", lowering, "--input-size", str(size)]
    options += ["--backend", "onnxruntime", "--calibration-images", "16", "--no-bias-correction", "--no-gate"]
    with contextlib.redirect_stdout(sys.stderr):
        status = make([f"--{precision}", *options, "--output", str(output)])
    if status:
        sys.exit(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=("int8", "fp32"), default=["int8", "fp32"])
    parser.add_argument("--backend", nargs="+", choices=CHOICES[1:], default=["openvino", "onnxruntime"])
    parser.add_argument("--input-size", type=int, default=448)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, 1, options.input_size, options.input_size), np.uint8)
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        for precision in options.precision:
            for number, (md_stages, lowering) in enumerate(VARIANTS.values()):
                build(Path(scratch, f"{precision}-{number}"), precision, md_stages, lowering, options.input_size)
        for precision in options.precision:
            bundles = [load_bundle(Path(scratch, f"{precision}-{number}")) for number in range(len(VARIANTS))]
            for name in options.backend:
                print(f"\n{precision}, {name}", flush=True)
                ways = [timed(open_backend(bundle, name).infer, image) for bundle in bundles]
                compare(dict(zip(VARIANTS, ways)), options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
