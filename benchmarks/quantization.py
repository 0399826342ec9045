"""INT8 by this project, NVIDIA's ModelOpt and ONNX Runtime, side by side: how accurate, and does TensorRT take it?

    python -m benchmarks.quantization --cache .cache --environment out/benchmarks/modelopt-venv

One float32 model, one set of calibration images (those that make.py takes for the demo), one set of images to judge on,
which neither training nor calibration nor the accuracy gate saw. ModelOpt and ONNX Runtime get the model with MD-Conv
lowered to padded convolutions, which computes the same: of MD-Conv as a function they know nothing, and ModelOpt would
leave it float32. All models are run by ONNX Runtime on the CPU, as a bundle is. ModelOpt needs other versions of ONNX
and ONNX Runtime, so it gets an environment of its own, made on the first run (a gigabyte and more) and used again.

Prints a Markdown table and, last, whether the default of make.py is at least as accurate as all others that TensorRT
takes. Exit status: 0 all ways ran, 2 wrong use, 3 one could not run here (its row says why).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.modelopt_environment import MODELOPT
from benchmarks.quantization_ways import DEFAULT_METHOD, OURS, PEERS, TITLES, Source
from build_engine.export import to_onnx
from build_engine.images import CALIBRATION_IMAGES, GATE_PHANTOMS, calibration_images
from build_engine.lowering import lower
from calibration.figures import agreement, figures_on_labels
from edge.backends.onnxruntime import open_session
from edge.engine_from_onnx import build_engine
from edge.errors import EdgeError, MachineError, UsageError, describe_os_error
from edge.labels import CHESTXRAY14
from edge.preprocess import Preprocess
from edge.results import probabilities
from mdconv.card import machine
from mdconv.checkpoint import Checkpoint, load_checkpoint
from mdconv.data.phantom import TEST_SEEDS
from mdconv.data.phantom.sets import phantom_set
from mdconv.weights import DEMO_CHECKPOINT

UNSEEN_SEEDS = TEST_SEEDS[GATE_PHANTOMS:]
"""Behind those that the gate judges by, which is what defaults were chosen with."""
WAYS = {**OURS, **PEERS}
ACCEPTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True)
class Row:
    """What came of one way to quantize."""

    way: str
    problem: str = ""
    """Why it did not run; the rest is empty then."""
    seconds: float = 0.0
    figures: Mapping[str, Any] | None = None
    """The gate's: ``mean_auc`` (absent if no finding has an area), ``mean_difference``, ``max_difference``."""
    tensorrt: str = ""


class Judges:
    """Images with their truth, and what float32 says of them."""

    def __init__(self, checkpoint: Checkpoint, model: Path, images: NDArray[np.uint8], truth: NDArray[np.bool_]):
        self.checkpoint, self.images, self.truth = checkpoint, images, truth
        self.expected = logits(model, images)

    def judge(self, model: Path) -> dict[str, Any]:
        """The figures of an int8 model against float32."""
        return self.figures(logits(model, self.images))

    def figures(self, found: NDArray[np.float32]) -> dict[str, Any]:
        """The figures of (N, L) logits `found`."""
        labels, thresholds = self.checkpoint.labels, self.checkpoint.thresholds
        points = np.array([thresholds[label] for label in labels])
        return {
            **agreement(probabilities(self.expected), probabilities(found), points),
            **figures_on_labels(self.expected, found, labels, self.truth, thresholds),
        }


def logits(model: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, L) of images (N, 1, S, S), one by one, by ONNX Runtime as a bundle uses it."""
    session = open_session(model, threads=len(os.sched_getaffinity(0)))
    return np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])


def taken_by_tensorrt(model: Path) -> str:
    """What NVIDIA's parser and builder say of a model: `ACCEPTED` and how much of it is int8, or `REFUSED` and why."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return "not checked: TensorRT-RTX is not installed"
    try:
        engine = model.with_suffix(".engine")
        layers = build_engine(model, engine, target="tensorrt-rtx", compute_capabilities=["86"])["layers"]
    except MachineError as error:
        said = str(error).splitlines()[0].replace(f"{model}", model.name)
        return f"{REFUSED}: {said}"
    kinds = [layer["Inputs"][0]["Datatype"] for layer in layers if layer["LayerType"] == "correlation"]
    return f"{ACCEPTED}, {kinds.count('Int8')} of {len(kinds)} convolutions in INT8"


def compare(ways: Iterable[str], source: Source, judges: Judges, scratch: Path) -> list[Row]:
    """A row a way, in order."""
    rows = []
    for way in ways:
        print(f"quantization: {way}", file=sys.stderr, flush=True)
        model = scratch / f"{way}.onnx"
        try:
            seconds = WAYS[way](source, model)
        except MachineError as error:
            rows.append(Row(way, problem=str(error)))
        else:
            rows.append(Row(way, seconds=seconds, figures=judges.judge(model), tensorrt=taken_by_tensorrt(model)))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| INT8 by | mean AUC | drop from float32 (95 % interval) | difference of a probability: mean, largest "
        "| processor seconds to quantize | TensorRT-RTX |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: Row) -> str:
    title = TITLES[row.way]
    if row.figures is None:
        return f"| {title} | not run: {row.problem} | | | | |"
    area, drop = _areas(row.figures)
    difference = f"{row.figures['mean_difference']:.4f}, {row.figures['max_difference']:.3f}"
    return f"| {title} | {area} | {drop} | {difference} | {row.seconds:.0f} | {row.tensorrt} |"


