"""A traced network, written node by node into an ONNX graph.

Own code rather than `torch.onnx.export`, because the file is a contract: the same weights give the same bytes under
any release of torch, tensors bear their layers' names, batch norm is folded, and an `MDConv` stays one node.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from build_engine.lowering import activation_node, mdconv_node
from build_engine.onnx_layers import Place, weightless_nodes
from calibration.graph import add_constant
from edge.errors import UsageError
from mdconv.layers import MDConv
from mdconv.tracing import ACTIVATIONS, FeatureTracer, folded_norm, function_name, layer_name, layer_of, only_reader


def write_features(network: nn.Module, graph: onnx.GraphProto, source: str, size: int, in_channels: int) -> str:
    """Append the network's `features` to `graph`, fed by tensor `source`, (N, 1, size, size) float32 normalised gray.

    The first convolution's equal input channels are folded into one. Returns the name of the features' tensor.

    Raises `UsageError` for a layer that has no form here.
    """
    return _Writer(network, graph, torch.zeros(1, in_channels, size, size)).write(source)


def write_classifier(classifier: nn.Sequential, graph: onnx.GraphProto, features: str) -> str:
    """Append a head that is not linear: the mean over positions, then `classifier` as 1x1 convolutions.

    Returns the name of its (N, L) output. Raises `UsageError` for a layer that has no form here.
    """
    source = "classifier.pool"
    graph.node.append(helper.make_node("GlobalAveragePool", [features], [source], name=source))
    for index, layer in enumerate(classifier):
        name = f"classifier.{index}"
        if isinstance(layer, nn.Linear):
            weight = add_constant(graph, f"{name}.weight", layer.weight.detach().numpy()[:, :, None, None])
            bias = add_constant(graph, f"{name}.bias", layer.bias.detach().numpy())
            node = helper.make_node("Conv", [source, weight, bias], [name], name=name, kernel_shape=[1, 1])
        elif kind := ACTIVATIONS.get(type(layer)):
            node = activation_node(graph, kind, source, name, name)
        elif isinstance(layer, nn.Dropout):
            continue
        else:
            raise UsageError(f"{name} ({type(layer).__name__}) has no ONNX form here: expected Linear and activations")
        graph.node.append(node)
        source = name
    axes = add_constant(graph, "classifier.axes", np.array([2, 3], np.int64))
    graph.node.append(helper.make_node("Squeeze", [source, axes], ["outputs"], name="classifier.squeeze"))
    return "outputs"


def fold_batch_norm(
    weight: NDArray[np.float32], bias: NDArray[np.float32], norm: nn.BatchNorm2d
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight (C, ...) and bias (C,) of the convolution that equals a convolution followed by `norm` in evaluation."""
    mean, variance = (_float64(norm.get_buffer(name)) for name in ("running_mean", "running_var"))
    gain, shift = (_float64(norm.get_parameter(name)) for name in ("weight", "bias"))
    factor = gain / np.sqrt(variance + norm.eps)
    folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return folded.astype(np.float32), ((bias - mean) * factor + shift).astype(np.float32)


