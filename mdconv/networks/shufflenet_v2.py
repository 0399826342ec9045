"""ShuffleNet-v2 with MD-Conv in any of its stages.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018, Table 5. MD-Conv
after Hu et al., IEEE Access 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mdconv.networks.blocks import Depthwise, Network, choose_depthwise, conv_bn, initialise

_CHANNELS: dict[float, tuple[int, int, int, int]] = {
    # width: output channels of the three stages and of the last convolution (Ma et al., Table 5)
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_BLOCKS = {"layer0": 4, "layer1": 8, "layer2": 4}
_STEM_CHANNELS = 24


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the other half go through 1x1, depthwise, 1x1; then they are mixed (Fig. 3c)."""

    def __init__(self, channels: int, stage: str, choice: Depthwise) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), choice.row(stage, half, 1, activation=None), conv_bn(half, half, 1)
        )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        kept, changed = torch.chunk(x, 2, dim=1)
        return self.shuffle(torch.cat([kept, self.branch(changed)], dim=1))  # type: ignore[no-any-return]


class DownUnit(nn.Module):
    """All channels go both ways, each with stride 2, so that their number grows; then they are mixed (Fig. 3d).

    The shortcut keeps its number of channels and the branch makes up the rest: half each, except in the first unit. So
    the authors' own code has it, and so the costs that they, and Hu et al., publish come out.
    """

    def __init__(self, channels: int, out_channels: int, stage: str, choice: Depthwise) -> None:
        super().__init__()
        half = out_channels // 2
        self.branch = nn.Sequential(
            conv_bn(channels, half, 1),
            choice.row(stage, half, 2, activation=None),
            conv_bn(half, out_channels - channels, 1),
        )
        self.shortcut = nn.Sequential(choice.row(stage, channels, 2, activation=None), conv_bn(channels, channels, 1))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / 2), ceil(W / 2))."""
        return self.shuffle(torch.cat([self.shortcut(x), self.branch(x)], dim=1))  # type: ignore[no-any-return]


class ShuffleNetV2(Network):
    """ShuffleNet-v2.

    Args:
        labels: number of outputs, L.
        md_stages: stages whose depthwise layers are MD-Conv. The default is the one that works at 1/32 of the input, as
            "layer5" of MobileNet-v2 does.
        kernel_sizes, ratios: of each `MDConv`.
        in_channels: channels of the input.
        width: 0.5, 1, 1.5 or 2; the cost that Hu et al. publish (2369 M) is that of 2.

    Raises:
        ValueError: a stage or width that does not exist, or kernels that `MDConv` refuses.
    """

    STAGES = tuple(_BLOCKS)

    def __init__(
        self,
        labels: int = 14,
        md_stages: Sequence[str] = ("layer2",),
        kernel_sizes: Sequence[int] = (3, 5),
        ratios: Sequence[int] = (1, 1),
        in_channels: int = 3,
        width: float = 2.0,
    ) -> None:
        super().__init__()
        if width not in _CHANNELS:
            raise ValueError(f"width {width}, expected one of {', '.join(map(str, _CHANNELS))}")
        choice = choose_depthwise(self.STAGES, md_stages, kernel_sizes, ratios)
        *widths, last = _CHANNELS[width]
        self.stem = conv_bn(in_channels, _STEM_CHANNELS, 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = _STEM_CHANNELS
        for (name, blocks), out_channels in zip(_BLOCKS.items(), widths):
            stage = nn.Sequential(DownUnit(channels, out_channels, name, choice))
            for _ in range(blocks - 1):
                stage.append(ShuffleUnit(out_channels, name, choice))
            self.add_module(name, stage)
            channels = out_channels
        self.head = conv_bn(channels, last, 1)
        self.dropout = nn.Identity()
        self.classifier = nn.Linear(last, labels)
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, 1024 or 2048, H / 32, W / 32)."""
        x = self.pool(self.stem(x))  # (N, 24, H/4, W/4)
        for name in self.STAGES:
            x = self.get_submodule(name)(x)
        return self.head(x)  # type: ignore[no-any-return]
