"""Models of a few `MDConv` nodes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from build_engine.lowering import OPSET, mdconv_function, mdconv_node


def single(
    kernel_sizes: tuple[int, ...], splits: tuple[int, ...], stride: int, activation: str
) -> tuple[onnx.ModelProto, list[NDArray[np.float32]], NDArray[np.float32]]:
    """A model of one `MDConv`, the kernels of its groups, and its bias."""
    rng = np.random.default_rng(sum(kernel_sizes) + stride)
    largest = max(kernel_sizes)
    kernels = [rng.normal(size=(c, 1, k, k)).astype(np.float32) for k, c in zip(kernel_sizes, splits)]
    margins = [(largest - k) // 2 for k in kernel_sizes]
    weight = np.concatenate([np.pad(w, [(0, 0), (0, 0), (m, m), (m, m)]) for w, m in zip(kernels, margins)])
    bias = rng.normal(size=sum(splits)).astype(np.float32)
    node = mdconv_node(
        "md",
        ("X", "W", "B"),
        "Y",
        kernel_sizes=kernel_sizes,
        channel_splits=splits,
        stride=stride,
        activation=activation,
    )
    channels = sum(splits)
    graph = helper.make_graph(
        [node],
        "single",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", channels, None, None])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", channels, None, None])],
        [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(bias, "B")],
    )
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid("mdconv", 1)]
    model = helper.make_model(graph, functions=[mdconv_function(activation)], opset_imports=domains, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model, kernels, bias


def fix_shapes(model: onnx.ModelProto, height: int, width: int, stride: int) -> None:
    """Make the model of `single` one for a (1, C, height, width) input."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        lengths = (height, width) if value.name == "X" else (-(-height // stride), -(-width // stride))
        dims[0].dim_value, dims[2].dim_value, dims[3].dim_value = 1, *lengths


def chain(*activations: str, kernel_sizes: tuple[tuple[int, ...], ...] | None = None) -> onnx.ModelProto:
    """`MDConv` nodes ``md0``, ``md1``, ... of 8 channels in a row: ``X`` to ``T1``, ``T2``, ... and ``Y``."""
    sizes = kernel_sizes or ((3, 5),) * len(activations)
    tensors = ["X", *(f"T{i}" for i in range(1, len(activations))), "Y"]
    graph = onnx.GraphProto(name="chain")
    for i, (source, target) in enumerate(pairwise(tensors)):
        (model, _, _) = single(sizes[i], _shares(8, len(sizes[i])), 1, activations[i])
        node = model.graph.node[0]
        node.name, node.input[:], node.output[:] = f"md{i}", [source, f"W{i}", f"B{i}"], [target]
        graph.node.append(node)
        for tensor in model.graph.initializer:
            tensor.name += str(i)
            graph.initializer.append(tensor)
        graph.value_info.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, ["N", 8, None, None]))
    graph.input.append(helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", 8, None, None]))
    graph.output.append(helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", 8, None, None]))
    functions = [mdconv_function(kind) for kind in dict.fromkeys(activations)]
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid("mdconv", 1)]
    return helper.make_model(graph, functions=functions, opset_imports=domains, ir_version=9)


def _shares(channels: int, groups: int) -> tuple[int, ...]:
    return (*[channels // groups] * (groups - 1), channels - channels // groups * (groups - 1))
