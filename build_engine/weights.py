"""Which weights a build takes: the user's checkpoint, the demo's, or random ones, to time an untrained network."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import Checkpoint, load_checkpoint
from mdconv.data.phantom import CALIBRATION_SEEDS, render
from mdconv.networks import NETWORKS, build, normalise, resolve_stages, stages
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
    checkpoint = load_checkpoint(path or DEMO_CHECKPOINT)
    found = _stages_of(checkpoint)
    wanted = found if network is None or md_stages is None else _resolve(network, md_stages)
    if network in (None, checkpoint.network) and sorted(found) == sorted(wanted):
        return Weights(checkpoint, on_phantoms=path is None, random=False)
    network = str(network)
    config = {"md_stages": list(wanted)} if md_stages is not None and stages(network) else {}
    if path is not None:
        raise UsageError(
            f"{path} is {_describe(checkpoint.network, found)}, --network asks for "
            f"{_describe(network, config.get('md_stages'))}: leave --network out, or name another checkpoint"
        )
    return Weights(random_weights(network, config), on_phantoms=True, random=True)


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


def _resolve(network: str, md_stages: str) -> tuple[str, ...]:
    try:
        return resolve_stages(network, md_stages)
    except ValueError as error:
        raise UsageError(f"--md-stages: {error}") from None


def _stages_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The stages with MD-Conv: the configuration's or, where it does not say, the network's own."""
    own = inspect.signature(NETWORKS[checkpoint.network]).parameters.get("md_stages")
    return tuple(checkpoint.config.get("md_stages", own.default if own else ()))


def _describe(network: str, md_stages: Sequence[str] | None) -> str:
    """`md_stages` is None where nobody named any."""
    if md_stages is None or not stages(network):
        return network
    return f"{network} with MD-Conv in {', '.join(md_stages) or 'no stage'}"
