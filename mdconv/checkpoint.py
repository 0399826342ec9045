"""Checkpoints: weights as safetensors, with everything that gives them meaning in the file's metadata.

The metadata holds one JSON object under the key ``mdconv``: ``network`` and ``config`` (the name and the options of
`mdconv.networks.build`), ``labels``, ``input_size``, ``thresholds``, ``notice``, ``card`` (how it was trained) and
``exclusive`` (whether the labels exclude each other; absent in older files, whose labels do not).
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from edge.bundle import sha256_of
from edge.errors import UsageError
from mdconv.networks import build

METADATA_KEY = "mdconv"
_REQUIRED = ("network", "config", "labels", "input_size", "thresholds", "notice", "card")


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights and their meaning."""

    model: nn.Module
    network: str
    config: dict[str, Any]
    labels: tuple[str, ...]
    input_size: int
    thresholds: dict[str, float]
    """Probability from which a finding counts as positive, one a label."""
    notice: str
    """What must be said wherever an output of these weights is shown."""
    card: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    """Of the file it was read from."""
    exclusive: bool = False
    """Whether an image has exactly one of the labels: then a label's probability is the softmax of the outputs, else
    each output's own sigmoid."""


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write weights and metadata to `path`, by way of a temporary file beside it. Raises `OSError`."""
    meaning = {name: getattr(checkpoint, name) for name in (*_REQUIRED, "exclusive")}
    temporary = path.with_name(path.name + ".partial")
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    try:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(meaning, sort_keys=True)})
        temporary.chmod(0o644)  # it comes out readable for its owner only
        temporary.replace(path)
    except SafetensorError as error:  # which is how safetensors wraps what the system says
        raise OSError(errno.EIO, str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; its model is in evaluation mode.

    Raises `UsageError` if the file is missing, is no checkpoint of ours, or its weights do not fit its network.
    """
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}: check --checkpoint, or leave it out for the demo checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UsageError(f"{path} is not a safetensors file ({error}): expected one that mdconv.train wrote") from None
    meaning = _meaning(metadata, path)
    try:
        model = build(meaning["network"], **meaning["config"])
    except ValueError as error:
        raise UsageError(f"{path}: {error}: train it anew with this version") from None
    _check_shapes(model, tensors, path)
    model.load_state_dict(tensors)
    return Checkpoint(
        model=model.eval(),
        sha256=sha256_of(path),
        **{**meaning, "labels": tuple(meaning["labels"])},
    )


def _meaning(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        meaning = json.loads(metadata[METADATA_KEY])
        return {**{name: meaning[name] for name in _REQUIRED}, "exclusive": bool(meaning.get("exclusive", False))}
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} has no readable {METADATA_KEY!r} metadata ({error}): expected a checkpoint that mdconv.train wrote"
        ) from None


def _check_shapes(model: nn.Module, tensors: Mapping[str, Any], path: Path) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[name].shape) if name in expected else "nothing"
        have = tuple(tensors[name].shape) if name in tensors else "nothing"
        if want != have:
            raise UsageError(
                f"{path}: weight {name} is {have}, its network expects {want}: "
                "the weights belong to another network; name the right checkpoint"
            )
