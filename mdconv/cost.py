"""What a network costs: multiply-accumulates, parameters, activations, receptive field.

    python -m mdconv.cost [--network mobilenet_v2] [--size 448] [--md-stages layer5]     layer by layer
    python -m mdconv.cost --table                                                        the paper's costs beside ours

`macs` are the multiply-accumulates of convolutions (paper eq. 1 to 7: a position of the output times kernel area times
input channels a group) and linear layers, nothing else: batch norm folds into them, and activations, pooling and
additions are none. `operations` is how the paper's own tables count (see `cost_table`): those, an operation for each
output of a ReLU or ReLU6, and the kernel's area for each output of a pool, the head's global mean among them.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edge.errors import EdgeError, UsageError
from mdconv.layers import MDConv
from mdconv.networks import NETWORKS, build, resolve_stages, stages
from mdconv.networks.blocks import Network
from mdconv.receptive_field import receptive_fields

FLOAT_BYTES = 4


class Cost(NamedTuple):
    """What one image costs."""

    macs: int
    """Multiply-accumulates of convolutions and linear layers."""
    parameters: int
    """Trainable parameters, batch norm's scale and shift included."""


class LayerCost(NamedTuple):
    """What one layer costs for one image."""

    name: str
    kind: str
    output: tuple[int, ...]
    """Shape of its output: (C, H, W), or (L,)."""
    macs: int
    operations: int
    """As the paper counts."""
    parameters: int

    @property
    def activation_bytes(self) -> int:
        """Memory of its output in float32; a quarter of it in INT8."""
        return FLOAT_BYTES * math.prod(self.output)


def cost(network: nn.Module, input_size: int, in_channels: int = 3) -> Cost:
    """Cost of `network` for one (1, in_channels, input_size, input_size) image."""
    layers = layer_costs(network, input_size, in_channels)
    return Cost(sum(layer.macs for layer in layers), sum(p.numel() for p in network.parameters()))


