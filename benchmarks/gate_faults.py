"""Which faults does the accuracy gate find? One activation scale of an INT8 bundle at a time made 8 times too wide.

    python -m benchmarks.gate_faults out/mobilenet_v2-int8-onnxruntime

Each copy of the bundle, its manifest's hashes renewed, goes before the gate in ONNX Runtime, on the phantoms that the
demo's build is judged by. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from build_engine.bundle_writer import write_manifest
from build_engine.images import GATE_PHANTOMS, GATE_SEED
from calibration.judge import judge
from calibration.limits import DEFAULTS
from edge.backends import open_backend
from edge.bundle import load_bundle
from mdconv.data.phantom.folder import write_folder

TENSORS = (
    "normalised",
    "stem.relu6",
    "layer1.0.project",
    "layer2.1.depthwise.relu6",
    "layer3.3.add",
    "layer4.2.add",
    "layer5.0.depthwise",
    "layer6.0.project",
)
"""Rounded activations of the demo network, from its input to its last layers."""


def widen_scale(directory: Path, tensor: str, factor: float = 8) -> None:
    """Multiply the scale of `tensor` in the models of the bundle in `directory`; the manifest gets their new hashes."""
    manifest = load_bundle(directory).manifest
    for name in {"model.int8.onnx", manifest["lowering"].get("builder_model", "model.int8.onnx")}:
        model = onnx.load(directory / name)
        (scale,) = [constant for constant in model.graph.initializer if constant.name == f"{tensor}.scale"]
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(factor), scale.name))
        onnx.save(model, directory / name)
    write_manifest(directory, {key: value for key, value in manifest.items() if key != "files"})


def gate_of(directory: Path, images: Path) -> dict[str, Any]:
    """What the gate says of a bundle in ONNX Runtime, by a folder of labelled images."""
    bundle = load_bundle(directory)
    with open_backend(bundle, "onnxruntime") as backend:
        return judge(bundle, backend, images, "images", DEFAULTS, lambda text: None)


def row(what: str, gate: dict[str, Any]) -> str:
    """One line of the table."""
    figures = gate["figures"]
    mean, errors = figures["mean_auc"], figures["mean_calibration_error"]
    low, high = mean["interval"]
    return (
        f"| {what} | {gate['verdict']} | {mean['drop']:.4f} ({low:.4f} to {high:.4f}) | "
        f"{figures['mean_difference']:.4f}, {figures['max_difference']:.3f} | "
        f"{errors['reference']:.4f}, {errors['candidate']:.4f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--tensors", nargs="+", default=TENSORS, metavar="NAME")
    parser.add_argument("--factor", type=float, default=8.0)
    options = parser.parse_args(arguments)
    size = load_bundle(options.bundle).input_size
    print(
        "| scale | verdict | drop of the mean AUC (95 % interval) | difference of a probability: mean, largest "
        "| calibration error: float32, INT8 |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        images, copy = Path(scratch) / "images", Path(scratch) / "bundle"
        write_folder(images, GATE_PHANTOMS, GATE_SEED, size)
        print(row("as built", gate_of(options.bundle, images)), flush=True)
        for tensor in options.tensors:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(options.bundle, copy)
            widen_scale(copy, tensor, options.factor)
            print(row(f"`{tensor}` x {options.factor:g}", gate_of(copy, images)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
