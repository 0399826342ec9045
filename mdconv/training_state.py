"""What a training needs to go on after it was stopped anywhere, in a file that is never half there."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from edge.bundle import sha256_of
from edge.errors import MachineError, UsageError, describe_os_error
from mdconv.data.cases import Cases
from mdconv.distributed import World

STATE = "state.pt"


@dataclass
class Progress:
    """How far a training is."""

    epoch: int = 0
    """Epochs that are over."""
    step: int = 0
    """Steps of the next epoch that are over."""
    loss_sum: float = 0.0
    """Of these steps."""
    best_score: float = float("-inf")
    best_epoch: int = 0
    finished: bool = False
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    """One record an epoch that is over."""


def fingerprint(what: Mapping[str, Any], train: Cases, validation: Cases, initial: Path | None) -> str:
    """SHA-256 of everything that decides a training's result: `what`, both sets' images, the initial weights."""
    sets = [[cases.name, cases.labels, cases.ids, cases.truth.tobytes().hex()] for cases in (train, validation)]
    whole = [dict(what), sets, sha256_of(initial) if initial else None]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=list).encode()).hexdigest()


def save_state(directory: Path, key: str, progress: Progress, parts: Mapping[str, Any]) -> None:
    """Write `progress` and the state of `parts` (each has ``state_dict``). Raises `MachineError`."""
    content = {"key": key, "progress": asdict(progress)}
    content.update({name: part.state_dict() for name, part in parts.items()})
    partial = directory / f"{STATE}.partial"
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / STATE)
    except OSError as error:
        raise MachineError(f"cannot keep the state of the training: {describe_os_error(error)}") from error


def load_state(directory: Path, key: str, parts: Mapping[str, Any], world: World) -> Progress:
    """Put the state in `directory`, if there is one, into `parts`; returns how far the training was.

    Only the leading process reads it, for all: other machines may have no such file.

    Raises `UsageError` if it is the state of another training (`key` differs), or is damaged.
    """
    path = directory / STATE
    data = world.from_leader((path.read_bytes() or b"nothing") if world.leads and path.exists() else b"")
    if not data:
        return Progress()
    try:
        content = torch.load(io.BytesIO(data), map_location=world.device, weights_only=True)
    except Exception as error:  # whatever torch finds wrong with the file
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}): name another --output, or delete it"
        ) from error
    if content.get("key") != key:
        raise UsageError(
            f"{path} is of another training (network, images, recipe or initial weights differ): name another --output"
        )
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return Progress(**content["progress"])
