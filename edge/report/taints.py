"""What may have spoilt a measurement: each suspect, and "unknown" where the machine does not tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

OTHER_LOAD_LIMIT = 0.1
"""Mean share of all cores that other programs may take before they count as load."""


def find_taints(machine: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each suspect as ``{"what", "state": "clean" | "tainted" | "unknown", "detail"}``."""
    found = {
        "throttling": _throttling(samples),
        "clocks not locked": _clocks(machine.get("clocks")),
        "power mode": _power_mode(machine),
        "other load": _other_load(samples),
    }
    return [{"what": what, "state": state, "detail": detail} for what, (state, detail) in found.items()]


def _throttling(samples: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    counts = [sample["throttle_events"] for sample in samples if sample["throttle_events"] is not None]
    asked = [sample["throttle_alerts"] for sample in samples if sample["throttle_alerts"] is not None]
    alerts = sorted({name for names in asked for name in names})
    events = sum(max(0, now - before) for before, now in pairwise(counts))
    if events or alerts:
        parts = [f"{events} throttle event{'s' if events > 1 else ''}"] if events else []
        return "tainted", ", ".join([*parts, *alerts])
    if len(counts) > 1 or asked:
        return "clean", "no throttle event and no alert during the run"
    return "unknown", "this machine shows no throttle counters"


def _clocks(clocks: Any) -> tuple[str, str]:
    known = {name: limits for name, limits in (clocks or {}).items() if isinstance(limits, Mapping)}
    if not known:
        return "unknown", "this machine does not show its clock limits"
    free = [
        f"{name.upper()} {limits['min_mhz']:.0f} to {limits['max_mhz']:.0f} MHz (governor {limits['governor']})"
        for name, limits in known.items()
        if not limits["locked"]
    ]
    if free:
        return "tainted", "may follow the load: " + "; ".join(free)
    return "clean", "locked: " + ", ".join(name.upper() for name in known)


def _power_mode(machine: Mapping[str, Any]) -> tuple[str, str]:
    mode = machine.get("power_mode")
    if not isinstance(mode, Mapping):
        return "unknown", "no nvpmodel power mode on this machine"
    best = max(mode["modes"], key=_power_rank, default=None)
    if best is None or mode["name"] not in mode["modes"]:
        return "unknown", f"{mode['name']}; the modes that this module offers cannot be read"
    if _power_rank(mode["name"]) < _power_rank(best):
        return "tainted", f"{mode['name']}, while this module offers {best}"
    return "clean", f"{mode['name']}, the highest that this module offers"


def _power_rank(name: str) -> float:
    """Orders nvpmodel's names: MAXN (no cap) over ``50W`` over ``15W``."""
    watts = re.search(r"(\d+)W", name)
    return float("inf") if "MAXN" in name else float(watts[1]) if watts else 0.0


def _other_load(samples: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    loads = [sample["other_load"] for sample in samples if sample["other_load"] is not None]
    if not loads:
        return "unknown", "the load was not sampled"
    mean, most = sum(loads) / len(loads), max(loads)
    detail = f"other programs used {mean:.0%} of the CPU on average, {most:.0%} at most"
    return ("tainted" if mean > OTHER_LOAD_LIMIT else "clean"), detail
