"""What the accuracy gate said of a bundle, and what follows: one that failed runs only by force, and then says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.errors import BundleError

PASS, FAIL, NOT_ASSESSED = VERDICTS = ("pass", "fail", "not assessed")
FORCE = "--allow-failed-gate"

CRITERIA: Mapping[str, str] = {
    "max_auc_drop": "drop of the mean AUC",
    "max_mean_difference": "mean difference of a probability",
    "max_changed_decisions": "share of changed decisions",
    "max_sensitivity_drop": "drop of the mean sensitivity",
}
"""What the gate bounds, each against float32, under the names of the limits in the manifest's gate entry."""


def gate_verdict(manifest: Mapping[str, Any]) -> str:
    """``pass``, ``fail`` or ``not assessed``, which a manifest without a verdict is too."""
    return str(manifest["gate"].get("verdict", NOT_ASSESSED))


def notice_of(manifest: Mapping[str, Any], default: str = "") -> str:
    """What every reader of the bundle's output must be told: that it failed its gate, and its model's own notice.

    `default` stands in for a model's notice that is empty.
    """
    failed = "FAILED ITS ACCURACY GATE" if gate_verdict(manifest) == FAIL else ""
    return "; ".join(filter(None, [failed, str(manifest["model"].get("notice") or default)]))


def require_gate(manifest: Mapping[str, Any], allow_failed: bool = False) -> None:
    """Raises `BundleError` for a bundle that failed its gate, unless `allow_failed`."""
    if gate_verdict(manifest) == FAIL and not allow_failed:
        raise BundleError(
            f"{manifest['name']} failed its accuracy gate ({_reason(manifest)}): build it anew with --fp16 or more "
            f"calibration images, or force it with {FORCE}, which every result then says"
        )


def gate_notes(manifest: Mapping[str, Any]) -> list[str]:
    """What a report should say of the gate, but for one that passed."""
    verdict = gate_verdict(manifest)
    return [] if verdict == PASS else [f"the bundle's accuracy gate: {verdict} ({_reason(manifest)})"]


def _reason(manifest: Mapping[str, Any]) -> str:
    return str(manifest["gate"].get("reason", "no reason given"))
