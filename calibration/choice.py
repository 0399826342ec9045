"""Which of many images a model is calibrated on: the same ones everywhere, every finding with its share."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from calibration.gate import NO_FINDING

BY_FINDING, BY_NAME = "stratified by finding", "drawn by name"


@dataclass(frozen=True)
class Choice:
    """Images by name, and how they were chosen."""

    names: tuple[str, ...]
    rule: str
    """`BY_FINDING`, or `BY_NAME` where no labels were there."""
    seed: int
    offered: int
    """How many there were to choose from."""
    findings: Mapping[str, int] | None
    """How many of the chosen images have each finding that was offered, `NO_FINDING` among them."""

    def to_json(self) -> dict[str, Any]:
        """What ``calibration.json`` and the manifest say of it: everything but the names, which may be patients'."""
        findings = None if self.findings is None else dict(self.findings)
        return {"rule": self.rule, "seed": self.seed, "offered": self.offered, "findings": findings}


def choose_by_name(names: Iterable[str], count: int, seed: int) -> Choice:
    """At most `count` of `names`: the first in the order of SHA-256 of seed and name."""
    ranked = _ranked(names, seed)
    return Choice(tuple(ranked[:count]), BY_NAME, seed, len(ranked), None)


def choose_by_finding(findings: Mapping[str, Collection[str]], count: int, seed: int) -> Choice:
    """At most `count` of the images in `findings` (name to findings, none meaning `NO_FINDING`), evenly by finding.

    Again and again the finding that has the fewest images so far (of equals the rarest one in `findings`, then the
    first by name) gets its next image in the order of SHA-256 of seed and name; the image counts for all that it shows.
    So of K findings, `NO_FINDING` among them, each has at least ``count // K`` images, or all that there are.
    """
    shown = {name: tuple(dict.fromkeys(found)) or (NO_FINDING,) for name, found in findings.items()}
    waiting: dict[str, list[str]] = {}
    for name in reversed(_ranked(shown, seed)):
        for finding in shown[name]:
            waiting.setdefault(finding, []).append(name)  # the next one is the last
    sizes = {finding: len(names) for finding, names in waiting.items()}
    tally: Counter[str] = Counter(dict.fromkeys(sorted(waiting), 0))
    chosen: set[str] = set()
    while waiting and len(chosen) < count:
        finding = min(waiting, key=lambda key: (tally[key], sizes[key], key))
        while waiting[finding] and waiting[finding][-1] in chosen:
            waiting[finding].pop()
        if not waiting[finding]:
            del waiting[finding]
            continue
        name = waiting[finding].pop()
        chosen.add(name)
        tally.update(shown[name])
    return Choice(tuple(_ranked(chosen, seed)), BY_FINDING, seed, len(shown), dict(tally))


def _ranked(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest())
