"""Mixed precision: which layers of an int8 model are left in float16, so that it passes its self-test and its gate.

Candidates are judged in ONNX Runtime, whatever the build is for: an engine for each would take minutes. The bundle is
then verified as it will run, like any other. Images that chose the layers also judge them; the gate, repeated on others
(``--regate``), tells how much that flatters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from build_engine.precision import leave_in_float16
from build_engine.verify import say
from calibration.gate import assess_logits
from calibration.judge import images_of, load_images
from calibration.limits import Limits
from calibration.quantize import Calibrated
from calibration.sensitivity import by_effect, layer_effects, logits_of, smallest_set
from edge.errors import UsageError
from edge.gate import FAIL
from edge.preprocess import Preprocess
from edge.progress import ProgressLine
from edge.results import probabilities
from edge.selftest import KINDS

CHOICES = ("auto", "measure", "off")
"""Leave layers in float16 if the build fails without; measure their effects in any case; never."""
MOST_IMAGES = 1000
"""Of the gate's, that candidates are judged by; they are kept in memory."""
EFFECT_IMAGES = 64
"""On which the effect of each layer is measured."""


class Images(NamedTuple):
    """N images, each (1, 1, S, S) uint8, and what is known of them."""

    pixels: Sequence[NDArray[np.uint8]]
    truth: NDArray[np.bool_] | None = None
    """(N, L)."""
    patients: Sequence[str] | None = None


@dataclass(frozen=True)
class Trial:
    """By what a candidate is judged: by what the build itself will be."""

    calibrated: Calibrated
    golden: Sequence[NDArray[np.uint8]]
    golden_limit: Mapping[str, float]
    """Of the self-test, by `edge.selftest.KINDS`."""
    gate: Path | None
    """Images of the gate; None if there is none."""
    preprocess: Preprocess
    labels: Sequence[str]
    thresholds: Mapping[str, float]
    limits: Limits

    @cached_property
    def images(self) -> Images | None:
        """`MOST_IMAGES` of the gate's at most, evenly spread: a table may be sorted. Raises `UsageError`."""
        if self.gate is None:
            return None
        paths, truth, patients = images_of(self.gate, self.labels, self.preprocess)
        with ProgressLine("mixed precision") as progress:
            step = -(-len(paths) // MOST_IMAGES)
            pixels = list(load_images(paths[::step], self.preprocess, progress, "--gate-data"))
        truth = None if truth is None else truth[::step]
        return Images(pixels, truth, None if patients is None else patients[::step])

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """The float32 logits (N, L) of `images`."""
        return logits_of(self.calibrated.model, self.images.pixels if self.images else ())

    def self_test(self, left: Sequence[str]) -> bool:
        """Whether the model with layers `left` in float16 is as close to float32 as the self-test wants."""
        models = (self.calibrated.model, mixed_model(self.calibrated, left))
        expected, found = (probabilities(logits_of(model, self.golden)) for model in models)
        difference = np.abs(found - expected)
        measured = dict(zip(KINDS, (difference.max(), difference.mean())))
        return all(measured[kind] <= self.golden_limit[kind] for kind in KINDS)

    def passes(self, left: Sequence[str]) -> bool:
        """Whether it passes the self-test and, if there are images, the gate."""
        if not self.self_test(left):
            return False
        if self.images is None:
            return True
        logits = logits_of(mixed_model(self.calibrated, left), self.images.pixels)
        _, truth, patients = self.images
        found = assess_logits(self.reference, logits, self.labels, self.thresholds, truth, self.limits, patients)
        return bool(found["verdict"] != FAIL)


def mixed_model(calibrated: Calibrated, left: Sequence[str]) -> onnx.ModelProto:
    """The int8 model with layers `left` in float16."""
    model, _ = calibrated.quantized(left)
    return leave_in_float16(model, left) if left else model


def first_plan(trial: Trial, choice: str) -> dict[str, Any]:
    """The manifest's ``mixed_precision`` for a first attempt: all layers in int8, unless the self-test would fail."""
    layers = trial.calibrated.layers
    plan: dict[str, Any] = {"left": [], "of": len(layers), "tried": 0, "images": None, "layers": {}}
    if choice == "measure":
        plan |= _effects(trial)
    if choice == "off":
        return {**plan, "reason": "switched off"}
    if trial.self_test(()):
        return {**plan, "reason": "the self-test passes with all layers in int8"}
    return next_plan(trial, plan, "the self-test failed") or {**plan, "reason": "not even float16 in all layers helps"}


def next_plan(trial: Trial, plan: Mapping[str, Any], failure: str) -> dict[str, Any] | None:
    """The plan after one that failed, which `failure` says how; None if not even all layers in float16 are enough."""
    effects = {key: plan[key] for key in ("images", "layers")} if plan["layers"] else _effects(trial)
    say(f"mixed precision: {failure} with all {plan['of']} layers in int8: looking for the fewest to leave in float16")
    tried = 0

    def passes(left: tuple[str, ...]) -> bool:
        nonlocal tried
        tried += 1
        try:
            passed = trial.passes(left)
        except UsageError as error:  # a weight beyond float16's range: other layers may be enough
            say(f"mixed precision: {error}")
            passed = False
        say(f"mixed precision: {len(left)} of {plan['of']} layers in float16: {'pass' if passed else FAIL}")
        return passed

    left = smallest_set(by_effect(effects["layers"]), passes)
    if left is None:
        say("mixed precision: not even all layers in float16 are enough")
        return None
    ordered = [layer for layer in trial.calibrated.layers if layer in left]
    reason = (
        f"{failure} with all layers in int8; with these in float16 it passes, with any one of them in int8 it does not"
    )
    say(f"mixed precision: left in float16: {', '.join(ordered)}")
    return {**plan, **effects, "left": ordered, "tried": tried, "reason": reason}


def _effects(trial: Trial) -> dict[str, Any]:
    """What `layer_effects` says on the first of the gate's images, or on the golden ones."""
    images = trial.images or Images(trial.golden)
    truth = None if images.truth is None else images.truth[:EFFECT_IMAGES]
    say(f"mixed precision: measuring the effect of int8 in each of {len(trial.calibrated.layers)} layers")
    with ProgressLine("mixed precision") as progress:
        found = layer_effects(trial.calibrated, images.pixels[:EFFECT_IMAGES], truth, progress)
    return {"images": len(images.pixels[:EFFECT_IMAGES]), "layers": found}
