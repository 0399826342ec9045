"""Verification: a build is done when its artefact, run as it will run, agrees with float32 on real images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from build_engine.images import ImageFolder
from build_engine.weights import RANDOM_NOTICE
from calibration.dataset import from_folder
from calibration.gate import LABELS_FILE, assess, read_labels
from edge.backends import Backend, open_backend
from edge.bench import run_bench
from edge.bundle import PORTABLE_MODEL, Bundle
from edge.errors import BundleError, InputRefusedError, UsageError
from edge.preprocess import Preprocess, load_image
from edge.progress import ProgressLine
from edge.report import write_report
from edge.selftest import describe, self_test

BENCH_SECONDS = 3.0
UNLABELLED_IMAGES = 200
"""Most images of an unlabelled folder on which the agreement with float32 is measured."""


class Float32Outputs(NamedTuple):
    """What the portable model returns for N images."""

    logits: NDArray[np.float32]
    """(N, L)."""
    cam: NDArray[np.float32] | None
    """(N, L, h, w); None where the network has no class activation maps."""


def portable_runner(model: Path) -> Callable[[NDArray[np.uint8]], Float32Outputs]:
    """The float32 reference: runs (N, 1, S, S) uint8 images through the portable `model`, one at a time."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: NDArray[np.uint8]) -> Float32Outputs:
        outputs = [session.run(names, {"image": images[i : i + 1]}) for i in range(len(images))]
        found = {name: np.concatenate(parts) for name, parts in zip(names, zip(*outputs))}
        return Float32Outputs(found["logits"], found.get("cam"))

    return run


class Verified(NamedTuple):
    """What the verification found."""

    gate: dict[str, Any]
    """The manifest's gate entry."""
    golden_difference: dict[str, float]
    """How far probabilities are from float32 on the golden images, by kind (see `edge.selftest.KINDS`)."""


def verify(bundle: Bundle, images: ImageFolder | None, max_auc_drop: float) -> Verified:
    """Run `bundle`: its self-test, the gate on `images`, and a short benchmark, whose report is put into the bundle.

    An engine for TensorRT-RTX cannot run on the machines that build it; then its ONNX model runs in ONNX Runtime, and
    the result says so. Raises `BundleError` if the self-test or the gate fails.
    """
    choice = "tensorrt" if bundle.manifest["backend"] == "tensorrt" else "onnxruntime"
    with open_backend(bundle, choice) as backend:
        tested = self_test(bundle, backend)
        say(f"{choice}: {describe(tested)}")
        gate = {**_gate(bundle, images, max_auc_drop, backend), "ran_on": choice}
    if bundle.manifest["backend"] == "tensorrt-rtx":
        gate["note"] = "the engine needs an RTX GPU and was not run: the figures are of its ONNX model in ONNX Runtime"
    say(f"gate: {gate['verdict']}: {gate['reason']}")
    if gate["verdict"] == "fail":
        raise BundleError(
            f"the {bundle.precision} build failed its gate ({gate['reason']}), so no bundle was written: calibrate on "
            "more images or by another --calibration-method, or build with --fp16"
        )
    report = run_bench(bundle, lambda: open_backend(bundle, choice), duration=BENCH_SECONDS)
    # The report is part of the bundle: it cannot hold the bundle's own hash, and the manifest has no verdict yet.
    report["bundle"].update(sha256=None, gate=gate["verdict"])
    write_report(report, bundle.directory)
    return Verified(gate, tested["difference"])


def _gate(bundle: Bundle, images: ImageFolder | None, max_auc_drop: float, backend: Backend) -> dict[str, Any]:
    if images is None:
        missing = "no images to judge it by (--gate-data), or switched off (--no-gate)"
        untrained = "the weights are random: there is nothing to judge"
        return {"verdict": "not assessed", "reason": untrained if bundle.notice == RANDOM_NOTICE else missing}
    preprocess = Preprocess.from_manifest(bundle.manifest["preprocess"])
    if (images.directory / LABELS_FILE).is_file():
        paths, truth = read_labels(images.directory, bundle.labels)
    else:
        paths, truth = from_folder(images.directory, UNLABELLED_IMAGES, preprocess).paths, None
    say(f"gate: comparing with float32 on {len(paths)} images ({images.origin})")
    reference = portable_runner(bundle.directory / PORTABLE_MODEL)
    with ProgressLine("gate") as progress:
        gate = assess(
            lambda batch: reference(batch).logits,
            lambda batch: backend.infer(batch).logits,
            _load(paths, preprocess, progress),
            bundle.labels,
            truth,
            max_auc_drop,
        )
    return {**gate, "data": images.origin}


def _load(paths: Sequence[Path], preprocess: Preprocess, progress: ProgressLine) -> Iterator[NDArray[np.uint8]]:
    """Each image as (1, 1, S, S) uint8. Raises `UsageError` naming the first that is no usable image."""
    for number, path in enumerate(paths):
        progress("comparing", number, len(paths))
        try:
            yield load_image(path, preprocess)[None, None]
        except InputRefusedError as error:
            raise UsageError(f"gate image {path}: {error}: mend the file or take it out of --gate-data") from None


def say(text: str) -> None:
    """A line about how far the build is."""
    print(f"make.py: {text}", file=sys.stderr, flush=True)