def _areas(figures: Mapping[str, Any]) -> tuple[str, str]:
    mean = figures.get("mean_auc")
    if mean is None:
        return "none", "none"
    interval = mean["interval"]
    between = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    return f"{mean['candidate']:.4f}", f"{mean['drop']:.4f}{between}"


def verdict(rows: Sequence[Row]) -> str:
    """Whether the default loses no more than any peer that TensorRT takes, by mean AUC and by mean difference."""
    ours = next((row.figures for row in rows if row.way == DEFAULT_METHOD), None)
    peers = [row for row in rows if row.way in PEERS and row.figures and not row.tensorrt.startswith(REFUSED)]
    if ours is None or not peers:
        return "No verdict: the default of make.py, or every other way that TensorRT takes, was not run."
    parts, better = [], True
    for what, measure in (("mean AUC drop", _drop), ("mean difference of a probability", _difference)):
        mine = measure(ours)
        best = min(peers, key=lambda row: measure(row.figures or {}))
        least = measure(best.figures or {})
        better &= mine <= least
        parts.append(f"{what} {mine:.4f}, the least of the others {least:.4f} ({TITLES[best.way]})")
    answer = "is" if better else "is NOT"
    return (
        f"The default of make.py {answer} at least as accurate as all others that TensorRT takes: {'; '.join(parts)}."
    )


def _drop(figures: Mapping[str, Any]) -> float:
    return float(figures.get("mean_auc", {"drop": 0.0})["drop"])


def _difference(figures: Mapping[str, Any]) -> float:
    return float(figures["mean_difference"])


def header(source: Source, judges: Judges, size: int) -> str:
    """What was measured, where and with what."""
    versions = [f"{name} {_version(name)}" for name in ("onnxruntime", "onnx", "tensorrt-rtx-cu12")]
    versions.append(MODELOPT.replace("==", " "))
    area, _ = _areas(judges.figures(judges.expected))
    return (
        f"{judges.checkpoint.network}, {size} pixels, {len(judges.images)} synthetic phantoms of seeds from "
        f"{UNSEEN_SEEDS[0]}, calibrated on {len(source.pixels)} others. Float32: mean AUC {area}. "
        f"{machine(torch.device('cpu'))}, {', '.join(versions)}."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def prepare_source(checkpoint: Checkpoint, size: int, count: int, environment: Path, scratch: Path) -> Source:
    """The float32 model in both forms and `count` calibration images, as make.py takes them for the demo."""
    images, _ = calibration_images(
        None, on_phantoms=True, count=count, seed=0, preprocess=Preprocess(size), scratch=scratch
    )
    portable = to_onnx(checkpoint, 1, size)
    padded = scratch / "float32" / "model.onnx"
    padded.parent.mkdir()
    onnx.save(lower(portable, "padded"), padded)
    return Source(portable, padded, images, np.concatenate(list(images)), environment)


def run(options: argparse.Namespace) -> tuple[list[Row], str]:
    """The rows, and the text that is printed."""
    checkpoint = load_checkpoint(options.checkpoint)
    if tuple(checkpoint.labels) != tuple(CHESTXRAY14):
        raise UsageError(
            f"{options.checkpoint} knows {len(checkpoint.labels)} labels, phantoms are judged by ChestX-ray14's 14: "
            "name a checkpoint that was trained on phantoms"
        )
    size = options.size or checkpoint.input_size
    images, truth = phantom_set(UNSEEN_SEEDS[: options.images], size, options.cache)
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as directory:
        scratch = Path(directory)
        source = prepare_source(checkpoint, size, options.calibration_images, options.environment, scratch)
        judges = Judges(checkpoint, source.padded, images, truth)
        rows = compare(options.ways, source, judges, scratch)
        return rows, f"{header(source, judges, size)}\n\n{table(rows)}\n\n{verdict(rows)}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT, metavar="F", help="default: the demo's")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="pixels a side (default: the checkpoint's)")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="phantoms to judge on (default: 1000)")
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=CALIBRATION_IMAGES,
        metavar="N",
        help=f"phantoms to calibrate on (default: {CALIBRATION_IMAGES})",
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument(
        "--environment",
        type=Path,
        default=Path("out/benchmarks/modelopt-venv"),
        metavar="DIR",
        help="ModelOpt's environment, made there unless it is (default: %(default)s)",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder to keep rendered phantoms in")
    parser.add_argument("--output", type=Path, metavar="F", help="file to write the table to, too")
    options = parser.parse_args(arguments)
    try:
        rows, text = run(options)
        if options.output:
            options.output.write_text(text, "utf-8")
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return MachineError.exit_status
    print(text, end="")
    return MachineError.exit_status if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
