"""How much of the input a position of each stage's output sees (paper eq. 8)."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx, nn

from mdconv.layers import MDConv
from mdconv.networks.blocks import Network
from mdconv.tracing import FeatureTracer, layer_of


class Field(NamedTuple):
    """What one position sees."""

    size: int
    """Side of the square of input pixels."""
    step: int
    """Input pixels between two positions: the product of the strides so far."""


def receptive_fields(network: Network) -> dict[str, Field]:
    """The field at the end of each part of `network`, by the part's name, in order.

    Eq. 8: r_l = r_{l-1} + (k_l - 1) * product of the strides before layer l. Where paths come together the largest
    field counts, and of `MDConv` the largest kernel. Left out is the gate of squeeze and excite: through its mean every
    position depends on all the image, but on no place in it.
    """
    fields: dict[fx.Node, Field | None] = {}
    ends: dict[str, Field] = {}
    for node in FeatureTracer().trace(network).nodes:
        if node.op == "placeholder":
            fields[node] = Field(1, 1)
            continue
        layer = layer_of(network, node)
        seen = [field for each in node.all_input_nodes if (field := fields[each])]
        if not seen or isinstance(layer, nn.AdaptiveAvgPool2d):
            fields[node] = None
            continue
        size, step = max(field.size for field in seen), max(field.step for field in seen)
        kernel, stride = _kernel_and_stride(layer)
        field = fields[node] = Field(size + (kernel - 1) * step, step * stride)
        if node.op != "output":
            ends[_part(node)] = field
    return ends


def _kernel_and_stride(layer: nn.Module | None) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size[0], layer.stride[0]
    if isinstance(layer, MDConv):
        return max(layer.kernel_sizes), layer.stride
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        return int(layer.kernel_size), int(layer.stride)  # type: ignore[arg-type]  # ours are square
    return 1, 1


def _part(node: fx.Node) -> str:
    """The network's own part that a layer or function belongs to: "stem", "layer3"."""
    inside = str(node.target) if node.op == "call_module" else next(reversed(node.meta["nn_module_stack"]))
    return inside.split(".")[0]
