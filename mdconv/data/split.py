"""Which part of a data set is trained on, and which patients are kept back to validate with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

from edge.errors import UsageError

Split = Literal["train", "validation", "test"]
SEED = 0
"""Of the choice of validation patients."""


def check_split(split: str) -> None:
    """Raise `UsageError` if there is no such split."""
    if split not in get_args(Split):
        raise UsageError(f"no split {split!r}: expected one of {', '.join(get_args(Split))}")


def validation_patients(patients: Iterable[str], share: float) -> set[str]:
    """The share of the patients, rounded, that is kept back; at least one.

    Drawn by `SEED`: patients are ranked by the SHA-256 of seed and name, so that the choice is the same on every
    machine, in whatever order they come, and whatever NumPy's generators will draw.
    """
    ranked = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{SEED} {patient}".encode()).digest())
    return set(ranked[: max(1, round(share * len(ranked)))])
