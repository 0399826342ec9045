"""Quantization-aware training: a network that computes, in float32, what its INT8 bundle computes.

The scales are the bundle's, as calibration chose them. What a bundle rounds is rounded here: the values that its
``calibration.json`` lists, most of them inputs of convolutions, and the weights of these convolutions, per output
channel, after batch norm was folded into them. Where the bundle equalized channels (`calibration.equalization`), so
does this; its corrections of biases are left out, since training finds its own, and so is their rounding to whole steps
of the integer sum, half a step at most. The classifier stays float32. Batch norm's statistics are frozen. The gradient
passes a rounding unchanged where the value was within range, and not at all where it was clipped (Jacob et al., CVPR
2018, section 3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from edge.bundle import CALIBRATION, load_bundle, sha256_of
from edge.errors import BundleError, UsageError
from mdconv.layers import MDConv
from mdconv.tracing import NORMS, FeatureTracer, folded_norm, function_name, layer_name, layer_of, value_names

LARGEST = 127
"""The largest int8 code; weights have no smaller one than its negative, activations saturate at -128."""


@dataclass(frozen=True)
class Scales:
    """Where an INT8 model rounds its activations, and to multiples of what."""

    weighted: Mapping[str, float]
    """Scale of the input of each quantized layer, by the layer's name."""
    skips: Mapping[tuple[str, int], float]
    """Scale of an addition's or a product's input, by its name and the input's position."""
    whole: Mapping[str, float]
    """Scale of a value that is rounded for all that read it, by its name."""
    doublings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """How often the bundle doubles each channel of a quantized layer's input before it rounds, by the layer's name."""

    def to_json(self) -> dict[str, Any]:
        skips = [[*key, scale] for key, scale in self.skips.items()]
        found: dict[str, Any] = {"weighted": dict(self.weighted), "skips": skips, "whole": dict(self.whole)}
        if self.doublings:
            found["doublings"] = {name: list(channels) for name, channels in self.doublings.items()}
        return found


def read_scales(bundle: Path, initial: Path) -> Scales:
    """The scales of the INT8 `bundle` that was built from checkpoint `initial`.

    Raises `BundleError` for a damaged bundle or one without these entries, `UsageError` if it has another precision or
    was built from other weights.
    """
    loaded = load_bundle(bundle)
    if loaded.precision != "int8":
        raise UsageError(f"{bundle} is {loaded.precision}, quantization-aware training needs the scales of an int8 one")
    if loaded.manifest["model"].get("weights_sha256") != sha256_of(initial):
        raise UsageError(f"{bundle} was not built from {initial}: build one with make.py --int8 --checkpoint {initial}")
    path = loaded.path(CALIBRATION)
    try:
        record = json.loads(path.read_text("utf-8")) if path else {}
        return scales_of(record)
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{bundle} does not say where it rounds ({error!r}): build it anew") from None


def scales_of(record: Mapping[str, Any]) -> Scales:
    """Scales from what ``calibration.json`` says. Raises `KeyError` if entries are missing."""
    tensors, placement = record["tensors"], record["placement"]
    equalized = (record.get("equalization") or {"tensors": {}})["tensors"]
    return Scales(
        weighted={name: float(tensors[tensor]["scale"]) for name, tensor in placement["weighted"].items()},
        skips={(name, int(place)): float(tensors[tensor]["scale"]) for name, place, tensor in placement["skips"]},
        whole={tensor: float(tensors[tensor]["scale"]) for tensor in placement["whole"]},
        doublings={
            name: tuple(map(int, equalized[tensor]["doublings"]))
            for name, tensor in placement["weighted"].items()
            if tensor in equalized
        },
    )


class FakeQuantized(nn.Module):
    """`network` as its INT8 model computes it: (N, in_channels, H, W), equal channels, to (N, L).

    Its parameters are the network's own, so that training it trains the network.

    Raises:
        UsageError: `scales` name a layer that the network does not have.
    """

    def __init__(self, network: nn.Module, scales: Scales) -> None:
        super().__init__()
        unused = {*scales.weighted, *scales.skips, *scales.whole}
        self.features = _quantized_features(network, scales, unused)
        self.dropout = network.get_submodule("dropout")
        self.classifier = network.get_submodule("classifier")
        if unused:
            raise UsageError(f"the network has no layer {min(unused, key=str)!r}: the bundle is of another network")

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x).mean(dim=(2, 3))
        return self.classifier(self.dropout(pooled))  # type: ignore[no-any-return]


