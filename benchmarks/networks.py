"""The ten networks (five, each with and without MD-Conv) as INT8 bundles: their latency side by side, and agreement.

    python -m benchmarks.networks --runs RUNS --output DIR

Checkpoints come from `python -m benchmarks.paper table-3 --output RUNS`, trained briefly on synthetic phantoms. Each
goes through `make.py --int8` and `edge-infer classify`, as processes; then all bundles take turns in this one, so that
a change of the machine's speed meets all of them. Float32 is the bundle's own portable model in ONNX Runtime. Latency
is that of inference alone, of one image at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.experiments import EXPERIMENTS, Arm
from calibration.limits import NAMES
from edge.backends import open_backend
from edge.backends.onnxruntime import open_session
from edge.bundle import PORTABLE_MODEL, Bundle, load_bundle
from edge.results import probabilities
from edge.selftest import golden_inputs
from mdconv.data.phantom import CALIBRATION_SEEDS, TEST_SEEDS
from mdconv.data.phantom.folder import write_folder

ROOT = Path(__file__).parents[1]
WARM_UP = 3


class Built(NamedTuple):
    """A network's INT8 bundle, and what `edge-infer classify` said with it."""

    label: str
    bundle: Bundle
    results: list[dict[str, Any]]


def checkpoint_of(arm: Arm, runs: Path) -> Path:
    """The arm's checkpoint of seed 0. Ends the process with a word on what is missing."""
    found = sorted(runs.glob(f"runs/reduced-chestxray14/{arm.slug}.112px.seed0/*/best.safetensors"))
    if not found:
        sys.exit(f"no run of {arm.label} in {runs}: python -m benchmarks.paper table-3 --output {runs}")
    return found[-1]


def build(arm: Arm, checkpoint: Path, phantoms: Path, size: int, output: Path) -> Built:
    """The arm's bundle by `make.py --int8`, unless it is there, and what `edge-infer classify` says on phantoms."""
    directory = output / arm.slug
    if not directory.exists():
        command = [sys.executable, "build_engine/make.py", "--int8", "--backend", "onnxruntime"]
        command += ["--checkpoint", checkpoint, "--input-size", str(size), "--output", directory]
        command += ["--calibration-data", phantoms / "calibration", "--gate-data", phantoms / "test"]
        # Trained for minutes at another size: how much INT8 loses is shown in the table, and is no reason to stop.
        command += [f"--{name.replace('_', '-')}=1" for name in NAMES]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    images = sorted((phantoms / "test").glob("*.png"))
    command = [sys.executable, "-m", "edge", "classify", *images, "--bundle", directory, "--json"]
    done = subprocess.run(list(map(str, command)), check=True, cwd=ROOT, capture_output=True, text=True)
    return Built(arm.label, load_bundle(directory), [json.loads(line) for line in done.stdout.splitlines()])


def take_turns(
    contestants: Sequence[Callable[[NDArray[np.uint8]], object]], images: NDArray[np.uint8], rounds: int
) -> list[float]:
    """Median milliseconds an image (1, 1, S, S) of each contestant, one image each in every round."""
    spent: list[list[float]] = [[] for _ in contestants]
    for turn in range(WARM_UP + rounds):
        image = images[turn % len(images)][None]
        for number, contestant in enumerate(contestants):
            start = time.perf_counter()
            contestant(image)
            if turn >= WARM_UP:
                spent[number].append((time.perf_counter() - start) * 1e3)
    return [statistics.median(times) for times in spent]


def agreement(built: Built, images: dict[str, NDArray[np.uint8]]) -> dict[str, float]:
    """INT8 against float32: mean and largest difference of a probability, share of equal first findings."""
    reference = open_session(built.bundle.directory / PORTABLE_MODEL, threads=os.cpu_count() or 1)
    labels = built.bundle.labels
    differences, same = [], 0
    for result in built.results:
        found = np.array([result["findings"][label]["probability"] for label in labels])
        expected = probabilities(
            reference.run(["logits"], {"image": images[Path(result["source"]).name][None, None]})[0][0]
        )
        differences.append(np.abs(found - expected))
        same += int(found.argmax() == expected.argmax())
    return {
        "mean_difference": float(np.mean(differences)),
        "max_difference": float(np.max(differences)),
        "same_first_finding": same / len(differences),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, required=True, help="output folder of `python -m benchmarks.paper table-3`"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for phantoms, bundles and the table")
    parser.add_argument("--size", type=int, default=448, help="pixels a side (default: 448)")
    parser.add_argument("--images", type=int, default=100, help="phantoms to judge on (default: 100)")
    parser.add_argument("--rounds", type=int, default=30, help="timed images of each network (default: 30)")
    options = parser.parse_args()
    phantoms = options.output / f"phantoms-{options.size}"
    if not (phantoms / "test" / "labels.csv").exists():
        write_folder(phantoms / "calibration", 128, CALIBRATION_SEEDS.start, options.size)
        write_folder(phantoms / "test", options.images, TEST_SEEDS.start, options.size)
    images = {
        path.name: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted((phantoms / "test").glob("*.png"))
    }
    arms = EXPERIMENTS["table-3"].arms
    built = []
    for arm in arms:
        built.append(
            build(arm, checkpoint_of(arm, options.runs), phantoms, options.size, options.output / f"{options.size}")
        )
        print(f"{arm.label}: built and classified {len(built[-1].results)} phantoms", file=sys.stderr, flush=True)

    contestants: list[Callable[[NDArray[np.uint8]], object]] = []
    for one in built:
        session = open_session(one.bundle.directory / PORTABLE_MODEL, threads=os.cpu_count() or 1)
        contestants += [lambda image, session=session: session.run(["logits"], {"image": image})]  # type: ignore[misc]
        contestants += [open_backend(one.bundle, "onnxruntime").infer]
    times = take_turns(contestants, golden_inputs(built[0].bundle)[0], options.rounds)
    rows = []
    for number, one in enumerate(built):
        float32, int8 = times[2 * number : 2 * number + 2]
        gate = one.bundle.manifest["gate"]["figures"]["mean_auc"]
        rows.append(
            {"network": one.label, "float32_ms": float32, "int8_ms": int8, **agreement(one, images), "auc": gate}
        )
    print(table(rows))
    (options.output / f"networks-{options.size}.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown; the ratio is to MobileNet-v2 without MD-Conv in float32."""
    unit = next(row["float32_ms"] for row in rows if row["network"] == "mobilenet_v2")
    lines = [
        "| network | float32 (ms) | ratio | INT8 (ms) | ratio | mean AUC float32, INT8 | difference mean, largest "
        "| same first finding |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        auc = f"{row['auc']['reference']:.3f}, {row['auc']['candidate']:.3f}"
        lines.append(
            f"| {row['network']} | {row['float32_ms']:.1f} | {row['float32_ms'] / unit:.2f} | {row['int8_ms']:.1f} "
            f"| {row['int8_ms'] / unit:.2f} | {auc} | {row['mean_difference']:.4f}, {row['max_difference']:.3f} "
            f"| {row['same_first_finding']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
