"""Which weights a build takes: the user's checkpoint, the demo's, or random ones, to time an untrained network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import Checkpoint, load_checkpoint
from mdconv.data.phantom import CALIBRATION_SEEDS, render
from mdconv.networks import NETWORKS, build, normalise, resolve_stages
from mdconv.weights import DEMO_CHECKPOINT

RANDOM_NOTICE = "random weights, for timing only"
INPUT_SIZE = 448
_STATISTICS_IMAGES = 4
_STATISTICS_SIZE = 224


class Weights(NamedTuple):
    """A checkpoint, and what may be taken for its own images where the user names none."""

    checkpoint: Checkpoint
    on_phantoms: bool
    """Whether phantoms are images of its kind: for the demo's weights, which learned on them, and for random ones."""
    random: bool


def choose_weights(path: Path | None, network: str | None, md_stages: str | None) -> Weights:
    """The checkpoint at `path`, which must then be of `network` with MD-Conv in `md_stages`, or what these ask for.

    Without a path: the demo checkpoint if it is what they describe, else the network with random weights. Raises
    `UsageError` for names that do not exist and for a checkpoint of another network.
    """
    if network is None and md_stages is not None:
        raise UsageError("--md-stages without --network: name the network too")
    if network is not None and network not in NETWORKS:
        raise UsageError(f"--network {network}: expected one of {', '.join(NETWORKS)}")
    wanted = _config(network, md_stages) if network else None
    checkpoint = load_checkpoint(path or DEMO_CHECKPOINT)
    fits = network is None or (checkpoint.network == network and _agrees(checkpoint.config, wanted or {}))
    if path is not None and not fits:
        raise UsageError(
            f"{path} is {_describe(checkpoint.network, checkpoint.config)}, --network asks for "
            f"{_describe(str(network), wanted or {})}: leave --network out, or name another checkpoint"
        )
    if fits:
        return Weights(checkpoint, on_phantoms=path is None, random=False)
    return Weights(random_weights(str(network), wanted or {}), on_phantoms=True, random=True)


def random_weights(network: str, config: dict[str, Any]) -> Checkpoint:
    """`network` as it is before training, its batch norm statistics those of a few phantoms: it runs as a trained one.

    Without the statistics activations would grow or vanish from layer to layer, and nothing could be calibrated.
    """
    torch.manual_seed(0)
    config = {"labels": len(CHESTXRAY14), **config}
    model = build(network, **config)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
    images = np.stack([render(seed, _STATISTICS_SIZE).image for seed in CALIBRATION_SEEDS[:_STATISTICS_IMAGES]])
    with torch.no_grad():
        model.train()(normalise(torch.from_numpy(images[:, None])))
    thresholds = dict.fromkeys(CHESTXRAY14, 0.5)
    return Checkpoint(model.eval(), network, config, CHESTXRAY14, INPUT_SIZE, thresholds, RANDOM_NOTICE)


def _config(network: str, md_stages: str | None) -> dict[str, Any]:
    if md_stages is None:
        return {}
    try:
        return {"md_stages": list(resolve_stages(network, md_stages))}
    except ValueError as error:
        raise UsageError(f"--md-stages: {error}") from None


def _agrees(config: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(list(config.get(name, ())) == value for name, value in wanted.items())


def _describe(network: str, config: dict[str, Any]) -> str:
    stages = config.get("md_stages")
    return network if stages is None else f"{network} with MD-Conv in {', '.join(stages) or 'no stage'}"
