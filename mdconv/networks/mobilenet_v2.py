"""MobileNet-v2 with MD-Conv in any of its stages.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2; MD-Conv after Hu et al.,
IEEE Access 2020.

Where MD-Conv belongs, the paper says twice and differently: section III-B-2 names layer2, section IV-C-3 and Table 1
name layer5. Here layer5 is the default (it is the one that was measured) and `md_stages` chooses. Stages count from
0, so that layer5 is the one with 160 channels. The published costs do not settle it: Table 7's 1241 M at 448x448 is
18 M above Table 3's plain network, and MD-Conv adds 3.9 M in layer5, 13.2 M in layer2 and in no single stage 18 M.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mdconv.networks.blocks import Network, choose_depthwise, conv_bn, initialise

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

    `depthwise` is the row in the middle, made by the caller: plain depthwise or `MDConv`, batch norm, activation.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int, depthwise: nn.Module, stride: int) -> None:
        super().__init__()
        grows = hidden != channels
        self.expand = conv_bn(channels, hidden, 1, activation=nn.ReLU6) if grows else nn.Sequential()
        self.depthwise = depthwise
        self.project = conv_bn(hidden, out_channels, 1, activation=None)
        self.skip = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.expand(x)  # (N, t C, H, W)
        out = self.depthwise(out)  # (N, t C, H / stride, W / stride)
        out = self.project(out)  # (N, C', H / stride, W / stride), linear: no activation
        return x + out if self.skip else out


class MobileNetV2(Network):
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
        choice = choose_depthwise(self.STAGES, md_stages, kernel_sizes, ratios)
        self.stem = conv_bn(in_channels, STEM_CHANNELS, 3, stride=2, activation=nn.ReLU6)
        channels = STEM_CHANNELS
        for name, (expansion, out_channels, blocks, first_stride) in STAGES.items():
            stage = nn.Sequential()
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                hidden = channels * expansion
                depthwise = choice.row(name, hidden, stride, activation=nn.ReLU6)
                stage.append(InvertedResidual(channels, hidden, out_channels, depthwise, stride))
                channels = out_channels
            self.add_module(name, stage)
        self.head = conv_bn(channels, HEAD_CHANNELS, 1, activation=nn.ReLU6)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(HEAD_CHANNELS, labels)
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, 1280, H / 32, W / 32)."""
        x = self.stem(x)  # (N, 32, H/2, W/2)
        for name in STAGES:
            x = self.get_submodule(name)(x)  # ends at (N, 320, H/32, W/32)
        return self.head(x)  # type: ignore[no-any-return]
