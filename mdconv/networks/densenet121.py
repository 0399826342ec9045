"""DenseNet-121, a baseline: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, Table 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdconv.networks.blocks import Network, initialise

_BLOCKS = {"layer1": 6, "layer2": 12, "layer3": 24, "layer4": 16}
"""Dense layers in each block."""
_GROWTH = 32
_BOTTLENECK = 4 * _GROWTH


def _norm_relu_conv(channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Batch norm and ReLU before the convolution (Huang et al., section 3)."""
    convolution = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), convolution)


class DenseLayer(nn.Module):
    """1x1 to 128 channels, 3x3 to 32, put beside the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = _norm_relu_conv(channels, _BOTTLENECK, 1)
        self.convolve = _norm_relu_conv(_BOTTLENECK, _GROWTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + 32, H, W)."""
        return torch.cat([x, self.convolve(self.reduce(x))], dim=1)


class DenseNet121(Network):
    """DenseNet-121 with `labels` outputs and an input of `in_channels` channels."""

    def __init__(self, labels: int = 14, in_channels: int = 3) -> None:
        super().__init__()
        channels = 2 * _GROWTH
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 7, 2, padding=3, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        for name, layers in _BLOCKS.items():
            block = nn.Sequential(*(DenseLayer(channels + number * _GROWTH) for number in range(layers)))
            channels += layers * _GROWTH
            if name != "layer4":
                block.append(nn.Sequential(_norm_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)))
                channels //= 2
            self.add_module(name, block)
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.dropout = nn.Identity()
        self.classifier = nn.Linear(channels, labels)
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, 1024, H / 32, W / 32)."""
        x = self.pool(self.stem(x))  # (N, 64, H/4, W/4)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return self.head(x)  # type: ignore[no-any-return]
