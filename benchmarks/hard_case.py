"""A network that INT8 is bad at, and how much of that the repairs mend.

    python -m benchmarks.hard_case

The demo checkpoint, rewritten so that the channels before and behind each depthwise layer differ in size by up to
1:1000, with the same function. A channel is multiplied by a factor in the batch norm behind the layer that writes it,
and the weights that read it are divided by the factor. Factors are log-uniform between 1 / spread and 1. Those of
channels that reach ReLU6's bound on one of the phantoms are 1, since min(6, f x) is not f min(6, x); any other stays
below the bound, the clip does nothing to it, and so the function is kept to float32 rounding. How well, is printed.

The network's INT8 forms are then compared with its own float32 form on synthetic phantoms that neither saw; and so is
its equalized float32 form, whose function may differ where an image drives a channel far beyond what calibration saw.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from build_engine.export import to_onnx
from build_engine.lowering import lower
from build_engine.make import parse
from calibration.equalization import equalize
from calibration.gate import Infer, assess
from calibration.quantize import Images, quantize
from edge.backends.onnxruntime import open_session
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.data.phantom import CALIBRATION_SEEDS, TEST_SEEDS, labels_of, render
from mdconv.layers import MDConv
from mdconv.networks import normalise
from mdconv.weights import DEMO_CHECKPOINT

SPREAD = 1000.0
BOUND = 6.0
"""Of ReLU6."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "minmax, no repair": ("--calibration-method", "minmax", "--no-equalization", "--no-bias-correction"),
    "no repair": ("--no-equalization", "--no-bias-correction"),
    "bias correction alone": ("--no-equalization",),
    "equalization alone": ("--no-bias-correction",),
    "default": (),
    "minmax, both": ("--calibration-method", "minmax"),
}
"""Ways to quantize, as options of make.py."""


class Joint(NamedTuple):
    """A row of convolution, batch norm and ReLU6, and the convolution that reads it."""

    writer: nn.Sequential
    reader: nn.Module


class Phantoms:
    """Rendered phantoms, to calibrate on."""

    def __init__(self, seeds: range, size: int) -> None:
        self.seeds, self.size = seeds, size
        self.digest = f"synthetic phantoms, seeds {seeds.start} to {seeds.stop - 1}"

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (render(seed, self.size).image[None, None] for seed in self.seeds)


def joints(network: Any) -> list[Joint]:
    """Those before and behind the depthwise layers of a MobileNet-v2, in order."""
    found, before = [], network.stem
    for stage in network.STAGES:
        for block in network.get_submodule(stage):
            before = block.expand if len(block.expand) else before
            found += [Joint(before, block.depthwise[0]), Joint(block.depthwise, block.project[0])]
    return found


@torch.inference_mode()
def spread_channels(checkpoint: Checkpoint, images: Phantoms, spread: float = SPREAD, seed: int = 0) -> Checkpoint:
    """The same function with channels of very different size (see the module's text). `checkpoint` is left alone."""
    network: Any = copy.deepcopy(checkpoint.model)
    found = joints(network)
    peaks = [torch.zeros(1)] * len(found)

    def watch(index: int) -> Any:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            peaks[index] = torch.maximum(peaks[index], output.amax(dim=(0, 2, 3)))

        return note

    hooks = [joint.writer.register_forward_hook(watch(index)) for index, joint in enumerate(found)]
    for image in images:
        network(normalise(torch.from_numpy(image), checkpoint.config.get("in_channels", 3)))
    for hook in hooks:
        hook.remove()
    rng = np.random.default_rng(seed)
    for joint, peak in zip(found, peaks):
        factors = torch.from_numpy(spread ** -rng.random(len(peak)))
        _multiply(joint, torch.where(peak < BOUND, factors, 1.0))
    return Checkpoint(**{**vars(checkpoint), "model": network, "sha256": ""})


