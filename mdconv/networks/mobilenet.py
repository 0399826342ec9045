"""MobileNet with MD-Conv in any of its stages.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017, Table 1; the
network at width 1. MD-Conv after Hu et al., IEEE Access 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mdconv.networks.blocks import Network, choose_depthwise, conv_bn, initialise

_STAGES: dict[str, tuple[int, int, int]] = {
    # name: output channels, blocks, stride of the first block (Howard et al., Table 1)
    "layer0": (64, 1, 1),
    "layer1": (128, 2, 2),
    "layer2": (256, 2, 2),
    "layer3": (512, 6, 2),
    "layer4": (1024, 2, 2),
}
_STEM_CHANNELS = 32


class MobileNet(Network):
    """MobileNet: depthwise separable convolutions, each depthwise and 1x1, both with batch norm and ReLU.

    Args:
        labels: number of outputs, L.
        md_stages: stages whose depthwise layers are MD-Conv. The default is the one that works at 1/32 of the input,
            as "layer5" of MobileNet-v2 does.
        kernel_sizes, ratios: of each `MDConv`.
        in_channels: channels of the input.

    Raises:
        ValueError: a stage that does not exist, or kernels that `MDConv` refuses.
    """

    STAGES = tuple(_STAGES)

    def __init__(
        self,
        labels: int = 14,
        md_stages: Sequence[str] = ("layer4",),
        kernel_sizes: Sequence[int] = (3, 5),
        ratios: Sequence[int] = (1, 1),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        depthwise = choose_depthwise(self.STAGES, md_stages, kernel_sizes, ratios)
        self.stem = conv_bn(in_channels, _STEM_CHANNELS, 3, stride=2)
        channels = _STEM_CHANNELS
        for name, (out_channels, blocks, first_stride) in _STAGES.items():
            stage = nn.Sequential()
            for block in range(blocks):
                separable = nn.Sequential()
                separable.add_module("depthwise", depthwise.row(name, channels, first_stride if block == 0 else 1))
                separable.add_module("pointwise", conv_bn(channels, out_channels, 1))
                stage.append(separable)
                channels = out_channels
            self.add_module(name, stage)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(channels, labels)
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) float, normalised, to (N, 1024, H / 32, W / 32)."""
        x = self.stem(x)  # (N, 32, H/2, W/2)
        for name in self.STAGES:
            x = self.get_submodule(name)(x)
        return x
