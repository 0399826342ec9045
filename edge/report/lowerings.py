"""How the lowerings of MD-Conv compared when the bundle was built: the manifest's figures, with ratios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lowering_comparison(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """``{"chosen", "reason", "timed_on", "rows"}``; None where the build compared none.

    A row is ``{"kind", "median_ms", "p10_ms", "p90_ms", "runs", "builder", "ratio", "left_out"}``; the ratio is that of
    the medians, the chosen one being 1. Figures are None where a lowering was left out, `left_out` where it was not.
    """
    lowering = manifest["lowering"]
    given = lowering.get("comparison")
    if not given:
        return None
    chosen = next(row["median_ms"] for row in given if row["kind"] == lowering["kind"])
    figures = ("median_ms", "p10_ms", "p90_ms", "runs", "builder", "left_out")
    rows = [
        {
            "kind": row["kind"],
            **{name: row.get(name) for name in figures},
            "ratio": row["median_ms"] / chosen if "median_ms" in row else None,
        }
        for row in given
    ]
    return {
        "chosen": lowering["kind"],
        "reason": lowering["reason"],
        "timed_on": dict(lowering["timed_on"]),
        "rows": rows,
    }
