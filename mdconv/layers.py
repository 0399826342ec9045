"""Multi-kernel depthwise convolution (MD-Conv) and its plain reference.

Hu et al., "Learning to Recognize Chest-Xray Images Faster and More Efficiently Based on Multi-Kernel Depthwise
Convolution", IEEE Access 2020, eq. 5: the channels of one depthwise layer are split into groups, each group is
convolved with its own kernel size, and the results are concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def split_channels(channels: int, ratios: Sequence[int]) -> tuple[int, ...]:
    """Split `channels` in proportion to `ratios`; what rounding leaves over goes to the first group with a share.

    >>> split_channels(7, (1, 1))
    (4, 3)

    Raises `ValueError` for a negative ratio, ratios that are all zero, or a group left without a channel.
    """
    if not ratios or min(ratios) < 0 or sum(ratios) == 0:
        raise ValueError(f"ratios are {tuple(ratios)}, expected non-negative whole numbers that are not all zero")
    splits = [channels * ratio // sum(ratios) for ratio in ratios]
    splits[next(i for i, ratio in enumerate(ratios) if ratio)] += channels - sum(splits)
    if any(ratio and not split for ratio, split in zip(ratios, splits)):
        raise ValueError(f"{channels} channels cannot be split {tuple(ratios)}: a group would have none")
    return tuple(splits)


class MDConv(nn.Module):
    """Depthwise convolution whose channels are split between kernel sizes (paper eq. 5). No bias, "same" padding.

    Args:
        channels: number of input and of output channels, C.
        kernel_sizes: odd kernel sizes, one a group.
        ratios: share of the channels that each group gets; a zero leaves the group out.
        stride: 1 or 2.

    Raises:
        ValueError: an even kernel size, another stride, or a split that `split_channels` refuses.
    """

    def __init__(
        self, channels: int, kernel_sizes: Sequence[int] = (3, 5), ratios: Sequence[int] = (1, 1), stride: int = 1
    ) -> None:
        super().__init__()
        if len(kernel_sizes) != len(ratios):
            raise ValueError(f"{len(kernel_sizes)} kernel sizes but {len(ratios)} ratios: give one ratio a kernel size")
        if any(size < 1 or size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f"kernel sizes are {tuple(kernel_sizes)}, expected odd ones, for padding k // 2 a side")
        if stride not in (1, 2):
            raise ValueError(f"stride is {stride}, expected 1 or 2")
        groups = [(k, c) for k, c in zip(kernel_sizes, split_channels(channels, ratios)) if c]
        self.channels = channels
        self.kernel_sizes = tuple(k for k, _ in groups)
        self.channel_splits = tuple(c for _, c in groups)
        self.stride = stride
        self.convs = nn.ModuleList(nn.Conv2d(c, c, k, stride, padding=k // 2, groups=c, bias=False) for k, c in groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)), same dtype."""
        parts = torch.split(x, list(self.channel_splits), dim=1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts)], dim=1)

    def padded_weight(self) -> Tensor:
        """All kernels as one (C, 1, K, K) weight, K the largest size: smaller kernels centred and zero-padded.

        One depthwise convolution with this weight and padding K // 2 equals `forward`.
        """
        largest = max(self.kernel_sizes)
        margins = [(largest - k) // 2 for k in self.kernel_sizes]
        weights = [conv.get_parameter("weight") for conv in self.convs]
        return torch.cat([nn.functional.pad(w, (m, m, m, m)) for w, m in zip(weights, margins)])

    def extra_repr(self) -> str:
        groups = ", ".join(f"{c} of {k}x{k}" for k, c in zip(self.kernel_sizes, self.channel_splits))
        return f"{groups}, stride={self.stride}"


def mdconv_reference(x: Tensor, weights: Sequence[Tensor], stride: int = 1) -> Tensor:
    """MD-Conv by loops over channels and kernel positions: slow, independent of any convolution routine, for tests.

    Args:
        x: (N, C, H, W), any float dtype.
        weights: one (C_g, 1, k_g, k_g) weight a group, in channel order; their C_g sum to C.
        stride: step of the output grid.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)), dtype of `x`.
    """
    n, channels, height, width = x.shape
    out = x.new_zeros(n, channels, -(-height // stride), -(-width // stride))
    kernels = [kernel for weight in weights for kernel in weight[:, 0]]
    for c, kernel in enumerate(kernels):
        size = kernel.shape[-1]
        plane = nn.functional.pad(x[:, c], [size // 2] * 4)
        for i in range(size):
            for j in range(size):
                out[:, c] += kernel[i, j] * plane[:, i : i + height : stride, j : j + width : stride]
    return out
