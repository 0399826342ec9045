"""ShuffleNet with MD-Conv in any of its stages.

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018, Table 1.
MD-Conv after Hu et al., IEEE Access 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mdconv.networks.blocks import Network, choose_depthwise, conv_bn, initialise

_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Output channels of the first stage, by the number of groups (Zhang et al., Table 1); later stages double them."""
_BLOCKS = {"layer0": 4, "layer1": 8, "layer2": 4}
_STEM_CHANNELS = {0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}
"""By width. Not all in proportion: so the authors' own code has it with 3 groups, and the published costs come out."""


class ShuffleUnit(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise, grouped 1x1, added to its input (Zhang et al., Fig. 2b and 2c).

    With stride 2 the result is put beside the averaged input instead of being added to it.
    """

    def __init__(
        self, channels: int, hidden: int, out_channels: int, groups: int, first_groups: int, depthwise: nn.Module
    ) -> None:
        super().__init__()
        self.stride = 2 if out_channels != channels else 1
        added = out_channels - channels if self.stride == 2 else out_channels
        self.reduce = conv_bn(channels, hidden, 1, groups=first_groups)
        self.shuffle = nn.ChannelShuffle(groups)
        self.depthwise = depthwise
        self.expand = conv_bn(hidden, added, 1, groups=groups, activation=None)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.expand(self.depthwise(self.shuffle(self.reduce(x))))
        joined = torch.cat([out, self.pool(x)], dim=1) if self.stride == 2 else x + out
        return self.relu(joined)  # type: ignore[no-any-return]


class ShuffleNet(Network):
    """ShuffleNet.

    Args:
        labels: number of outputs, L.
        md_stages: stages whose depthwise layers are MD-Conv. The default is the one that works at 1/32 of the input, as
            "layer5" of MobileNet-v2 does.
        kernel_sizes, ratios: of each `MDConv`.
        in_channels: channels of the input.
        groups: of the 1x1 convolutions: 1, 2, 3, 4 or 8.
        narrow: whether the unit with stride 2 has a quarter of the channels that it adds in its middle, as in much code
            of the time, and not of those that it puts out, as Zhang et al. have it. The cost that Hu et al. publish
            (521 M) comes out with it, 3 groups and width 1.
        width: 0.5, 1, 1.5 or 2: the stages' channels are in proportion to it.

    Raises:
        ValueError: a stage, number of groups or width that does not exist, channels that the groups do not divide, or
            kernels that `MDConv` refuses.
    """

    STAGES = tuple(_BLOCKS)

    def __init__(
        self,
        labels: int = 14,
        md_stages: Sequence[str] = ("layer2",),
        kernel_sizes: Sequence[int] = (3, 5),
        ratios: Sequence[int] = (1, 1),
        in_channels: int = 3,
        groups: int = 3,
        narrow: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if groups not in _CHANNELS:
            raise ValueError(f"{groups} groups, expected one of {', '.join(map(str, _CHANNELS))}")
        if width not in _STEM_CHANNELS:
            raise ValueError(f"width {width}, expected one of {', '.join(map(str, _STEM_CHANNELS))}")
        choice = choose_depthwise(self.STAGES, md_stages, kernel_sizes, ratios)
        self.stem = conv_bn(in_channels, _STEM_CHANNELS[width], 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, out_channels = _STEM_CHANNELS[width], int(_CHANNELS[groups] * width)
        for name, blocks in _BLOCKS.items():
            stage = nn.Sequential()
            for block in range(blocks):
                hidden = (out_channels - channels if narrow and block == 0 else out_channels) // 4
                for divided in (hidden, out_channels - channels):
                    if divided % groups:
                        raise ValueError(f"{groups} groups do not divide {divided} channels of {name}")
                depthwise = choice.row(name, hidden, 2 if block == 0 else 1, activation=None)
                # The first 1x1 convolution sees the stem's few channels: not grouped (Zhang et al., section 3.2).
                first_groups = 1 if channels == _STEM_CHANNELS[width] else groups
                stage.append(ShuffleUnit(channels, hidden, out_channels, groups, first_groups, depthwise))
                channels = out_channels
            self.add_module(name, stage)
            out_channels *= 2
        self.dropout = nn.Identity()
        self.classifier = nn.Linear(channels, labels)
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, C, H / 32, W / 32)."""
        x = self.pool(self.stem(x))  # (N, 24, H/4, W/4) at width 1
        for name in self.STAGES:
            x = self.get_submodule(name)(x)
        return x
