"""The paper's published costs beside those of our networks (Hu et al., IEEE Access 2020, Tables 3 and 7; 448x448).

How the paper counts is nowhere said. One way of counting gives every row but the last to the rounded million: the
multiply-accumulates of convolutions, squeeze-and-excite's among them, and of linear layers; one operation for each
output of a ReLU or ReLU6; the kernel's area for each output of a pool. Batch norm, additions, hardswish and hardsigmoid
count nothing. (One operation for each output of a batch norm in place of ReLUs and pools comes near, too, but not near
enough: 1224.7 for MobileNet-v2's 1223.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mdconv.cost import layer_costs
from mdconv.networks import build

SIZE = 448


@dataclass(frozen=True)
class Published:
    """A row of the paper."""

    table: int
    title: str
    network: str
    config: Mapping[str, Any]
    variant: str
    """What the published number implies about the network."""
    million: int
    """"FLOPs(M)"."""
    million_parameters: float | None = None
    note: str = ""


_ROUNDED = "parameters agree to the digits printed"
PUBLISHED = (
    Published(3, "MobileNet", "mobilenet", {"md_stages": ()}, "width 1", 2291),
    Published(3, "MobileNet-v2", "mobilenet_v2", {"md_stages": ()}, "width 1", 1223),
    Published(3, "MobileNet-v3", "mobilenet_v3", {"md_stages": ()}, "large", 865),
    Published(
        3, "ShuffleNet", "shufflenet", {"md_stages": (), "groups": 3, "narrow": True},
        "width 1, 3 groups, narrow middle where the stride is 2", 521, None, "with Zhang et al.'s wider middle 562.8 M",
    ),
    Published(
        3, "ShuffleNet-v2", "shufflenet_v2", {"md_stages": (), "width": 2.0},
        "width 2, the first unit's shortcut keeps its 24 channels", 2369, None, "with equal halves 2339.1 M",
    ),
    Published(7, "ResNet-50", "resnet50", {}, "stride in the 3x3 convolution", 16395, 23.5, _ROUNDED),
    Published(7, "DenseNet-121", "densenet121", {}, "", 11405, 7.0, _ROUNDED),
    Published(
        7, "ours", "mobilenet_v2", {"md_stages": ("layer5",)}, "MobileNet-v2, MD-Conv 3x3 5x5 in layer5", 1241, 2.3,
        "1.2 % less: the published cost is 18 M above plain MobileNet-v2, which no single stage with MD-Conv adds; it "
        "fits two: layer2 and layer5 (each is named in the text) 1239.8 M, layer3 and layer4 1240.7 M; " + _ROUNDED,
    ),
)  # fmt: skip


_HEAD = (
    "table", "network", "variant implied", "FLOPs(M), paper", "ours", "ratio", "conv + linear, M",
    "parameters, M, paper", "ours", "ratio", "note",
)  # fmt: skip
_COUNTING = f"""\
{SIZE}x{SIZE} pixels, 3 channels, 14 outputs. FLOPs as reproduces the paper's: multiply-accumulates of convolutions and
linear layers, one operation for each output of a ReLU or ReLU6, the kernel's area for each output of a pool; nothing
for batch norm, additions and hardswish. Batch norm's outputs in place of ReLUs and pools would give MobileNet-v2
1224.7. "conv + linear" are the multiply-accumulates alone."""


class Compared(NamedTuple):
    """A row of the paper beside ours; ratios are ours over the paper's."""

    row: Published
    operations: int
    """As the paper counts."""
    macs: int
    """Of convolutions and linear layers."""
    parameters: int

    @property
    def ratio(self) -> float:
        return self.operations / 1e6 / self.row.million

    @property
    def parameter_ratio(self) -> float | None:
        return self.parameters / 1e6 / self.row.million_parameters if self.row.million_parameters else None


def compare(rows: Iterable[Published] = PUBLISHED) -> list[Compared]:
    """Our costs for each published row: an image of 448x448 in 3 channels, 14 outputs."""
    compared = []
    for row in rows:
        layers = layer_costs(build(row.network, **row.config), SIZE)
        compared.append(
            Compared(
                row,
                operations=sum(layer.operations for layer in layers),
                macs=sum(layer.macs for layer in layers),
                parameters=sum(layer.parameters for layer in layers),
            )
        )
    return compared


def as_markdown(compared: Iterable[Compared]) -> str:
    """The comparison as a table, and how was counted."""
    lines = [" | ".join(_HEAD).join(("| ", " |")), "|---" * len(_HEAD) + "|"]
    for each in compared:
        row = each.row
        cells = [
            str(row.table),
            row.title,
            row.variant,
            str(row.million),
            f"{each.operations / 1e6:.2f}",
            f"{each.ratio:.4f}",
            f"{each.macs / 1e6:.1f}",
            str(row.million_parameters or ""),
            f"{each.parameters / 1e6:.3f}",
            "" if each.parameter_ratio is None else f"{each.parameter_ratio:.4f}",
            row.note,
        ]
        lines.append(" | ".join(cells).join(("| ", " |")))
    return "\n".join([*lines, "", _COUNTING])
