"""Which faults does the accuracy gate find? One scale of an INT8 bundle at a time made 8 times too wide, or too narrow.

    python -m benchmarks.gate_faults out/mobilenet_v2-int8-onnxruntime                                   (eight layers)
    python -m benchmarks.gate_faults out/mobilenet_v2-int8-onnxruntime --all activations                    (every one)
    python -m benchmarks.gate_faults out/mobilenet_v2-int8-onnxruntime --all weights --factors 8 0.125 --images 50

Each fault goes before the gate in ONNX Runtime, on the phantoms that the demo's build is judged by. Prints a Markdown
table of the faults, and one of how many were found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from build_engine.bundle_writer import write_manifest
from build_engine.images import GATE_PHANTOMS, GATE_SEED
from calibration.gate import assess, judged
from calibration.judge import images_of, load_images, portable_runner
from calibration.limits import DEFAULTS
from edge.backends.onnxruntime import model_to_run, open_session
from edge.bundle import PORTABLE_MODEL, Bundle, load_bundle
from edge.gate import FAIL
from edge.preprocess import Preprocess
from edge.progress import ProgressLine
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


class Fault(NamedTuple):
    """What is wrong with a bundle: a tensor's scales times a factor."""

    kind: str
    """``activations`` or ``weights``."""
    tensor: str
    factor: float

    def __str__(self) -> str:
        return f"`{self.tensor}` {times(self.factor)}"


def times(factor: float) -> str:
    return f"x {factor:g}" if factor >= 1 else f"/ {1 / factor:g}"


def scaled_tensors(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the rounded activations and of the weights of a quantized `model`, in its own order."""
    constants = {constant.name for constant in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {
        "activations": [node.input[1] for node in pairs if node.op_type[0] == "Q" and node.input[0] not in constants],
        "weights": [node.input[1] for node in pairs if node.op_type[0] == "D" and node.input[0] in constants],
    }
    return {kind: list(dict.fromkeys(n.removesuffix(".scale") for n in found)) for kind, found in scales.items()}


def multiply_scale(model: onnx.ModelProto, tensor: str, factor: float) -> onnx.ModelProto:
    """A copy of a quantized `model` with the scale, or the channels' scales, of `tensor` times `factor`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (scale,) = [constant for constant in copy.graph.initializer if constant.name == f"{tensor}.scale"]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(factor), scale.name))
    return copy


def widen_scale(directory: Path, tensor: str, factor: float = 8) -> None:
    """Multiply the scale of `tensor` in the models of the bundle in `directory`; the manifest gets their new hashes.

    ONNX Runtime's own form of the model goes: its biases are in steps of the scales as they were.
    """
    manifest = load_bundle(directory).manifest
    lowering = manifest["lowering"]
    for name in {"model.int8.onnx", lowering.get("builder_model", "model.int8.onnx")}:
        onnx.save(multiply_scale(onnx.load(directory / name), tensor, factor), directory / name)
    if form := lowering.pop("onnxruntime_model", None):
        (directory / form).unlink()
    write_manifest(directory, {key: value for key, value in manifest.items() if key != "files"})


def judge_by_phantoms(bundle: Bundle, count: int, scratch: Path) -> Callable[[onnx.ModelProto], dict[str, Any]]:
    """The gate on `count` phantoms, for models of `bundle`; the phantoms are read, and float32 runs, once for all."""
    preprocess = Preprocess.from_manifest(bundle.manifest["preprocess"])
    write_folder(scratch / "images", count, GATE_SEED, preprocess.input_size)
    paths, truth, patients = images_of(scratch / "images", bundle.labels, preprocess)
    with ProgressLine("reading") as progress:
        images = np.concatenate(list(load_images(paths, preprocess, progress, "the phantoms")))
    float32 = portable_runner(bundle.directory / PORTABLE_MODEL)(images).logits

    def judge(model: onnx.ModelProto) -> dict[str, Any]:
        onnx.save(model, scratch / "model.onnx")
        session = open_session(scratch / "model.onnx", 1)

        def infer(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = session.run(["logits"], {"image": batch})[0]
            return logits

        known = iter(float32[:, None])
        one_by_one = (image[None] for image in images)
        labels, thresholds = bundle.labels, bundle.thresholds
        return assess(lambda _: next(known), infer, one_by_one, labels, thresholds, truth, DEFAULTS, patients)

    return judge


COLUMNS = (
    "scale",
    "verdict",
    "drop of the mean AUC (95 % interval)",
    "difference of a probability: mean, largest",
    "changed decisions",
    "drop of the mean sensitivity, specificity",
    "calibration error: float32, INT8",
)


def row(what: str, gate: dict[str, Any]) -> str:
    """One line of the table of faults."""
    figures = gate["figures"]
    mean, errors = figures["mean_auc"], figures["mean_calibration_error"]
    interval = "too few images" if mean["interval"] is None else "{:.4f} to {:.4f}".format(*mean["interval"])
    return (
        f"| {what} | {gate['verdict']} | {mean['drop']:.4f} ({interval}) | "
        f"{figures['mean_difference']:.4f}, {figures['max_difference']:.3f} | {figures['changed_decisions']:.2%} | "
        f"{figures['mean_sensitivity']['drop']:.4f}, {figures['mean_specificity']['drop']:.4f} | "
        f"{errors['reference']:.4f}, {errors['candidate']:.4f} |"
    )


def summary(gates: dict[Fault, dict[str, Any]]) -> Iterator[str]:
    """Lines of a table: of each kind of fault how many were found, and the most that any other changes."""
    yield (
        "| scales | found | by the mean AUC alone | of those not found, the most: "
        + ", ".join(name.removeprefix("max_").replace("_", " ") for name in DEFAULTS.to_json())
        + " |"
    )
    yield "|---|---|---|---|"
    for kind, factor in dict.fromkeys((fault.kind, fault.factor) for fault in gates):
        these = [gate for fault, gate in gates.items() if (fault.kind, fault.factor) == (kind, factor)]
        missed = [judged(gate["figures"]) for gate in these if gate["verdict"] != FAIL]
        by_area = sum("max_auc_drop" in gate["failed"] for gate in these)
        most = ", ".join(f"{max(each[name] or 0 for each in missed):.4f}" for name in missed[0]) if missed else "-"
        yield f"| {kind} {times(factor)} | {len(these) - len(missed)} of {len(these)} | {by_area} | {most} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tensors", nargs="+", default=TENSORS, metavar="NAME", help="default: eight")
    which.add_argument("--all", nargs="+", choices=("activations", "weights"), default=(), help="all scales of these")
    parser.add_argument("--factors", nargs="+", type=float, default=[8.0], metavar="X", help="default: 8")
    parser.add_argument(
        "--images", type=int, default=GATE_PHANTOMS, metavar="N", help="phantoms (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle)
    model = onnx.load(model_to_run(bundle))
    tensors = {kind: names for kind, names in scaled_tensors(model).items() if kind in options.all}
    tensors = tensors or {"activations": list(options.tensors)}
    faults = [Fault(kind, name, x) for kind, names in tensors.items() for x in options.factors for name in names]
    gates = {}
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        judge = judge_by_phantoms(bundle, options.images, Path(scratch))
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        print(row("as built", judge(model)), flush=True)
        for fault in faults:
            gates[fault] = judge(multiply_scale(model, fault.tensor, fault.factor))
            print(row(str(fault), gates[fault]), flush=True)
    print("\n" + "\n".join(summary(gates)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
