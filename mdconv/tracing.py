"""A network's features as a graph of layers, and the names that layers have in exported models."""

from __future__ import annotations

from torch import fx, nn

from mdconv.layers import MDConv

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish)
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
    row = network.get_submodule(parent)
    alone = isinstance(row, nn.Sequential) and all(isinstance(layer, (*NORMS, *ACTIVATIONS)) for layer in list(row)[1:])
    return parent if alone and last == "0" else str(node.target)


def function_name(node: fx.Node) -> str:
    """The path of the module that calls a function, and the function's name: "layer3.1.add"."""
    return f"{next(reversed(node.meta['nn_module_stack']), 'features')}.{getattr(node.target, '__name__', '')}"


def only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads `node`, or None if several do: then nothing may be fused into it."""
    return next(iter(node.users)) if len(node.users) == 1 else None