def _multiply(joint: Joint, factors: Tensor) -> None:
    """Multiply the channels of the row by `factors` (C,), float64, and divide the weights that read them."""
    norm: Any = joint.writer[1]
    for values in (norm.weight, norm.bias):
        values.copy_(values.double() * factors)
    if isinstance(joint.reader, MDConv):
        parts = zip(joint.reader.convs, torch.split(factors, list(joint.reader.channel_splits)))
    else:
        parts = zip([joint.reader], [factors])
    for convolution, part in parts:
        weight: Any = convolution.get_parameter("weight")
        depthwise = weight.shape[1] == 1
        weight.copy_(weight.double() / part.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)))


def runner(model: onnx.ModelProto) -> Infer:
    """Logits (N, L) of images (N, 1, S, S), by ONNX Runtime as a bundle uses it."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(lower(model, "padded"), path)
        session = open_session(path, threads=torch.get_num_threads())
    return lambda images: np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])


def judge(reference: Infer, candidate: Infer, images: Phantoms, checkpoint: Checkpoint) -> dict[str, Any]:
    """The gate's figures of `candidate`, a form of `checkpoint`."""
    truth = np.array([labels_of(seed) for seed in images.seeds])
    gate = assess(reference, candidate, images, checkpoint.labels, checkpoint.thresholds, truth)
    figures: dict[str, Any] = gate["figures"]
    return figures


def quantized_as(options: Sequence[str], model: onnx.ModelProto, images: Images) -> onnx.ModelProto:
    """`model` quantized with these options of make.py."""
    chosen = parse(options)
    return quantize(
        model,
        images,
        chosen.calibration_method,
        equalization=chosen.equalization,
        bias_correction=chosen.bias_correction,
    )[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT, help="a MobileNet-v2 (default: the demo's)")
    parser.add_argument("--size", type=int, help="pixels a side (default: the checkpoint's)")
    parser.add_argument("--images", type=int, default=200, help="phantoms to judge on (default: 200)")
    parser.add_argument("--calibration-images", type=int, default=64, help="phantoms to calibrate on (default: 64)")
    parser.add_argument("--spread", type=float, default=SPREAD, help="largest factor (default: 1000; 1: as it is)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--save", type=Path, help="safetensors file to write the rewritten checkpoint to, for make.py")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    demo = load_checkpoint(options.checkpoint)
    size = options.size or demo.input_size
    calibration = Phantoms(CALIBRATION_SEEDS[: options.calibration_images], size)
    images = Phantoms(TEST_SEEDS[: options.images], size)
    hard = spread_channels(demo, calibration, options.spread)
    if options.save:
        save_checkpoint(hard, options.save)
    model = to_onnx(hard, 1, size)
    reference = runner(model)
    kept = judge(runner(to_onnx(demo, 1, size)), reference, images, demo)
    print(f"{options.images} synthetic phantoms of {size} pixels, calibrated on {options.calibration_images} others")
    print(f"float32, spread 1:{options.spread:g} against the checkpoint itself: {_shown(kept)}", flush=True)
    equalized, _ = equalize(model, calibration)
    rows = {"float32": kept, "float32, equalized": judge(reference, runner(equalized), images, demo)}
    print(f"float32, equalized, against that: {_shown(rows['float32, equalized'])}", flush=True)
    for name in options.variants:
        rows[name] = judge(reference, runner(quantized_as(VARIANTS[name], model, calibration)), images, demo)
        print(f"INT8, {name}: {_shown(rows[name])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _shown(figures: dict[str, Any]) -> str:
    auc = figures["mean_auc"]
    return (
        f"mean AUC {auc['reference']:.4f} to {auc['candidate']:.4f}, a drop of {auc['drop']:.4f}; a probability "
        f"differs by {figures['mean_difference']:.2g} (mean), {figures['max_difference']:.2g} (largest)"
    )


if __name__ == "__main__":
    sys.exit(main())
