"""A network's features as a graph of layers, and the names that layers and values have in exported models."""

from __future__ import annotations

import operator

from torch import fx, nn

from mdconv.layers import MDConv

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish"}
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class FeatureTracer(fx.Tracer):
    """Traces `features` down to the layers of torch.nn and `MDConv`."""

    traced_func_name = "features"

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, (MDConv, *NORMS)) or super().is_leaf_module(module, module_qualified_name)


def layer_of(network: nn.Module, node: fx.Node | None) -> nn.Module | None:
    """The layer that `node` calls, None for anything else."""
    return network.get_submodule(str(node.target)) if node and node.op == "call_module" else None


def layer_name(network: nn.Module, node: fx.Node) -> str:
    """The layer's path in the network; in a row of convolution, batch norm, activation the path of the row."""
    parent, _, last = str(node.target).rpartition(".")
    row, followers = network.get_submodule(parent), (*NORMS, *ACTIVATIONS)
    alone = isinstance(row, nn.Sequential) and all(isinstance(layer, followers) for layer in list(row)[1:])
    return parent if alone and last == "0" else str(node.target)


def function_name(node: fx.Node) -> str:
    """The path of the module that calls a function, and the function's name: "layer3.1.add"."""
    return f"{next(reversed(node.meta['nn_module_stack']), 'features')}.{getattr(node.target, '__name__', '')}"


def only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads `node`, or None if several do: then nothing may be fused into it."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def folded_norm(network: nn.Module, node: fx.Node) -> fx.Node | None:
    """The batch norm that is folded into convolution `node`, None if there is none."""
    reader = only_reader(node)
    return reader if isinstance(layer_of(network, reader), NORMS) else None


def value_names(network: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """The tensor of an exported model that holds each node's value; what is one layer there shares a name."""
    names: dict[fx.Node, str] = {}
    convolutions = [node for node in graph.nodes if isinstance(layer_of(network, node), (nn.Conv2d, MDConv))]
    rows = {node: _row(network, node) for node in convolutions}
    kinds = {type(layer_of(network, rows[n][-1])) for n in convolutions if isinstance(layer_of(network, n), MDConv)}
    for node in graph.nodes:
        layer = layer_of(network, node)
        if node in rows:
            fused = isinstance(layer, MDConv) and len(kinds) == 1  # an exported model has one kind of MDConv
            row = (
                rows[node] if fused else [one for one in rows[node] if type(layer_of(network, one)) not in ACTIVATIONS]
            )
            names.update(dict.fromkeys(row, layer_name(network, node)))
        elif node in names:
            continue
        elif isinstance(layer, (nn.Identity, nn.Dropout)):
            names[node] = names[node.all_input_nodes[0]]
        elif kind := ACTIVATIONS.get(type(layer)):  # type: ignore[arg-type]  # None is no key
            names[node] = f"{names[node.all_input_nodes[0]]}.{kind}"
        elif layer is not None:
            names[node] = str(node.target)
        elif node.target is operator.getitem:
            names[node] = f"{names[node.all_input_nodes[0]]}.{node.args[1]}"
        elif node.op == "call_function":
            names[node] = function_name(node)
    return names


def _row(network: nn.Module, node: fx.Node) -> list[fx.Node]:
    """Convolution `node`, the batch norm folded into it, the activation that alone reads them."""
    row = [node]
    if norm := folded_norm(network, node):
        row.append(norm)
    reader = only_reader(row[-1])
    if reader and type(layer_of(network, reader)) in ACTIVATIONS:
        row.append(reader)
    return row