def _quantized_features(network: nn.Module, scales: Scales, unused: set[Any]) -> fx.GraphModule:
    """The traced features, their layers replaced; what `scales` was used is taken out of `unused`."""
    module = fx.GraphModule(network, FeatureTracer().trace(network))
    nodes = list(module.graph.nodes)
    last_of = {name: node for node, name in value_names(network, module.graph).items()}
    for name, scale in scales.whole.items():
        if name in last_of:
            unused.discard(name)
            _round_after(module, last_of[name], scale)
    for node in nodes:
        layer = layer_of(network, node)
        if isinstance(layer, (nn.Conv2d, MDConv)) and (name := layer_name(network, node)) in scales.weighted:
            unused.discard(name)
            _replace_convolution(module, network, node, layer, scales.weighted[name], scales.doublings.get(name))
        elif isinstance(layer, NORMS) and node.users:  # those without users are folded
            _call(module, node, FrozenNorm(layer))
        elif node.op == "call_function":
            for place, value in enumerate(node.all_input_nodes):
                key = (function_name(node), place)
                if key in scales.skips:
                    unused.discard(key)
                    _round_before(module, node, value, scales.skips[key])
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _round_after(module: fx.GraphModule, node: fx.Node, scale: float) -> None:
    readers = list(node.users)
    with module.graph.inserting_after(node):
        rounded = _rounded(module, node, scale)
    for reader in readers:
        reader.replace_input_with(node, rounded)


def _round_before(module: fx.GraphModule, node: fx.Node, value: fx.Node, scale: float) -> None:
    with module.graph.inserting_before(node):
        node.replace_input_with(value, _rounded(module, value, scale))


def _rounded(module: fx.GraphModule, value: fx.Node, scale: float) -> fx.Node:
    name = f"{value.name}_rounded"
    module.add_submodule(name, FakeQuantize(scale))
    return module.graph.call_module(name, (value,))


def _replace_convolution(
    module: fx.GraphModule,
    network: nn.Module,
    node: fx.Node,
    layer: nn.Conv2d | MDConv,
    scale: float,
    doublings: Sequence[int] | None,
) -> None:
    reader = folded_norm(network, node)
    first = node.all_input_nodes[0].op == "placeholder"
    _call(module, node, QuantizedConvolution(layer, layer_of(network, reader), scale, first, doublings))
    if reader:
        reader.replace_all_uses_with(node)


def _call(module: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    """Let `node` call `layer`."""
    name = f"{node.name}_quantized"
    module.add_submodule(name, layer)
    node.target = name


class QuantizedConvolution(nn.Module):
    """Convolution or `MDConv`, with the batch norm behind it: (N, C, H, W) to (N, C', H', W').

    `first`: it is the stem, whose equal input channels an exported model folds into one. `doublings`: of each input
    channel, if the bundle was equalized: then channels are rounded, and weights too, as they are in its model.
    """

    def __init__(
        self,
        layer: nn.Conv2d | MDConv,
        norm: nn.Module | None,
        scale: float,
        first: bool,
        doublings: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.first = layer, norm, first
        self.rounded = FakeQuantize(scale)
        self.factors: Tensor | None
        factors = None if doublings is None else torch.exp2(torch.tensor(doublings, dtype=torch.float32))
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, MDConv):  # one depthwise convolution with zero-padded kernels, as exported
            weight, bias = layer.padded_weight(), None
            geometry: Any = (layer.stride, weight.shape[-1] // 2, 1, layer.channels)
        else:
            weight, bias = layer.weight, layer.bias
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        if self.norm is not None:
            weight, bias = fold_batch_norm(weight, bias, self.norm)
        if self.first:
            x, weight = x[:, :1], weight.double().sum(dim=1, keepdim=True).float()
        if self.factors is not None:
            groups = geometry[-1]
            x = x * self.factors[:, None, None]
            apart = weight.reshape(groups, -1, *weight.shape[1:])  # (g, C' / g, C / g, kh, kw)
            weight = (apart / self.factors.reshape(groups, 1, -1, 1, 1)).reshape(weight.shape)
        return nn.functional.conv2d(self.rounded(x), fake_quantize_weight(weight), bias, *geometry)


class FrozenNorm(nn.Module):
    """Batch norm by its running statistics, in training too."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight (C, ...) and bias (C,) of the convolution that equals a convolution followed by `norm` in evaluation.

    In float64, as the export does it, since a last digit can decide a rounding.
    """
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))
    offset = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    return folded.float(), (offset * factor + norm.bias.double()).float()


class FakeQuantize(nn.Module):
    """Rounds activations to multiples of `scale`, a half to the even one, and saturates as int8 does."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = _Round.apply(x, self.scale, -LARGEST - 1)  # type: ignore[no-untyped-call]
        return rounded


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """A weight (C, ...), each output channel rounded to multiples of its largest magnitude / 127."""
    largest = weight.detach().abs().flatten(1).amax(dim=1).double() / LARGEST
    scale = torch.where(largest > 0, largest, 1.0).float().reshape(-1, *[1] * (weight.ndim - 1))
    rounded: Tensor = _Round.apply(weight, scale, -LARGEST)  # type: ignore[no-untyped-call]
    return rounded


class _Round(torch.autograd.Function):
    """Rounding whose gradient is that of the identity within range, and zero where the value was clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lowest: int) -> Tensor:
        codes = torch.round(x / scale)
        ctx.save_for_backward((codes >= lowest) & (codes <= LARGEST))
        return codes.clamp(lowest, LARGEST) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None, None
