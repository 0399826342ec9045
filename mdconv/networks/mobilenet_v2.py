"""MobileNet-v2 with MD-Conv in any of its stages.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2; MD-Conv after Hu et al.,
IEEE Access 2020.

Where MD-Conv belongs, the paper says twice and differently: section III-B-2 names layer2, section IV-C-3 and Table 1
name layer5. Here layer5 is the default (it is the one that was measured) and `md_stages` chooses. Stages count from
0, so that layer5 is the one with 160 channels: this is the counting under which the published cost (1.2 G
multiply-accumulates at 448x448, 2.3 M parameters) comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mdconv.layers import MDConv

STAGES: dict[str, tuple[int, int, int, int]] = {
    # name: expansion t, output channels c, blocks n, stride s of the first block (Sandler et al., Table 2)
    "layer0": (1, 16, 1, 1),
    "layer1": (6, 24, 2, 2),
    "layer2": (6, 32, 3, 2),
    "layer3": (6, 64, 4, 2),
    "layer4": (6, 96, 3, 1),
    "layer5": (6, 160, 3, 2),
    "layer6": (6, 320, 1, 1),
}
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1; a skip where the shapes allow it (Sandler et al., Fig. 4d).

    `depthwise` is the layer in the middle, made by the caller: a plain depthwise convolution or an `MDConv`.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int, depthwise: nn.Module, stride: int) -> None:
        super().__init__()
        self.expand = conv_bn_relu6(channels, hidden, 1) if hidden != channels else nn.Sequential()
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
        self.skip = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.expand(x)  # (N, t C, H, W)
        out = self.depthwise(out)  # (N, t C, H / stride, W / stride)
        out = self.project(out)  # (N, C', H / stride, W / stride), linear: no activation
        return x + out if self.skip else out


class MobileNetV2(nn.Module):
    """MobileNet-v2 for multi-label classification.

    Args:
        labels: number of outputs, L.
        md_stages: stages ("layer0" to "layer6") whose depthwise layers are MD-Conv; empty for the plain network.
        kernel_sizes, ratios: of each `MDConv`.
        in_channels: channels of the input.

    Raises:
        ValueError: a stage that does not exist, or kernels that `MDConv` refuses.
    """

    STAGES = tuple(STAGES)

    def __init__(
        self,
        labels: int = 14,
        md_stages: Sequence[str] = ("layer5",),
        kernel_sizes: Sequence[int] = (3, 5),
        ratios: Sequence[int] = (1, 1),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(md_stages) - set(STAGES)):
            raise ValueError(f"no stage {', '.join(map(repr, unknown))}, expected some of {', '.join(STAGES)}")

        self.stem = conv_bn_relu6(in_channels, STEM_CHANNELS, 3, stride=2)
        channels = STEM_CHANNELS
        for name, (expansion, out_channels, blocks, first_stride) in STAGES.items():
            stage = nn.Sequential()
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                hidden = channels * expansion
                depthwise = (
                    MDConv(hidden, kernel_sizes, ratios, stride)
                    if name in md_stages
                    else nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
                )
                stage.append(InvertedResidual(channels, hidden, out_channels, depthwise, stride))
                channels = out_channels
            self.add_module(name, stage)
        self.head = conv_bn_relu6(channels, HEAD_CHANNELS, 1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(HEAD_CHANNELS, labels)
        self.apply(_initialise)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, 1280, H / 32, W / 32)."""
        x = self.stem(x)  # (N, 32, H/2, W/2)
        for name in STAGES:
            x = self.get_submodule(name)(x)  # ends at (N, 320, H/32, W/32)
        return self.head(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to logits (N, L): global average pooling, then a linear layer."""
        pooled = torch.mean(self.features(x), dim=(2, 3))  # (N, 1280)
        return self.classifier(self.dropout(pooled))  # type: ignore[no-any-return]


def conv_bn_relu6(channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution with "same" padding, batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


def _initialise(module: nn.Module) -> None:
    """MSRA initialisation (He et al., ICCV 2015), as the paper's section IV-B."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
