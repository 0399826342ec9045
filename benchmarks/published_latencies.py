"""Latencies on Jetson modules that others published, and the networks that they are of, as ONNX graphs.

The networks are pytorchcv's with random weights, exported by torch. None of the figures was measured here.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper, shape_inference
from pytorchcv.model_provider import get_model  # type: ignore[import-untyped]

from build_engine.modelled_variants import with_made_inputs
from build_engine.precision import to_float16
from calibration.graph import initializers, producers, replace_nodes
from calibration.insertion import insert
from calibration.placement import activations, place

SIDE = 224


class Published(NamedTuple):
    """One published latency."""

    source: str
    """A key of `SOURCES`."""
    network: str
    """As pytorchcv calls it."""
    classes: int
    batch: int
    precision: str
    module: str
    milliseconds: float
    calibrates: bool
    """Whether the expected range is fitted to it; else it is held out."""


SOURCES = {
    "onnxsim": "github.com/onnxsim/onnxsim, scripts/nvidia/README.md: mean GPU time of trtexec --noDataTransfers, "
    "TensorRT 10.3, MAXN_SUPER, TF32 allowed, INT8 by ModelOpt with the rest in float16",
    "NetsPresso": "github.com/Nota-NetsPresso/netspresso-trainer, docs/benchmarks/device_matrix/tensorrt.md: JetPack "
    "6.0 (Orin Nano; whether of 4 or 8 GB, and its power mode, are not told) and 5.0.1 (AGX Orin), three classes",
    "MLPerf": "MLPerf Inference 3.1, closed, edge: NVIDIA's SingleStream p90",
}


def _rows() -> list[Published]:
    rows = []
    for network, batch, *times in (
        ("resnet18", 1, 1.578, 0.758, 0.485),
        ("resnet18", 8, 8.357, 3.537, 1.927),
        ("mobilenetv2_w1", 1, 1.386, 0.850, 0.781),
        ("mobilenetv2_w1", 8, 8.147, 3.925, 2.446),
        ("resnet50", 1, 3.596, 1.814, 1.190),
        ("resnet50", 8, 19.969, 8.816, 4.930),
    ):
        for precision, time in zip(("fp32", "fp16", "int8"), times):
            fits = network != "resnet50"
            rows.append(Published("onnxsim", network, 1000, batch, precision, "Orin Nano 8 GB Super", time, fits))
    for network, nano, agx in (
        ("resnet18", 1.998, 0.520),
        ("mobilenetv3_large_w1", 2.512, 0.920),
        ("resnet34", 3.484, 0.870),
        ("resnet50b", 4.802, 1.142),
        ("mobilenetv3_small_w1", 1.563, 0.722),
        ("mixnet_s", 6.336, 2.177),
        ("mixnet_m", 9.074, 2.832),
        ("mixnet_l", 11.424, 3.303),
    ):
        fits = network in ("resnet18", "mobilenetv3_large_w1")
        rows.append(Published("NetsPresso", network, 3, 1, "fp16", "AGX Orin 64 GB", agx, fits))
        for module in ("Orin Nano 8 GB", "Orin Nano 4 GB"):  # one figure, held against either
            rows.append(Published("NetsPresso", network, 3, 1, "fp16", module, nano, False))
    for module, time in (("Orin NX 16 GB", 1.08), ("AGX Orin 64 GB", 0.64)):
        rows.append(Published("MLPerf", "resnet50b", 1000, 1, "int8", module, time, False))
    return rows


PUBLISHED = _rows()


def network(name: str, classes: int) -> onnx.ModelProto:
    """pytorchcv's network for one image, batch norm folded, its linear head as a 1x1 convolution; float32."""
    made = get_model(name, num_classes=classes).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is to go; the newer one needs another package
        file = Path(folder) / "model.onnx"
        torch.onnx.export(made, (torch.zeros(1, 3, SIDE, SIDE),), file, dynamo=False, opset_version=19)
        model = onnx.load(file)
    _tidy(model.graph)
    return with_batch(with_made_inputs(model), 1)


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy of `model`, each shape known, for `batch` images."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    changed.graph.output[0].type.tensor_type.ClearField("shape")
    changed.graph.ClearField("value_info")
    return shape_inference.infer_shapes(changed)


def in_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The float32 `model` in "fp32", "fp16" or "int8"; the last has every convolution in int8."""
    if precision == "fp32":
        return model
    if precision == "fp16":
        return to_float16(model)
    placement = place(model.graph)
    every = tuple(node.name for node in model.graph.node if node.op_type == "Conv")
    placement = replace(placement, weighted=every)
    return insert(model, placement, dict.fromkeys(activations(model.graph, placement), np.float32(1)))


def _tidy(graph: onnx.GraphProto) -> None:
    """Constants among the initializers, no Identity, and a 1x1 convolution for Gemm, so that all are converted."""
    same: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            value = node.attribute[0].t
            value.name = node.output[0]
            graph.initializer.append(value)
        elif node.op_type == "Identity":
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        else:
            node.input[:] = [same.get(name, name) for name in node.input]
            nodes.append(node)
    replace_nodes(graph, nodes)
    made_by, constants = producers(graph), initializers(graph)
    heads = [node for node in graph.node if node.op_type == "Gemm"]
    for node in heads:
        weight = constants[node.input[1]]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, :, None, None].copy(), weight.name))
        flat = made_by[node.input[0]]
        graph.node.remove(flat)
        node.op_type, node.input[0] = "Conv", flat.input[0]
        del node.attribute[:]