class _Writer:
    def __init__(self, network: nn.Module, graph: onnx.GraphProto, example: torch.Tensor) -> None:
        self.network = network
        self.graph = graph
        self.traced = FeatureTracer().trace(network)
        with torch.inference_mode():  # notes each tensor's shape on its node
            ShapeProp(fx.GraphModule(network, self.traced)).propagate(example)
        self.tensors: dict[fx.Node, str] = {}
        """The ONNX tensor that holds an fx node's value."""
        self.pieces: dict[fx.Node, list[str]] = {}
        """The ONNX tensors that hold the parts of a chunk."""
        self.source = ""
        # A model has one MDConv function, so one activation: where a network mixes them, they stay nodes of their own.
        kinds = {
            self._activation_after(node)
            for node in self.traced.nodes
            if isinstance(layer_of(self.network, node), MDConv)
        }
        self.fuses_activation = len(kinds) == 1

    def write(self, source: str) -> str:
        self.source = source
        for node in self.traced.nodes:
            if node.op == "placeholder":
                self.tensors[node] = source
            elif node.op == "output":
                break
            elif node not in self.tensors:
                self._write_node(node)
        return self.tensors[node.args[0]]

    def _write_node(self, node: fx.Node) -> None:
        layer = layer_of(self.network, node)
        if layer is None:
            self._write_function(node)
            return
        source = self.tensors[node.all_input_nodes[0]]
        if isinstance(layer, MDConv):
            self._write_mdconv(node, layer, source)
        elif isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
            self._write_convolution(node, layer, source)
        elif isinstance(layer, nn.BatchNorm2d):
            self._write_batch_norm(node, layer, source)
        elif kind := ACTIVATIONS.get(type(layer)):
            name = f"{source}.{kind}"
            self._append(activation_node(self.graph, kind, source, name, name), node)
        elif isinstance(layer, (nn.Identity, nn.Dropout)):
            self.tensors[node] = source
        else:
            _, *shape = node.all_input_nodes[0].meta["tensor_meta"].shape
            written = weightless_nodes(layer, Place(self.graph, str(node.target), source, tuple(shape)))
            if written is None:
                raise self._unknown(node)
            self.graph.node.extend(written[:-1])
            self._append(written[-1], node)

    def _write_function(self, node: fx.Node) -> None:
        """Additions, products and concatenations of whole tensors along channels, and channels cut into equal parts."""
        name = function_name(node)
        if node.target in (operator.add, operator.mul) and len(node.all_input_nodes) == 2:
            kind = "Add" if node.target is operator.add else "Mul"
            inputs = [self.tensors[value] for value in node.all_input_nodes]
            self._append(helper.make_node(kind, inputs, [name], name=name), node)
        elif node.target is torch.cat and self._along_channels(node):
            parts: Any = node.args[0]
            inputs = [self.tensors[value] for value in parts]
            self._append(helper.make_node("Concat", inputs, [name], name=name, axis=1), node)
        elif node.target is torch.chunk and self._along_channels(node):
            lengths = [part.shape[1] for part in node.meta["tensor_meta"]]
            splits = add_constant(self.graph, f"{name}.lengths", np.array(lengths, np.int64))
            self.pieces[node] = [f"{name}.{index}" for index in range(len(lengths))]
            inputs = [self.tensors[node.all_input_nodes[0]], splits]
            self.graph.node.append(helper.make_node("Split", inputs, self.pieces[node], name=name, axis=1))
        elif node.target is operator.getitem and node.args[0] in self.pieces:
            chunk: Any = node.args[0]
            index: Any = node.args[1]
            self.tensors[node] = self.pieces[chunk][index]
        else:
            raise self._unknown(node)

    def _along_channels(self, node: fx.Node) -> bool:
        default = node.args[-1] if len(node.args) > (1 if node.target is torch.cat else 2) else 0
        return bool(node.kwargs.get("dim", default) == 1)

    def _unknown(self, node: fx.Node) -> UsageError:
        layer = layer_of(self.network, node)
        return UsageError(
            f"{node.target} ({type(layer).__name__ if layer else node.op}) has no ONNX form here: expected a network "
            "of zero-padded convolutions, batch norm, ReLU, ReLU6, hardswish, hardsigmoid, pools, channel shuffles, "
            "sums, products, and concatenations and chunks along channels"
        )

    def _write_batch_norm(self, node: fx.Node, norm: nn.BatchNorm2d, source: str) -> None:
        """Batch norm that no convolution precedes: a factor and an offset for each channel."""
        name = str(node.target)
        ones = np.ones((norm.num_features, 1, 1), np.float32)
        factor, offset = fold_batch_norm(ones, np.zeros(norm.num_features, np.float32), norm)
        scaled = f"{name}.scaled"
        inputs = [source, add_constant(self.graph, f"{name}.factor", factor)]
        self.graph.node.append(helper.make_node("Mul", inputs, [scaled], name=f"{name}.scale"))
        inputs = [scaled, add_constant(self.graph, f"{name}.offset", offset[:, None, None])]
        self._append(helper.make_node("Add", inputs, [name], name=name), node)

    def _write_mdconv(self, node: fx.Node, layer: MDConv, source: str) -> None:
        name = layer_name(self.network, node)
        weight, bias, values = self._folded(node, layer.padded_weight(), None)
        activation = self._activation_after(node) if self.fuses_activation else "none"
        if activation != "none":
            values += values[-1].users
        inputs = (source, *self._add_weights(name, weight, bias))
        self._append(
            mdconv_node(
                name,
                inputs,
                name,
                kernel_sizes=layer.kernel_sizes,
                channel_splits=layer.channel_splits,
                stride=layer.stride,
                activation=activation,
            ),
            *values,
        )

    def _write_convolution(self, node: fx.Node, layer: nn.Conv2d, source: str) -> None:
        name = layer_name(self.network, node)
        weight, bias, values = self._folded(node, layer.weight, layer.bias)
        if source == self.source:
            weight = weight.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        convolution = helper.make_node(
            "Conv",
            [source, *self._add_weights(name, weight, bias)],
            [name],
            name=name,
            kernel_shape=layer.kernel_size,
            strides=layer.stride,
            pads=[*layer.padding, *layer.padding],
            dilations=layer.dilation,
            group=layer.groups,
        )
        self._append(convolution, *values)

    def _folded(
        self, node: fx.Node, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[fx.Node]]:
        """Weight and bias of convolution `node` with the batch norm behind it, and the fx nodes that they compute."""
        kernel = weight.detach().numpy().astype(np.float32)
        offset = np.zeros(len(kernel), np.float32) if bias is None else bias.detach().numpy().astype(np.float32)
        reader = folded_norm(self.network, node)
        norm: Any = layer_of(self.network, reader)
        if reader:
            return *fold_batch_norm(kernel, offset, norm), [node, reader]
        return kernel, offset, [node]

    def _add_weights(self, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> tuple[str, str]:
        return add_constant(self.graph, f"{name}.weight", weight), add_constant(self.graph, f"{name}.bias", bias)

    def _append(self, node: onnx.NodeProto, *values: fx.Node) -> None:
        """Append `node`, which computes the fx nodes `values`, its output being the last of them."""
        self.graph.node.append(node)
        self.tensors.update(dict.fromkeys(values, node.output[0]))

    def _activation_after(self, node: fx.Node) -> str:
        """The activation that reads convolution `node`, behind its batch norm if it has one, or "none"."""
        layer = layer_of(self.network, only_reader(folded_norm(self.network, node) or node))
        return ACTIVATIONS.get(type(layer), "none") if layer else "none"


def _float64(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().numpy()
