"""What the networks share: rows of layers, the choice of depthwise convolution, the head, the initialisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mdconv.layers import MDConv


def conv_bn(
    channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution with "same" padding, batch norm and, unless it is None, an activation."""
    padding = kernel_size // 2
    row = nn.Sequential(
        nn.Conv2d(channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )
    return row if activation is None else row.append(activation())


@dataclass(frozen=True)
class Depthwise:
    """Makes a network's depthwise layers: MD-Conv in the chosen stages, plain ones in the others."""

    md_stages: tuple[str, ...]
    kernel_sizes: tuple[int, ...]
    ratios: tuple[int, ...]

    def layer(self, stage: str, channels: int, stride: int, kernel_size: int = 3) -> nn.Module:
        """The depthwise layer of `stage`: (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).

        `kernel_size` is the plain network's own.
        """
        if stage in self.md_stages:
            return MDConv(channels, self.kernel_sizes, self.ratios, stride)
        padding = kernel_size // 2
        return nn.Conv2d(channels, channels, kernel_size, stride, padding, groups=channels, bias=False)

    def row(
        self,
        stage: str,
        channels: int,
        stride: int,
        *,
        kernel_size: int = 3,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> nn.Sequential:
        """`layer` with batch norm and, unless it is None, an activation."""
        row = nn.Sequential(self.layer(stage, channels, stride, kernel_size), nn.BatchNorm2d(channels))
        return row if activation is None else row.append(activation())


def choose_depthwise(
    stages: Sequence[str], md_stages: Sequence[str], kernel_sizes: Sequence[int], ratios: Sequence[int]
) -> Depthwise:
    """The choice, checked: raises `ValueError` for a stage that is none of `stages`."""
    if unknown := sorted(set(md_stages) - set(stages)):
        raise ValueError(f"no stage {', '.join(map(repr, unknown))}, expected some of {', '.join(stages)}")
    return Depthwise(tuple(md_stages), tuple(kernel_sizes), tuple(ratios))


class Network(nn.Module, ABC):
    """Features, their mean over positions, dropout, a classifier: what every network here is.

    `classifier` takes (N, C) and gives (N, L). Where it is an `nn.Linear`, class activation maps exist.
    """

    classifier: nn.Module
    dropout: nn.Module

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to outputs (N, L)."""
        pooled = torch.mean(self.features(x), dim=(2, 3))
        return self.classifier(self.dropout(pooled))  # type: ignore[no-any-return]


def initialise(module: nn.Module) -> None:
    """MSRA initialisation (He et al., ICCV 2015), as the paper's section IV-B; for `nn.Module.apply`.

    A grouped convolution's fan-out is counted over all groups, as PyTorch does it; batch norm makes up for it.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
