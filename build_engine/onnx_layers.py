"""The ONNX form of the layers without weights of their own, one function a kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper
from torch import nn

from calibration.graph import add_constant
from edge.errors import UsageError


class Place(NamedTuple):
    """Where a layer stands: its name, the tensor that it reads and that tensor's (C, H, W)."""

    graph: onnx.GraphProto
    name: str
    source: str
    shape: tuple[int, int, int]


def weightless_nodes(layer: nn.Module, place: Place) -> list[onnx.NodeProto] | None:
    """The nodes that do what `layer` does, the last one's output named as `place`; None for a kind unknown here."""
    write = _KINDS.get(type(layer))
    return None if write is None else write(layer, place)


def _max_pool(layer: Any, place: Place) -> list[onnx.NodeProto]:
    _check_pool(layer, place.name)
    return [helper.make_node("MaxPool", [place.source], [place.name], name=place.name, **_window(layer))]


def _average_pool(layer: Any, place: Place) -> list[onnx.NodeProto]:
    _check_pool(layer, place.name)
    padded = int(layer.count_include_pad)
    return [
        helper.make_node(
            "AveragePool", [place.source], [place.name], name=place.name, count_include_pad=padded, **_window(layer)
        )
    ]


def _check_pool(layer: Any, name: str) -> None:
    if layer.ceil_mode or getattr(layer, "dilation", 1) != 1 or getattr(layer, "divisor_override", None) is not None:
        raise UsageError(f"{name} ({layer}) has no ONNX form here: expected a pool without ceil_mode and dilation")


def _window(layer: Any) -> dict[str, Any]:
    size, stride, padding = (_pair(value) for value in (layer.kernel_size, layer.stride, layer.padding))
    return {"kernel_shape": size, "strides": stride, "pads": [*padding, *padding]}


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value, value]


def _global_average(layer: Any, place: Place) -> list[onnx.NodeProto]:
    if layer.output_size not in (1, (1, 1)):
        raise UsageError(f"{place.name} averages to {layer.output_size}, expected to one position")
    return [helper.make_node("GlobalAveragePool", [place.source], [place.name], name=place.name)]


def _hardsigmoid(_: Any, place: Place) -> list[onnx.NodeProto]:
    return [helper.make_node("HardSigmoid", [place.source], [place.name], name=place.name, alpha=1 / 6, beta=0.5)]


def _shuffle(layer: Any, place: Place) -> list[onnx.NodeProto]:
    """(N, g C', H, W) as (N, g, C', H W), the two in the middle exchanged; the batch axis may be symbolic."""
    channels, height, width = place.shape
    name, groups = place.name, int(layer.groups)
    apart = add_constant(place.graph, f"{name}.apart", np.array([0, groups, channels // groups, -1], np.int64))
    together = add_constant(place.graph, f"{name}.together", np.array([0, channels, height, width], np.int64))
    return [
        helper.make_node("Reshape", [place.source, apart], [f"{name}.grouped"], name=f"{name}.group"),
        helper.make_node("Transpose", [f"{name}.grouped"], [f"{name}.mixed"], name=f"{name}.mix", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"{name}.mixed", together], [name], name=name),
    ]


_KINDS: dict[type[nn.Module], Callable[[Any, Place], list[onnx.NodeProto]]] = {
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _global_average,
    nn.Hardsigmoid: _hardsigmoid,
    nn.ChannelShuffle: _shuffle,
}
