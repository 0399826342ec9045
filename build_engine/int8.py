"""The int8 model of a build: calibrated once, written with all layers in int8 and, if that fails, with fewer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from build_engine.export import save_model
from build_engine.mixed_precision import Trial, first_plan, mixed_model, next_plan
from build_engine.verify import Verified, say
from calibration.dataset import CalibrationSet
from calibration.quantize import Calibrated, calibrate
from calibration.repair_summary import summarise
from edge.bundle import CALIBRATION, model_file
from edge.gate import FAIL
from edge.progress import ProgressLine


def calibrate_portable(
    portable: Path, dataset: CalibrationSet, origin: str, method: str, *, equalization: bool, bias_correction: bool
) -> Calibrated:
    """Calibrate the float32 model `portable` on `dataset`, which comes from `origin`; see `calibrate`."""
    say(f"calibrating on {len(dataset)} images ({origin}) by {method}")
    with ProgressLine("calibration") as progress:
        calibrated = calibrate(
            onnx.load(portable),
            dataset,
            method,
            progress,
            equalization=equalization,
            bias_correction=bias_correction,
        )
    for repair, what in summarise(calibrated.quantized()[1]).items():
        say(f"{repair.replace('_', ' ')}: {'switched off' if what is None else what['summary']}")
    return calibrated


@dataclass(frozen=True)
class Int8Files:
    """Writes the int8 model and ``calibration.json`` into the bundle that is made in `directory`."""

    directory: Path
    dataset: CalibrationSet
    origin: str
    """Of `dataset`."""

    def write(self, calibrated: Calibrated, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Write both by `plan`; returns the manifest's entries on them."""
        save_model(mixed_model(calibrated, plan["left"]), self.directory / model_file("int8"))
        _, record = calibrated.quantized(plan["left"])
        choice = self.dataset.choice
        chosen = {"images": self.origin, "selection": choice.to_json() if choice else None}
        told = {**record, **chosen, "pixels": sorted(self.dataset.pixels)}
        (self.directory / CALIBRATION).write_text(json.dumps(told, indent=1) + "\n")
        facts = {**{key: record[key] for key in ("method", "count", "digest")}, **chosen, **summarise(record)}
        return {"calibration": facts, "mixed_precision": dict(plan)}


def build_int8(trial: Trial, choice: str, attempt: Callable[[Mapping[str, Any]], Verified]) -> Verified:
    """Make `attempt` by a plan of mixed precision (`first_plan`), and a second if the first one fails its gate.

    `choice` is one of `build_engine.mixed_precision.CHOICES`.
    """
    plan = first_plan(trial, choice)
    verified = attempt(plan)
    if verified.gate["verdict"] != FAIL or choice == "off" or plan["left"]:
        return verified
    second = next_plan(trial, plan, f"the gate failed ({verified.gate['reason']})")
    return verified if second is None else attempt(second)
