"""Where an int8 graph rounds: the places at which TensorRT fuses a QuantizeLinear/DequantizeLinear pair.

`place` is a list of rules, each a function below with its reason. What no rule names has no pair:

- Between a convolution and its activation, and between convolution and addition, there is nothing: so they become one
  kernel, which rounds once, at its end. An `MDConv` is one convolution, whatever its kernel sizes and its activation.
- Biases stay float32: TensorRT takes no int32 bias behind a DequantizeLinear, and one a channel costs nothing.
- Normalisation stays float32: the first convolution reads it through a pair.
- Pools have none: what follows one is quantized for the convolution that reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import onnx

from calibration.graph import CONVOLUTIONS, consumers, producers

_MOVES = ("Reshape", "Transpose", "Split", "MaxPool")
"""Ops that put out values of their first input, and no others."""


@dataclass(frozen=True)
class Placement:
    """Where pairs go. Nodes go by their names; a tensor has one pair, whatever reads it."""

    weighted: tuple[str, ...]
    """Convolutions that are quantized: their inputs 0 (X) and 1 (W)."""
    skips: tuple[tuple[str, int], ...]
    """Inputs of residual additions, and of products with a gate, by node and position."""
    whole: tuple[str, ...] = ()
    """Tensors that every reader reads through their pair."""
    tied: tuple[tuple[str, ...], ...] = ()
    """Tensors of one scale."""

    def without(self, nodes: Collection[str]) -> Placement:
        """The same, `nodes` left as they are: nothing is rounded for them, though they read `whole` tensors rounded."""
        return replace(
            self,
            weighted=tuple(name for name in self.weighted if name not in nodes),
            skips=tuple((name, position) for name, position in self.skips if name not in nodes),
        )

    def to_json(self, graph: onnx.GraphProto) -> dict[str, Any]:
        """What ``calibration.json`` says of it, each place with the tensor that is rounded there."""
        inputs = {node.name: node.input for node in graph.node}
        return {
            "weighted": {name: inputs[name][0] for name in self.weighted},
            "skips": [[name, position, inputs[name][position]] for name, position in self.skips],
            "whole": list(self.whole),
            "tied": [list(group) for group in self.tied],
        }


def place(graph: onnx.GraphProto) -> Placement:
    """Decide where pairs go, in a float32 graph with batch norm folded: the rules, one after the other."""
    vectors = _vectors(graph)
    convolutions = _convolutions_of_maps(graph, vectors)
    weighted = tuple(name for name in convolutions if name != _last_convolution(graph))
    residual = _residual_skips(graph, weighted, vectors)
    gated = _gated_channels(graph, vectors)
    tied = _moved_concatenations(graph, weighted)
    return Placement(
        weighted=weighted,
        skips=(*residual, *gated),
        whole=_read_by_pairs_alone(graph, gated, tied),
        tied=tied,
    )


def activations(graph: onnx.GraphProto, placement: Placement) -> list[str]:
    """The tensors that get a pair, in graph order."""
    inputs = {node.name: node.input for node in graph.node}
    names = [inputs[name][0] for name in placement.weighted] + [inputs[name][i] for name, i in placement.skips]
    wanted = {*names, *placement.whole}
    return [name for name in producers(graph) if name in wanted]


def _convolutions_of_maps(graph: onnx.GraphProto, vectors: set[str]) -> list[str]:
    """A convolution or `MDConv` reads X through a pair, one scale a tensor, and W as an int8 constant, one a channel.

    That is the form that TensorRT has int8 kernels for. A scale for each of X's channels could not be taken out of the
    sum over them; W's are of output channels. A convolution of `vectors` stays float32: in a gate or in a hidden layer
    of the head it costs next to nothing, and a gate's rounding would scale a whole channel wrongly.
    """
    return [node.name for node in graph.node if node.op_type in CONVOLUTIONS and node.input[0] not in vectors]


def _last_convolution(graph: onnx.GraphProto) -> str:
    """The last convolution stays float32.

    It maps features to the findings, costs 0.3 % of the work, and its rounding would reach the logits directly.
    """
    names: list[str] = [node.name for node in graph.node if node.op_type in CONVOLUTIONS]
    return names[-1]


def _residual_skips(graph: onnx.GraphProto, weighted: Collection[str], vectors: set[str]) -> list[tuple[str, int]]:
    """A residual addition reads the skip through a pair, and the other input as it is.

    TensorRT computes the addition inside the kernel of the convolution that the other comes from, before it rounds; a
    pair there would part the two, and round twice. The kernel then reads the skip as int8. That takes a quantized
    convolution which nothing but the addition reads: without one the addition stays float32. Where both inputs are such
    convolutions', the first is taken for the skip.
    """
    made_by, read_by = producers(graph), consumers(graph)
    outputs = {output.name for output in graph.output}

    def fuses(name: str) -> bool:
        made = made_by.get(name)
        return made is not None and made.name in weighted and len(read_by[name]) == 1 and name not in outputs

    skips = []
    for node in graph.node:
        if node.op_type == "Add" and any(map(fuses, node.input)):
            position = 0 if fuses(node.input[1]) else 1
            if node.input[position] in made_by.keys() - vectors:  # no constant, and of the other's shape
                skips.append((node.name, position))
    return skips


def _gated_channels(graph: onnx.GraphProto, vectors: set[str]) -> list[tuple[str, int]]:
    """The product of squeeze and excite reads its channels through a pair, and the gate, one of `vectors`, as it is.

    The average reads them through the same pair (see `_read_by_pairs_alone`). So the convolution before the two writes
    int8 and nothing else, without which the plugin could not have it.
    """
    maps = producers(graph).keys() - vectors
    return [
        (node.name, position)
        for node in graph.node
        for position in (0, 1)
        if node.op_type == "Mul" and node.input[1 - position] in vectors and node.input[position] in maps
    ]


def _moved_concatenations(graph: onnx.GraphProto, weighted: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """A concatenation has a pair if its values are but moved on the way to convolutions, or to the next such one.

    A shuffle, a split and a largest value move. All that is so connected has one scale: int8 is moved instead of
    float32, and what passes through several concatenations is rounded once, since rounding to the same scale again
    changes nothing. Each group returned is such tensors, the convolutions' inputs among them.

    Other concatenations stay float32. In a densely connected block one scale for all that was ever put together would
    drown what batch norm then magnifies.
    """
    read_by = consumers(graph)
    outputs = {output.name for output in graph.output}
    groups: dict[str, set[str]] = {}
    """Each tensor that is tied, and the group that it is in."""
    for node in reversed(graph.node):
        if node.op_type != "Concat":
            continue
        reached = _reached(node.output[0], read_by)
        ends = [(name, reader) for name in reached for reader in read_by.get(name, []) if reader.op_type not in _MOVES]
        rounded = {name for name, reader in ends if reader.name in weighted}
        following = {reader.output[0] for _, reader in ends if reader.op_type == "Concat"}
        known = all(reader.name in weighted or reader.op_type == "Concat" for _, reader in ends)
        if not ends or not known or not following <= groups.keys() or outputs.intersection(reached):
            continue
        group = {node.output[0], *rounded}.union(*(groups.get(name, set()) for name in {*rounded, *following}))
        groups.update(dict.fromkeys(group, group))
    order = list(producers(graph))
    found = {tuple(sorted(group, key=order.index)) for group in groups.values()}
    return tuple(sorted(found, key=lambda group: order.index(group[0])))


def _read_by_pairs_alone(
    graph: onnx.GraphProto, gated: Iterable[tuple[str, int]], tied: Iterable[Collection[str]]
) -> tuple[str, ...]:
    """Gated channels and tied concatenations are read through their pair by everything.

    So that int8 is all that is ever written of them: a single reader of float32 would have TensorRT write both.
    """
    inputs = {node.name: node.input for node in graph.node}
    channels = [inputs[name][position] for name, position in gated]
    joined = {node.output[0] for node in graph.node if node.op_type == "Concat"}
    return tuple(dict.fromkeys([*channels, *(name for group in tied for name in group if name in joined)]))


def _vectors(graph: onnx.GraphProto) -> set[str]:
    """The tensors with one value a channel: global averages, and what is computed from them alone."""
    constants = {tensor.name for tensor in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        values = [name for name in node.input if name not in constants]
        if node.op_type == "GlobalAveragePool" or (values and found.issuperset(values)):
            found.update(node.output)
    return found


def _reached(name: str, read_by: dict[str, list[onnx.NodeProto]]) -> list[str]:
    """Tensor `name`, and all to which its values are but moved."""
    reached = [name]
    for tensor in reached:  # it grows on the way
        for reader in read_by.get(tensor, []):
            if reader.op_type in _MOVES:
                reached.extend(reader.output)
    return reached
