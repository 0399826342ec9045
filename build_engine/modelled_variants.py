"""The forms in which one network can run on a device: each precision in each lowering of MD-Conv, with its cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, shape_inference

from build_engine.graph_cost import KernelCost, kernel_costs
from build_engine.lowering import KINDS, lower
from build_engine.precision import to_float16
from calibration.graph import CONVOLUTIONS, MDCONV, attributes, replace_nodes
from calibration.insertion import insert
from calibration.placement import activations, place
from edge.bundle import PORTABLE_MODEL, PRECISIONS, load_bundle, model_file
from edge.errors import UsageError, describe_os_error


class Variant(NamedTuple):
    """A network in one precision and one lowering."""

    precision: str
    lowering: str
    kernels: tuple[KernelCost, ...]
    """Empty if it is left out."""
    left_out: str | None = None
    """Why."""


def variants(path: Path, batch: int = 1) -> tuple[str, list[Variant]]:
    """The name of the network in bundle or ONNX file `path`, and its variants.

    Of a float32 network all precisions; one that is quantized, float16, or lowered for the plugin is taken as it is. A
    bundle's own int8 model is taken if it has one; else values are rounded where `calibration.placement` would round
    them, by scales that are all 1, since no time depends on them. A network without MD-Conv has one lowering, "padded".

    Raises `BundleError` for a bundle that is none, `UsageError` for a file that is no network or has no cost here.
    """
    if path.is_dir():
        bundle = load_bundle(path)
        models = dict(_precisions(load_graph(path / PORTABLE_MODEL)))
        if bundle.manifest["precision"] == "int8":
            models["int8"] = load_graph(path / model_file("int8"))
        return bundle.name, [each for name, model in models.items() for each in _lowered(name, model, batch)]
    model = load_graph(path)
    found = [each for name, one in _precisions(model) for each in _lowered(name, one, batch)]
    return model.graph.name, found


def load_graph(path: Path) -> onnx.ModelProto:
    """The model in `path`. Raises `UsageError` if it is none."""
    try:
        model = onnx.load(path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {describe_os_error(error)}") from None
    except DecodeError:
        raise UsageError(f"{path} is no ONNX file: name one, or a bundle's directory") from None
    if not model.graph.node:
        raise UsageError(f"{path} holds no network: name an ONNX file, or a bundle's directory")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise UsageError(f"{path} is no valid ONNX model: {str(error).splitlines()[0]}") from None
    return model


def _precisions(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto | UsageError]]:
    """`model` in each precision, or why it has no such form."""
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    present = _precision(model)
    if present != "fp32" or _is_for_plugin(model):
        yield present, model
        return
    inferred = shape_inference.infer_shapes(with_made_inputs(model))
    for name, convert in (("fp32", lambda model: model), ("fp16", to_float16), ("int8", nominal_int8)):
        try:
            yield name, convert(inferred)
        except UsageError as error:
            yield name, error


def with_made_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose nodes read each float32 input by way of an Identity, which costs nothing.

    The conversions to other types change what nodes make, and no input: with the Identity they can cast or round it.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    inputs = [value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    made = {name: f"{name}.read" for name in inputs}
    for node in graph.node:
        node.input[:] = [made.get(name, name) for name in node.input]
    identities = [helper.make_node("Identity", [name], [target], name=target) for name, target in made.items()]
    replace_nodes(graph, [*identities, *graph.node])
    return changed


def _precision(model: onnx.ModelProto) -> str:
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if halves else "fp32"


def _is_for_plugin(model: onnx.ModelProto) -> bool:
    """Whether `lower` left the `MDConv` nodes for the plugin: the function that defines them is gone."""
    return not model.functions and any(node.op_type == MDCONV for node in model.graph.node)


def nominal_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 `model` of known shapes, rounded where a calibrated one is, by scales of 1: for its cost alone.

    Its convolutions must not read an input of the model itself (`with_made_inputs`).
    Raises `UsageError` if it has no convolution.
    """
    if not any(node.op_type in CONVOLUTIONS for node in model.graph.node):
        raise UsageError("the network has no convolution, so nothing of it is quantized")
    placement = place(model.graph)
    return insert(model, placement, dict.fromkeys(activations(model.graph, placement), np.float32(1)))


def _lowered(precision: str, model: onnx.ModelProto | UsageError, batch: int) -> Iterator[Variant]:
    if isinstance(model, UsageError):
        yield Variant(precision, "padded", (), str(model))
        return
    if _is_for_plugin(model):
        yield Variant(precision, "plugin", tuple(kernel_costs(model, batch)))
        return
    nodes = [node for node in model.graph.node if node.op_type == MDCONV]
    for kind in KINDS if nodes else ("padded",):
        if kind == "split" and all(len(attributes(node)["kernel_sizes"]) == 1 for node in nodes):
            yield Variant(precision, kind, (), "each MD-Conv has one kernel size: it is the same as padded")
            continue
        try:
            yield Variant(precision, kind, tuple(kernel_costs(lower(model, kind), batch)))
        except UsageError as error:
            if kind != "plugin":
                raise
            yield Variant(precision, kind, (), str(error))


def chosen(found: list[Variant], precision: str | None, lowering: str | None) -> list[Variant]:
    """The variants of that precision and lowering; None takes all. Raises `UsageError` if there are none."""
    kept = [each for each in found if precision in (None, each.precision) and lowering in (None, each.lowering)]
    if not kept:
        there = ", ".join(dict.fromkeys(f"{each.precision} {each.lowering}" for each in found))
        raise UsageError(f"no variant {precision or ''} {lowering or ''}: the network has {there}".replace("  ", " "))
    return sorted(kept, key=lambda each: PRECISIONS.index(each.precision))
