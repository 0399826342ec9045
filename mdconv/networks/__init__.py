"""The networks, one file each, and what they share: the input's normalisation and the choice by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdconv.networks.blocks import Network
from mdconv.networks.densenet121 import DenseNet121
from mdconv.networks.mobilenet import MobileNet
from mdconv.networks.mobilenet_v2 import MobileNetV2
from mdconv.networks.mobilenet_v3 import MobileNetV3
from mdconv.networks.resnet50 import ResNet50
from mdconv.networks.shufflenet import ShuffleNet
from mdconv.networks.shufflenet_v2 import ShuffleNetV2

GRAY_MEAN = 0.485
GRAY_STD = 0.229
"""Mean and deviation of the input in [0, 1]: ImageNet's red channel, for all three channels, so that the stem's three
equal input channels can be folded into one at export."""

NETWORKS: dict[str, type[Network]] = {
    "mobilenet": MobileNet,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3": MobileNetV3,
    "shufflenet": ShuffleNet,
    "shufflenet_v2": ShuffleNetV2,
    "resnet50": ResNet50,
    "densenet121": DenseNet121,
}


def build(name: str, **config: Any) -> Network:
    """The network called `name`, randomly initialised. Raises `ValueError` for an unknown name or a wrong option."""
    network = _named(name)
    try:
        return network(**config)
    except TypeError as error:
        raise ValueError(f"network {name!r} does not take these options: {error}") from error


def stages(name: str) -> tuple[str, ...]:
    """The stages of network `name` that hold depthwise layers, in their order; none for the baselines.

    Raises `ValueError` for an unknown name.
    """
    return tuple(getattr(_named(name), "STAGES", ()))


def _named(name: str) -> type[Network]:
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is none of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def resolve_stages(name: str, text: str) -> tuple[str, ...]:
    """Stages as a command line names them: "all", "none", or names with commas between. Raises `ValueError`."""
    known = stages(name)
    if text in ("all", "none"):
        return known if text == "all" else ()
    chosen = tuple(part.strip() for part in text.split(","))
    if unknown := [part for part in chosen if part not in known]:
        expected = ", ".join(("all", "none", *known))
        raise ValueError(f"{name} has no stage {', '.join(map(repr, unknown))}, expected some of {expected}")
    return chosen


def normalise(images: Tensor, channels: int = 3) -> Tensor:
    """(N, 1, H, W) uint8 gray images to the (N, channels, H, W) float32 that a network takes."""
    return ((images.float() / 255 - GRAY_MEAN) / GRAY_STD).expand(-1, channels, -1, -1)


def log_odds(outputs: Tensor, exclusive: bool) -> Tensor:
    """The network's outputs (N, L) as logits (N, L) whose sigmoid is each label's probability.

    Labels that exclude each other have the softmax as probability, and softmax_i = sigmoid(z_i - log sum_{j != i}
    exp(z_j)): with two labels a difference, so that a linear head stays one. Other outputs are logits already.
    """
    if not exclusive:
        return outputs
    others = outputs[:, None, :].expand(-1, outputs.shape[1], -1)
    itself = torch.eye(outputs.shape[1], dtype=torch.bool, device=outputs.device)
    return outputs - others.masked_fill(itself, -torch.inf).logsumexp(dim=2)
