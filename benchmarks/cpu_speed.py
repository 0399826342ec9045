"""How fast does a bundle run on a processor, beside the ways that a user would else take?

    python -m benchmarks.cpu_speed out/mobilenet_v2-int8-onnxruntime [--threads 2] [--rounds 15]
    python -m benchmarks.cpu_speed --backend openvino plain/ padded/ split/

Batch 1, from ready uint8 pixels to logits, all in one run and in turns, so that a change of the machine's speed meets
all of them: the bundle in each backend that works here; its float32 ONNX in ONNX Runtime with default settings (the
plain loop, to which the ratios are); PyTorch, eager and compiled, with the demo's weights; and OpenVINO's own
`benchmark_app` on the bundle's model, a second at a time. With `--backend`, bundles are compared in that backend, and
the ratios are to the first. A ratio is the median of the rounds' ratios, and their range.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from edge.backends import CHOICES, open_backend
from edge.backends.onnxruntime import model_to_run
from edge.bundle import PORTABLE_MODEL, Bundle, load_bundle
from edge.errors import MachineError
from mdconv.checkpoint import load_checkpoint
from mdconv.networks import normalise
from mdconv.weights import DEMO_CHECKPOINT

PLAIN = "ONNX Runtime, float32: the plain loop"
SECONDS = 0.5
"""How long one way runs in one round."""

Infer = Callable[[NDArray[np.uint8]], object]

BENCHMARK_APP = """
import sys
sys.modules["openvino_telemetry"] = None  # as edge.backends.openvino has it
from openvino.tools.benchmark.main import main
main()
"""


def plain_loop(bundle: Bundle, threads: int) -> Infer:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        bundle.directory / PORTABLE_MODEL, options, providers=["CPUExecutionProvider"]
    )
    return lambda image: session.run(None, {"image": image})


def backends(bundle: Bundle) -> dict[str, Infer]:
    found: dict[str, Infer] = {}
    for name in CHOICES[1:]:
        try:
            found[f"edge-infer, {name}, {bundle.precision}"] = open_backend(bundle, name).infer
        except MachineError as error:
            print(f"{name} cannot run here: {error}", file=sys.stderr)
    return found


def pytorch(threads: int) -> dict[str, Infer]:
    """The demo's network: with fixed shapes, without gradients."""
    torch.set_num_threads(threads)
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    network, channels = checkpoint.model.eval(), checkpoint.config.get("in_channels", 3)
    compiled = torch.compile(network)

    def run(module: Callable[[torch.Tensor], Any]) -> Infer:
        def infer(image: NDArray[np.uint8]) -> object:
            with torch.inference_mode():
                return module(normalise(torch.from_numpy(image), channels))

        return infer

    return {"PyTorch eager, float32": run(network), "PyTorch compiled, float32": run(compiled)}


def benchmark_app(model: Path, size: int, threads: int) -> float:
    """Median latency in milliseconds that OpenVINO's own program reports."""
    arguments = ["-m", str(model), "-shape", f"[1,1,{size},{size}]", "-hint", "none", "-nstreams", "1", "-api", "sync"]
    arguments += ["-nthreads", str(threads), "-t", "1", "-infer_precision", "f32"]
    done = subprocess.run([sys.executable, "-c", BENCHMARK_APP, *arguments], capture_output=True, text=True, check=True)
    found = re.search(r"Median:\s*([\d.]+) ms", done.stdout)
    if found is None:
        raise RuntimeError(f"benchmark_app said no median:\n{done.stdout}")
    return float(found[1])


def milliseconds(infer: Infer, image: NDArray[np.uint8]) -> float:
    """The median of the calls in `SECONDS`."""
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        infer(image)
        found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(found)


def timed(infer: Infer, image: NDArray[np.uint8]) -> Callable[[], float]:
    """What measures `infer` for one round, after a first call."""
    infer(image)
    return lambda: milliseconds(infer, image)


def compare(ways: dict[str, Callable[[], float]], rounds: int) -> None:
    """Let all take turns, after one that is not counted; prints medians and the ratios to the first."""
    turns = [{name: measure() for name, measure in ways.items()} for _ in range(rounds + 1)][1:]
    base, rows = next(iter(ways)), []
    for name in ways:
        ratios = sorted(turn[name] / turn[base] for turn in turns)
        median = statistics.median(turn[name] for turn in turns)
        rows.append({"way": name, "ms": round(median, 2), "ratio": round(statistics.median(ratios), 3)})
        print(f"{name:<42}{median:>8.2f} ms  ratio {rows[-1]['ratio']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(json.dumps(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--backend", choices=CHOICES[1:], help="compare bundles in this one")
    parser.add_argument("--threads", type=int, default=2, help="of all but edge-infer, which takes what it may use")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    bundles = [load_bundle(path) for path in options.bundles]
    if options.backend is None and len(bundles) > 1:
        parser.error("several bundles are compared in one backend: give --backend")
    bundle, size = bundles[0], bundles[0].input_size
    image = np.random.default_rng(0).integers(0, 256, (1, 1, size, size), np.uint8)

    if options.backend is not None:
        compare(
            {one.directory.name: timed(open_backend(one, options.backend).infer, image) for one in bundles},
            options.rounds,
        )
        return 0
    calls = {PLAIN: plain_loop(bundle, options.threads), **backends(bundle), **pytorch(options.threads)}
    ways = {name: timed(infer, image) for name, infer in calls.items()}
    model, app = model_to_run(bundle), f"benchmark_app (OpenVINO), {bundle.precision}"
    ways[app] = lambda: benchmark_app(model, size, options.threads)
    compare(ways, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
