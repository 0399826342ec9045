"""Multiply-accumulates and parameters of a network (paper eq. 1 to 7).

Counted are the multiply-accumulates of convolutions and linear layers, nothing else: batch norm folds into them, and
activations, pooling and additions are not multiply-accumulates.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Cost(NamedTuple):
    """What one image costs."""

    macs: int
    """Multiply-accumulates of convolutions and linear layers."""
    parameters: int
    """Trainable parameters, batch norm's scale and shift included."""


def cost(network: nn.Module, input_size: int, in_channels: int = 3) -> Cost:
    """Cost of `network` for one (1, in_channels, input_size, input_size) image, counted on a run without arithmetic."""
    macs = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):  # eq. 1 and 2: output positions x kernel area x input channels a group
            macs += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel()

    on_meta = copy.deepcopy(network).eval().to("meta")
    hooks = [module.register_forward_hook(count) for module in on_meta.modules()]
    try:
        on_meta(torch.empty(1, in_channels, input_size, input_size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(macs, sum(p.numel() for p in network.parameters()))
