"""Where an int8 graph rounds: the places at which TensorRT fuses a QuantizeLinear/DequantizeLinear pair.

- Each convolution and each `MDConv` reads X through a pair, per tensor, and W as an int8 constant, one scale an output
  channel. Between a convolution and its activation there is nothing, so that both become one kernel.
- A residual Add has a pair on the skip input alone; the other comes straight from a convolution, into which TensorRT
  fuses the addition.
- Squeeze and excite: the average and the product read their channels through one pair. So the convolution before them
  writes int8 and nothing else, without which the plugin could not have it. The convolutions of vectors between the two
  stay float32, as does a hidden layer of the head: they cost next to nothing, and a gate's rounding would scale a whole
  channel wrongly.
- A concatenation of which nothing but a shuffle, a split or a largest value is taken on the way to convolutions (and to
  the next such concatenation) has a pair, and all these have one scale: so int8 is moved instead of float32, and what
  passes through several of them is rounded once, since rounding to the same scale again changes nothing.
- Other concatenations and the pools have none. What follows them is quantized for the convolution that reads it. In a
  densely connected block one scale for all that was ever put together would drown what batch norm then magnifies.
- Normalisation, and the last convolution, stay float32: it maps features to the findings, costs 0.3 % of the work, and
  its rounding would reach the logits directly.
"""

from __future__ import annotations

from collections.abc import Collection
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
        """The same, `nodes` left as they are: what they read is not rounded for them."""
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
    """Decide where pairs go (see the module's text)."""
    vectors = _vectors(graph)
    convolutions = [node.name for node in graph.node if node.op_type in CONVOLUTIONS and node.input[0] not in vectors]
    last = next(node.name for node in reversed(graph.node) if node.op_type in CONVOLUTIONS)
    weighted = tuple(name for name in convolutions if name != last)
    gated = [
        (node, position)
        for node in graph.node
        for position in (0, 1)
        if node.op_type == "Mul" and node.input[1 - position] in vectors and node.input[position] not in vectors
    ]
    excited = [node.input[position] for node, position in gated]
    tied = _tied_concatenations(graph, set(weighted))
    joined = [node.output[0] for node in graph.node if node.op_type == "Concat"]
    return Placement(
        weighted=weighted,
        skips=tuple(_residual_skips(graph) + [(node.name, position) for node, position in gated]),
        whole=tuple(dict.fromkeys([*excited, *(name for name in joined if any(name in group for group in tied))])),
        tied=tied,
    )


def activations(graph: onnx.GraphProto, placement: Placement) -> list[str]:
    """The tensors that get a pair, in graph order."""
    inputs = {node.name: node.input for node in graph.node}
    names = [inputs[name][0] for name in placement.weighted] + [inputs[name][i] for name, i in placement.skips]
    wanted = {*names, *placement.whole}
    return [name for name in producers(graph) if name in wanted]


def _residual_skips(graph: onnx.GraphProto) -> list[tuple[str, int]]:
    made_by, read_by = producers(graph), consumers(graph)
    outputs = {output.name for output in graph.output}

    def fuses(name: str) -> bool:
        """Whether tensor `name` is a convolution's, for the addition alone: then the addition becomes part of it."""
        made = made_by.get(name)
        return made is not None and made.op_type in CONVOLUTIONS and len(read_by[name]) == 1 and name not in outputs

    additions = [node for node in graph.node if node.op_type == "Add" and any(map(fuses, node.input))]
    return [(node.name, 0 if fuses(node.input[1]) else 1) for node in additions]


def _vectors(graph: onnx.GraphProto) -> set[str]:
    """The tensors with one value a channel: global averages, and what is computed from them alone."""
    constants = {tensor.name for tensor in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        values = [name for name in node.input if name not in constants]
        if node.op_type == "GlobalAveragePool" or (values and found.issuperset(values)):
            found.update(node.output)
    return found


def _tied_concatenations(graph: onnx.GraphProto, weighted: set[str]) -> tuple[tuple[str, ...], ...]:
    """The concatenations that get a pair, each row of them with the convolutions' inputs of the same scale."""
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


def _reached(name: str, read_by: dict[str, list[onnx.NodeProto]]) -> list[str]:
    """Tensor `name`, and all to which its values are but moved."""
    reached = [name]
    for tensor in reached:  # it grows on the way
        for reader in read_by.get(tensor, []):
            if reader.op_type in _MOVES:
                reached.extend(reader.output)
    return reached
