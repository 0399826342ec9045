"""Verification: a build is done when its artefact, run as it will run, agrees with float32 on real images."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, NamedTuple

from build_engine.images import ImageFolder
from build_engine.weights import RANDOM_NOTICE
from calibration.judge import judge
from calibration.limits import Limits
from edge.backends import Backend, open_backend
from edge.bench import run_bench
from edge.bundle import Bundle
from edge.gate import FAIL, NOT_ASSESSED
from edge.report import write_report
from edge.selftest import describe, self_test

BENCH_SECONDS = 3.0


class Verified(NamedTuple):
    """What the verification found."""

    gate: dict[str, Any]
    """The manifest's gate entry."""
    golden_difference: dict[str, float]
    """How far probabilities are from float32 on the golden images, by kind (see `edge.selftest.KINDS`)."""


def verify(bundle: Bundle, images: ImageFolder | None, limits: Limits) -> Verified:
    """Run `bundle`: its self-test, the gate on `images`, and a short benchmark, whose report is put into the bundle.

    A gate that failed is for the caller to act on; there is no benchmark then.

    An engine for TensorRT-RTX cannot run on the machines that build it; then its ONNX model runs in ONNX Runtime, and
    the result says so. Raises `BundleError` if the self-test fails.
    """
    choice = "tensorrt" if bundle.manifest["backend"] == "tensorrt" else "onnxruntime"
    with open_backend(bundle, choice) as backend:
        tested = self_test(bundle, backend)
        say(f"{choice}: {describe(tested)}")
        gate = _gate(bundle, images, limits, backend)
    say(f"gate: {gate['verdict']}: {gate['reason']}")
    if gate["verdict"] != FAIL:
        judged = replace(bundle, manifest={**bundle.manifest, "gate": gate})
        report = run_bench(judged, lambda: open_backend(bundle, choice), duration=BENCH_SECONDS)
        # The report is part of the bundle: it cannot hold the bundle's own hash, nor the verdict of a later gate.
        report["bundle"].update(sha256=None, gate=f"{gate['verdict']} (at the build)")
        write_report(report, bundle.directory)
    return Verified(gate, tested["difference"])


def _gate(bundle: Bundle, images: ImageFolder | None, limits: Limits, backend: Backend) -> dict[str, Any]:
    if images is None:
        missing = "no images to judge it by (--gate-data), or switched off (--no-gate)"
        untrained = "the weights are random: there is nothing to judge"
        return {"verdict": NOT_ASSESSED, "reason": untrained if bundle.notice == RANDOM_NOTICE else missing}
    return judge(bundle, backend, images.directory, images.origin, limits, say)


def say(text: str) -> None:
    """A line about how far the build is."""
    print(f"make.py: {text}", file=sys.stderr, flush=True)
