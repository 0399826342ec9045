"""MobileNet-v3 (large) with MD-Conv in any of its stages.

Howard et al., "Searching for MobileNetV3", ICCV 2019, Table 1. MD-Conv after Hu et al., IEEE Access 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mdconv.networks.blocks import Network, choose_depthwise, conv_bn, initialise


class _Block(NamedTuple):
    kernel: int
    expanded: int
    out: int
    excite: bool
    hard: bool
    """Hardswish in place of ReLU."""
    stride: int


_STAGES: dict[str, tuple[_Block, ...]] = {  # Howard et al., Table 1
    "layer0": (_Block(3, 16, 16, False, False, 1),),
    "layer1": (_Block(3, 64, 24, False, False, 2), _Block(3, 72, 24, False, False, 1)),
    "layer2": (
        _Block(5, 72, 40, True, False, 2),
        _Block(5, 120, 40, True, False, 1),
        _Block(5, 120, 40, True, False, 1),
    ),
    "layer3": (
        _Block(3, 240, 80, False, True, 2),
        _Block(3, 200, 80, False, True, 1),
        _Block(3, 184, 80, False, True, 1),
        _Block(3, 184, 80, False, True, 1),
    ),
    "layer4": (_Block(3, 480, 112, True, True, 1), _Block(3, 672, 112, True, True, 1)),
    "layer5": (
        _Block(5, 672, 160, True, True, 2),
        _Block(5, 960, 160, True, True, 1),
        _Block(5, 960, 160, True, True, 1),
    ),
}
_STEM_CHANNELS = 16
_LAST_CHANNELS = 960
_HIDDEN = 1280


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in [0, 1] computed from all channels' means (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _rounded(channels / 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        gate: Tensor = self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))  # (N, C, 1, 1)
        return x * gate


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze and excite, project 1x1; a skip where the shapes allow it (Fig. 4)."""

    def __init__(self, channels: int, block: _Block, depthwise: nn.Sequential) -> None:
        super().__init__()
        activation = nn.Hardswish if block.hard else nn.ReLU
        grows = block.expanded != channels
        self.expand = conv_bn(channels, block.expanded, 1, activation=activation) if grows else nn.Sequential()
        self.depthwise = depthwise
        self.excite = SqueezeExcite(block.expanded) if block.excite else nn.Sequential()
        self.project = conv_bn(block.expanded, block.out, 1, activation=None)
        self.skip = block.stride == 1 and channels == block.out

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + out if self.skip else out


class MobileNetV3(Network):
    """MobileNet-v3 large.

    Its head is not linear (a hidden layer of 1280 with hardswish), so it has no class activation maps.

    Args:
        labels: number of outputs, L.
        md_stages: stages whose depthwise layers are MD-Conv; the others keep the network's own 3x3 or 5x5 kernels. The
            default is the one that works at 1/32 of the input, as "layer5" of MobileNet-v2 does.
        kernel_sizes, ratios: of each `MDConv`.
        in_channels: channels of the input.

    Raises:
        ValueError: a stage that does not exist, or kernels that `MDConv` refuses.
    """

    STAGES = tuple(_STAGES)

    def __init__(
        self,
        labels: int = 14,
        md_stages: Sequence[str] = ("layer5",),
        kernel_sizes: Sequence[int] = (3, 5),
        ratios: Sequence[int] = (1, 1),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        choice = choose_depthwise(self.STAGES, md_stages, kernel_sizes, ratios)
        self.stem = conv_bn(in_channels, _STEM_CHANNELS, 3, stride=2, activation=nn.Hardswish)
        channels = _STEM_CHANNELS
        for name, blocks in _STAGES.items():
            stage = nn.Sequential()
            for block in blocks:
                activation = nn.Hardswish if block.hard else nn.ReLU
                depthwise = choice.row(
                    name, block.expanded, block.stride, kernel_size=block.kernel, activation=activation
                )
                stage.append(InvertedResidual(channels, block, depthwise))
                channels = block.out
            self.add_module(name, stage)
        self.head = conv_bn(channels, _LAST_CHANNELS, 1, activation=nn.Hardswish)
        self.dropout = nn.Identity()
        self.classifier = nn.Sequential(
            nn.Linear(_LAST_CHANNELS, _HIDDEN), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(_HIDDEN, labels)
        )
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, 960, H / 32, W / 32)."""
        x = self.stem(x)  # (N, 16, H/2, W/2)
        for name in self.STAGES:
            x = self.get_submodule(name)(x)  # ends at (N, 160, H/32, W/32)
        return self.head(x)  # type: ignore[no-any-return]


def _rounded(channels: float) -> int:
    """To a multiple of 8, not below nine tenths of `channels`: how the authors' code rounds."""
    whole = max(8, int(channels + 4) // 8 * 8)
    return whole + 8 if whole < 0.9 * channels else whole