def layer_costs(network: nn.Module, input_size: int, in_channels: int = 3) -> list[LayerCost]:
    """Every layer of torch.nn and `MDConv`, in the order in which they run, counted on a run without arithmetic.

    Of a `Network` also the mean over positions before its classifier, as a layer "mean".
    """
    found: list[LayerCost] = []
    on_meta = copy.deepcopy(network).eval().to("meta")
    image = torch.empty(1, in_channels, input_size, input_size, device="meta")
    hooks = [layer.register_forward_hook(partial(_count, found, name)) for name, layer in _layers(on_meta)]
    try:
        if isinstance(on_meta, Network):
            features = on_meta.features(image)
            found.append(LayerCost("mean", "global mean", (features.shape[1],), 0, features[0].numel(), 0))
            on_meta.classifier(on_meta.dropout(features.mean(dim=(2, 3))))
        else:
            on_meta(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers that do the work, by their paths."""
    if isinstance(module, MDConv) or not (isinstance(module, nn.Sequential) or any(module.children())):
        yield name, module
        return
    for part, child in module.named_children():
        yield from _layers(child, f"{name}.{part}" if name else part)


def _count(found: list[LayerCost], name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    found.append(_layer_cost(name, layer, inputs[0], output))


def _layer_cost(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> LayerCost:
    macs, operations, kind = 0, 0, type(layer).__name__.lower().removesuffix("2d")
    if isinstance(layer, nn.Conv2d):  # eq. 1 to 4
        macs = y[0].numel() * layer.weight[0].numel()
        depthwise = 1 < layer.groups == layer.in_channels
        kind = f"{'depthwise' if depthwise else 'conv'} {layer.kernel_size[0]}x{layer.kernel_size[0]}"
        kind += f" in {layer.groups} groups" if 1 < layer.groups < layer.in_channels else ""
    elif isinstance(layer, MDConv):  # eq. 5 to 7: each group's channels with their own kernel
        macs = sum(y[0, 0].numel() * k * k * c for k, c in zip(layer.kernel_sizes, layer.channel_splits))
        kind = "depthwise " + " ".join(f"{k}x{k}" for k in layer.kernel_sizes)
    elif isinstance(layer, nn.Linear):
        macs = layer.weight.numel()
    elif isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        operations = y.numel() * int(layer.kernel_size) ** 2  # type: ignore[arg-type]  # ours are square
    elif isinstance(layer, nn.AdaptiveAvgPool2d):
        operations = x.numel()
    elif isinstance(layer, (nn.ReLU, nn.ReLU6)):
        operations = y.numel()
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    return LayerCost(name, kind, tuple(y.shape[1:]), macs, macs + operations, parameters)


def as_text(network: Network, input_size: int) -> str:
    """A table of the layers that remain at deployment, what the others add, the sums, and each stage's field."""
    layers = layer_costs(network, input_size)
    # Batch norms fold into convolutions, and activations are done where the layer before writes its output.
    kept = [layer for layer in layers if layer.macs or layer.kind.endswith(("pool", "mean"))]
    lines = [f"{'layer':34}{'kind':20}{'output':>15}{'MACs':>15}{'parameters':>12}{'float32 bytes':>15}"]
    for layer in kept:
        shape = " x ".join(map(str, layer.output))
        lines.append(
            f"{layer.name:34}{layer.kind:20}{shape:>15}{layer.macs:15,}{layer.parameters:12,}{layer.activation_bytes:15,}"
        )
    macs, parameters = sum(layer.macs for layer in layers), sum(layer.parameters for layer in layers)
    rest = parameters - sum(layer.parameters for layer in kept)
    written = sum(layer.activation_bytes for layer in kept)
    lines.append(f"{'batch norms':69}{'':>15}{rest:12,}")
    lines.append(f"{'all':69}{macs:15,}{parameters:12,}{written:15,}")
    operations = sum(layer.operations for layer in layers)
    lines.append(f"as the paper counts, with ReLUs and pools: {operations / 1e6:.1f} M")
    lines.append("")
    lines.append(f"{'receptive field (eq. 8)':34}{'pixels':>8}{'step':>8}")
    lines += [f"{stage:34}{field.size:8}{field.step:8}" for stage, field in receptive_fields(network).items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m mdconv.cost", description="What a network costs.")
    parser.add_argument("--table", action="store_true", help="the paper's Table 3 and Table 7 beside ours")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="mobilenet_v2", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=448, help="pixels a side (default: %(default)s)")
    parser.add_argument("--md-stages", metavar="S", help='stages with MD-Conv: "all", "none" or "layer3,layer5"')
    parser.add_argument("--kernel-sizes", type=_numbers, metavar="K,K", help="of MD-Conv (default: 3,5)")
    parser.add_argument("--ratios", type=_numbers, metavar="R,R", help="of its channels (default: 1,1)")
    options = parser.parse_args(arguments)
    try:
        if options.table:
            from mdconv.cost_table import as_markdown, compare

            print(as_markdown(compare()))
        else:
            print(as_text(_network(options), options.size))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _network(options: argparse.Namespace) -> Network:
    config: dict[str, Any] = {}
    if options.md_stages is not None:
        config["md_stages"] = options.md_stages
    config.update({name: getattr(options, name) for name in ("kernel_sizes", "ratios") if getattr(options, name)})
    if config and not stages(options.network):
        raise UsageError(
            f"{options.network} has no depthwise layers: leave out --md-stages, --kernel-sizes and --ratios"
        )
    if options.size < 32:
        raise UsageError(f"--size {options.size}: expected 32 pixels or more")
    try:
        if "md_stages" in config:
            config["md_stages"] = resolve_stages(options.network, config["md_stages"])
        return build(options.network, **config)
    except ValueError as error:
        raise UsageError(f"{options.network}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
