"""The localisation score of many images as a table: for people, as JSON, as a CSV of every single finding."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge.errors import MachineError, describe_os_error
from mdconv.localisation import LARGE, OVERLAPS, SHARE, TOLERANCE, Located, Rate, Score, score

_SIZES: dict[str, Callable[[Located], bool]] = {
    "all": lambda one: True,
    "large": lambda one: one.side > LARGE,
    "small": lambda one: one.side <= LARGE,
}


def summarise(located: Sequence[Located], size: int, share: float = SHARE) -> dict[str, Any]:
    """The score by finding and by lesion size as JSON holds it; `size` is the side of the network's image in pixels.

    ``mean_hit_rate`` is the mean over findings, as Zhang et al. report it: a frequent one counts no more than others.
    """
    groups = {group: _group([one for one in located if belongs(one)]) for group, belongs in _SIZES.items()}
    return {
        "input_size": size,
        "large_above_px": LARGE * size,
        "tolerance_px": TOLERANCE * size,
        "box_share_of_maximum": share,
        "sizes": groups,
    }


def _group(located: Sequence[Located]) -> dict[str, Any]:
    names = sorted({one.finding for one in located})
    scores = {name: score([one for one in located if one.finding == name]) for name in names}
    rates = [each.hit.rate for each in scores.values()]
    return {
        "all findings": _entry(score(located)),
        "by finding": {name: _entry(each) for name, each in scores.items()},
        "mean_hit_rate": sum(rates) / len(rates) if rates else None,
    }


def _entry(result: Score) -> dict[str, Any]:
    overlaps = {str(least): _rate(found) for least, found in result.overlap.items()}
    return {"hit": _rate(result.hit), "near": _rate(result.near), "overlap_above": overlaps}


def _rate(found: Rate) -> dict[str, Any]:
    """NaN, of nothing, is None: JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in found._asdict().items()}


def as_text(table: Mapping[str, Any]) -> str:
    """The table for people: one line for each size and finding."""
    large = f"{table['large_above_px']:g} px"
    titles = {"all": "all", "large": f"side > {large}", "small": f"side <= {large}"}
    head = ["hit", f"within {table['tolerance_px']:g} px", *(f"IoU > {least:g}" for least in OVERLAPS)]
    lines = [
        f"a hit: the map's maximum is in the finding's box; side: square root of the box's area, in a "
        f"{table['input_size']} px image; IoU: with the box around {table['box_share_of_maximum']:g} of the maximum; "
        "in brackets 95 % intervals",
        f"{'':34}{'boxes':>6}" + "".join(f"{title:>22}" for title in head),
    ]
    for group, entry in table["sizes"].items():
        rows = {**entry["by finding"], "all findings": entry["all findings"]}
        lines += [_line(f"{name}, {titles[group]}", row) for name, row in rows.items()]
        if entry["mean_hit_rate"] is not None:
            lines.append(f"{'mean of findings, ' + titles[group]:34}{'':6}{entry['mean_hit_rate']:8.3f}")
    return "\n".join(lines)


def _line(title: str, row: Mapping[str, Any]) -> str:
    rates = [row["hit"], row["near"], *row["overlap_above"].values()]
    cells = [
        f"{one['rate']:8.3f} ({one['low']:.2f} to {one['high']:.2f})" if one["of"] else f"{'-':>8}" for one in rates
    ]
    return f"{title:34}{row['hit']['of']:6}" + "".join(f"{cell:22}" for cell in cells).rstrip()


def write_table(directory: Path, report: Mapping[str, Any], located: Sequence[Located]) -> None:
    """Write ``localisation.json`` (the report) and ``localisation.csv`` (one row a finding of an image).

    Raises `MachineError` if they cannot be written.
    """
    size = report["input_size"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "localisation.json").write_text(json.dumps(report, indent=2) + "\n")
        with (directory / "localisation.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, ["image", "finding", "probability", "side_px", "hit", "near", "overlap"])
            rows.writeheader()
            for one in located:
                numbers = {"probability": f"{one.probability:.6f}", "overlap": f"{one.overlap:.6f}"}
                flags = {"hit": int(one.hit), "near": int(one.near)}
                where = {"image": one.image, "finding": one.finding, "side_px": f"{one.side * size:.2f}"}
                rows.writerow({**where, **numbers, **flags})
    except OSError as error:
        raise MachineError(f"cannot write the score: {describe_os_error(error)}") from None
