"""Biases in whole steps of the integer sum, so that every runtime adds the same number.

The sum of a quantized convolution counts in steps of the input's scale times the weight's. TensorRT, the plugin and
OpenVINO scale the sum and add the bias in float32; ONNX Runtime's integer kernels add an int32 to the sum. A bias of
whole steps is the same for both. It moves by half a step at most, and a code of the result is many steps wide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.graph import CONVOLUTIONS, initializers, producers

LARGEST = 2**30
"""Of a bias, in steps. An int32 has room for twice that; sums of products reach 2**27 in the largest network here."""


class _Weight(NamedTuple):
    codes: NDArray[np.int8]
    """(C_out, ...)"""
    scales: NDArray[np.float32]
    """(C_out,)"""


def make_biases_whole(model: onnx.ModelProto) -> None:
    """Round the biases of the quantized convolutions of Q/DQ `model`, in place.

    A channel whose weights are next to nothing beside its bias has steps so fine that the bias would be more than
    `LARGEST` of them. Its weights get a coarser scale, with which it is not.
    """
    graph = model.graph
    made_by, constants = producers(graph), initializers(graph)

    def value(name: str) -> NDArray[Any]:
        return numpy_helper.to_array(constants[name])

    def put(name: str, values: NDArray[Any]) -> None:
        constants[name].CopyFrom(numpy_helper.from_array(values, name))

    for node in graph.node:
        if node.op_type not in CONVOLUTIONS or len(node.input) < 3:
            continue
        x, weight = (made_by.get(name) for name in node.input[:2])
        if x is None or weight is None or {x.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        x_scale, bias = value(x.input[1]), value(node.input[2])
        fine = _Weight(value(weight.input[0]), value(weight.input[1]))
        coarse = _fit(fine, bias, x_scale)
        step = x_scale.astype(np.float64) * coarse.scales
        put(weight.input[0], coarse.codes)
        put(weight.input[1], coarse.scales)
        put(node.input[2], (np.rint(bias / step) * step).astype(np.float32))


def _fit(weight: _Weight, bias: NDArray[np.float32], x_scale: NDArray[np.float32]) -> _Weight:
    least = np.abs(bias) / (x_scale * np.float32(LARGEST))
    scales = np.maximum(weight.scales, least).astype(np.float32)
    shrunk = np.rint(weight.codes * (weight.scales / scales).reshape(-1, *[1] * (weight.codes.ndim - 1)))
    return _Weight(shrunk.astype(np.int8), scales)
