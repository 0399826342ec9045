"""What was repaired in a quantized network, in the few lines that a manifest has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summarise(record: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's entries ``equalization`` and ``bias_correction`` from what ``calibration.json`` says.

    Each is None where the step was switched off. `summary` is a sentence; `layers` says how much, by convolution: the
    channels that it writes and that were scaled, with their spread before and after (largest peak by the smallest), or
    the largest correction, in the output's unit.
    """
    return {
        "equalization": _equalization(record.get("equalization")),
        "bias_correction": _bias_correction(record.get("bias_correction")),
    }


def _equalization(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if record is None:
        return None
    tensors, left = record["tensors"], record["left"]
    scaled = sum(facts["scaled"] for facts in tensors.values())
    channels = sum(len(facts["doublings"]) for facts in tensors.values())
    summary = f"{scaled} of {channels} channels scaled in {len(tensors)} tensors around depthwise layers"
    if left:
        summary += f", {len(left)} left as {'it is' if len(left) == 1 else 'they are'}"
    return {
        "summary": summary,
        "difference": record["difference"],
        "layers": {
            facts["writer"]: {"scaled": facts["scaled"], "of": len(facts["doublings"]), "spread": facts["spread"]}
            for facts in tensors.values()
        },
        "left": dict(left),
    }


def _bias_correction(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if record is None:
        return None
    largest = max((facts["largest"] for facts in record.values()), default=0.0)
    return {
        "summary": f"biases of {len(record)} layers corrected, by {largest:.3g} at most",
        "layers": {name: facts["largest"] for name, facts in record.items()},
    }
