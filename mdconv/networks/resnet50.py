"""ResNet-50, a baseline: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1.

As it has become usual, a bottleneck halves the resolution in its 3x3 convolution, not in its first 1x1.
"""

from __future__ import annotations

from torch import Tensor, nn

from mdconv.networks.blocks import Network, conv_bn, initialise

_STAGES = {"layer1": (64, 3, 1), "layer2": (128, 4, 2), "layer3": (256, 6, 2), "layer4": (512, 3, 2)}
"""Bottleneck channels, blocks, stride of the first block."""
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with four times the channels, added to the input or its projection (He et al., Fig. 5)."""

    def __init__(self, channels: int, hidden: int, stride: int) -> None:
        super().__init__()
        out_channels = hidden * _EXPANSION
        self.reduce = conv_bn(channels, hidden, 1)
        self.convolve = conv_bn(hidden, hidden, 3, stride)
        self.expand = conv_bn(hidden, out_channels, 1, activation=None)
        changes = stride != 1 or channels != out_channels
        self.shortcut = conv_bn(channels, out_channels, 1, stride, activation=None) if changes else nn.Sequential()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.expand(self.convolve(self.reduce(x)))
        return self.relu(self.shortcut(x) + out)  # type: ignore[no-any-return]


class ResNet50(Network):
    """ResNet-50 with `labels` outputs and an input of `in_channels` channels."""

    def __init__(self, labels: int = 14, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = conv_bn(in_channels, 64, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for name, (hidden, blocks, first_stride) in _STAGES.items():
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(Bottleneck(channels, hidden, first_stride if block == 0 else 1))
                channels = hidden * _EXPANSION
            self.add_module(name, stage)
        self.dropout = nn.Identity()
        self.classifier = nn.Linear(channels, labels)
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, 2048, H / 32, W / 32)."""
        x = self.pool(self.stem(x))  # (N, 64, H/4, W/4)
        for name in _STAGES:
            x = self.get_submodule(name)(x)
        return x
