"""Cross-layer equalization: channels of very different size made alike, so that one scale a tensor serves them all.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1: a
channel that one convolution writes and the next ones read may be multiplied by s in the first and divided by s in the
others, if what lies between them is positively homogeneous. Three things differ from the paper:

- Weights have a scale an output channel here, so a depthwise convolution, whose channel i reads channel i alone, bears
  any factor without loss. What suffers is the activation, which has one scale a tensor: the ranges that are made equal
  are those of the activation, as calibration images show them. Only where a channel is read by a dense convolution,
  whose rows mix channels, are the activation's and the weight's ranges balanced as in the paper's equation 11.
- ReLU6 is not homogeneous: s min(6, x) is min(6 s, s x), and the bound stays 6. So a channel that is seen to pass 3
  keeps its factor 1. Any other gets a factor of at least 1 after which it stays within 3, and within the largest value
  of its tensor: on the calibration images the clip changes nothing, before or after, and on others nothing until a
  channel is twice as large as it was ever seen. Beyond that it is cut off at 6 / s, and the function is another.
- Factors are powers of two. Then every product and sum is scaled exactly, and in float32 the function is the same to
  the last bit wherever no clip takes part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.graph import CONVOLUTIONS, MDCONV, add_constant, attributes, consumers, initializers, producers
from edge.backends.onnxruntime import open_session
from edge.errors import MachineError, UsageError

MOST_DOUBLINGS = 16
"""A channel is magnified by 2 to this power at most, as seen from the largest of its tensor: what is smaller yet is
noise of a channel that is all but dead, and might wake up on another image."""

HEADROOM = 2
"""How often the largest value that was seen of a magnified channel fits below the activation's bound."""

TOLERANCE = 1e-5
"""How far the first output may move on a calibration image, of its largest value or of 1: rounding, where a runtime
sums in another order. It is 0 as a rule."""

_BOUNDS = {"none": math.inf, "relu": math.inf, "relu6": 6.0}
"""What the activations of an `MDConv` that are homogeneous up to a bound have for it."""


class Junction(NamedTuple):
    """A tensor whose channels one convolution writes and others read, with nothing between that forbids scaling."""

    writer: str
    tensor: str
    """Behind the activation, if there is one."""
    readers: tuple[str, ...]
    bound: float
    """Largest value that the activation lets pass; infinity for ReLU and for none."""


class Junctions(NamedTuple):
    """Of a graph: those before and behind its depthwise convolutions."""

    found: tuple[Junction, ...]
    left: dict[str, str]
    """Tensors before and behind a depthwise convolution that cannot be scaled, and why."""


def is_depthwise(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether each of the node's output channels reads the one input channel of the same number."""
    if node.op_type == MDCONV:
        return True
    weight = initializers(graph).get(node.input[1]) if node.op_type == "Conv" else None
    return weight is not None and attributes(node).get("group", 1) == weight.dims[0] > 1 == weight.dims[1]


def find_junctions(graph: onnx.GraphProto) -> Junctions:
    """The junctions of `graph`, a float32 one with batch norm folded, in its order."""
    made_by, read_by = producers(graph), consumers(graph)
    found: dict[str, Junction] = {}
    left: dict[str, str] = {}
    for node in graph.node:
        if not is_depthwise(graph, node):
            continue
        for tensor in (node.input[0], _behind_activation(node.output[0], read_by)):
            if tensor not in found and tensor not in left:
                try:
                    found[tensor] = _junction(graph, tensor, made_by, read_by)
                except _LeftError as reason:
                    left[tensor] = str(reason)
    return Junctions(tuple(found.values()), left)


class _LeftError(Exception):
    """A tensor's channels cannot be scaled; the text says why."""


def _behind_activation(tensor: str, read_by: dict[str, list[onnx.NodeProto]]) -> str:
    readers = read_by.get(tensor, [])
    single = len(readers) == 1 and readers[0].op_type in ("Clip", "Relu", "HardSwish")
    return readers[0].output[0] if single else tensor


def _junction(
    graph: onnx.GraphProto,
    tensor: str,
    made_by: dict[str, onnx.NodeProto],
    read_by: dict[str, list[onnx.NodeProto]],
) -> Junction:
    """Raises `_LeftError`."""
    constants, outputs = initializers(graph), {output.name for output in graph.output}
    writer, bound, between = made_by.get(tensor), math.inf, tensor
    if writer is not None and writer.op_type in ("Clip", "Relu"):
        bound = _bound(writer, constants)
        between = writer.input[0]
        writer = made_by.get(between)
    if writer is None or writer.op_type not in CONVOLUTIONS:
        raise _LeftError(f"it comes from {_kind(writer)}, not from a convolution")
    if writer.op_type == MDCONV:
        activation = attributes(writer)["activation"]
        if activation not in _BOUNDS:
            raise _LeftError(f"{activation} does not let a factor pass")
        bound = min(bound, _BOUNDS[activation])
    readers = read_by.get(tensor, [])
    others = [reader for reader in readers if reader.op_type not in CONVOLUTIONS or tensor != reader.input[0]]
    if others or not readers:
        raise _LeftError(f"{_kind(others[0]) if others else 'nothing'} reads it, not a convolution")
    if outputs & {tensor, between} or (between != tensor and len(read_by[between]) > 1):
        raise _LeftError("others read it before its activation, or it is an output of the network")
    for node in (writer, *readers):
        if any(name not in constants or len(read_by[name]) > 1 for name in node.input[1:]):
            raise _LeftError(f"the weights of {node.name} are no constants of its own")
    return Junction(writer.name, tensor, tuple(reader.name for reader in readers), bound)


def _kind(node: onnx.NodeProto | None) -> str:
    return "the network's input" if node is None else node.op_type


def _bound(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> float:
    """The upper bound of a Clip from 0 or of a Relu. Raises `_LeftError`."""
    if node.op_type == "Relu":
        return math.inf
    ends = [numpy_helper.to_array(constants[name]).item() for name in node.input[1:] if name in constants]
    if len(ends) != 2 or ends[0] != 0:
        raise _LeftError("its Clip is not from 0 to a constant")
    return float(ends[1])


class Survey(NamedTuple):
    """What a float32 model does on images."""

    peaks: dict[str, NDArray[np.float32]]
    """(C,) largest magnitude of each channel, by tensor."""
    outputs: list[NDArray[np.float32]]
    """The model's first output, one array a batch."""


def survey(model: onnx.ModelProto, tensors: Sequence[str], images: Iterable[NDArray[np.uint8]]) -> Survey:
    """Run `images`, (n, 1, S, S) uint8, as they come, and note the peaks of `tensors`, each (N, C, H, W).

    The order of the images does not matter to the peaks. Raises `UsageError` for values that are not finite.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [watched.graph.output[0].name, *(f"{tensor}.peaks" for tensor in tensors)]
    for tensor in tensors:
        axes = add_constant(watched.graph, "peaks.axes", np.array([0, 2, 3], np.int64))
        magnitudes, peaks = f"{tensor}.magnitudes", f"{tensor}.peaks"
        watched.graph.node.append(helper.make_node("Abs", [tensor], [magnitudes], name=magnitudes))
        watched.graph.node.append(helper.make_node("ReduceMax", [magnitudes, axes], [peaks], name=peaks, keepdims=0))
        watched.graph.output.append(onnx.ValueInfoProto(name=peaks))
    session = open_session(watched.SerializeToString(), threads=0)
    source = session.get_inputs()[0].name
    found = Survey({}, [])
    for image in images:
        output, *peaks = session.run(names, {source: image})
        found.outputs.append(output)
        for tensor, values in zip(tensors, peaks):
            if not np.isfinite(values).all():
                raise UsageError(f"tensor {tensor} on a calibration image: values are not finite: the model is broken")
            found.peaks[tensor] = np.maximum(found.peaks.get(tensor, values), values)
    return found


def doublings(
    peaks: NDArray[np.float32], bound: float, columns: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """How often each channel is doubled, (C,); negative: halved, which only unbounded channels are.

    Args:
        peaks: (C,) largest magnitude of each channel.
        bound: of the activation.
        columns: (C,) how large the weights are that read a channel, against the rest of their rows; None if only
            depthwise convolutions read them, which bear any factor.
    """
    result = np.zeros(len(peaks), np.int64)
    live = (peaks > 0) & (peaks < bound)
    if columns is not None:
        live &= columns > 0
    if not live.any():
        return result
    largest = float(peaks.max())
    least = 0 if math.isfinite(bound) else -MOST_DOUBLINGS
    seen = np.maximum(peaks[live].astype(np.float64), math.ldexp(largest, -MOST_DOUBLINGS))
    room = np.maximum(np.floor(np.log2(min(largest, bound / HEADROOM) / seen)), least)
    if columns is None:
        result[live] = room
        return result
    shares = np.sqrt(seen * columns[live])
    wanted = np.rint(np.log2(largest / seen * shares / shares.max()))
    result[live] = np.clip(wanted, least, room)
    # A channel that is always zero needs no range, but its weights must not take that of their rows.
    dead = (peaks == 0) & (columns > 0)
    widest = np.ldexp(columns, -result)[~dead].max()
    result[dead] = np.clip(np.ceil(np.log2(columns[dead] / widest)), 0, MOST_DOUBLINGS)
    return result


def column_sizes(weight: NDArray[np.float32], groups: int, peaks: NDArray[np.float32]) -> NDArray[np.float64]:
    """How large the weights (C_out, C_in / groups, kh, kw) are that read each of the C_in channels, (C_in,).

    Each row is measured by its largest contribution, |weight| times the channel's peak. So a factor that passed from
    one convolution to the other changes these sizes by itself, and by nothing else.
    """
    magnitudes = np.abs(weight).max(axis=(2, 3)).astype(np.float64)
    rows = magnitudes.reshape(groups, -1, magnitudes.shape[1])
    contributions = (rows * peaks.reshape(groups, 1, -1)).max(axis=2, keepdims=True)
    sizes = np.divide(rows, contributions, out=np.zeros_like(rows), where=contributions > 0)
    return np.asarray(sizes.max(axis=1).reshape(-1))


def equalize(model: onnx.ModelProto, images: Iterable[NDArray[np.uint8]]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A copy of float32 `model` with equalized channels, and what ``calibration.json`` says about it.

    Args:
        model: float32, batch norm folded.
        images: (n, 1, S, S) uint8, read twice: to see the channels, and to compare the two models.

    Raises:
        UsageError: values that are not finite.
        MachineError: the two models differ on an image. That would be a fault of this module.
    """
    equalized = onnx.ModelProto()
    equalized.CopyFrom(model)
    graph = equalized.graph
    junctions = find_junctions(graph)
    if not junctions.found:
        return equalized, {"difference": 0.0, "tensors": {}, "left": junctions.left}
    before = survey(model, [junction.tensor for junction in junctions.found], images)
    nodes = {node.name: node for node in graph.node}
    record: dict[str, Any] = {}
    for junction in junctions.found:
        peaks = before.peaks[junction.tensor]
        readers = [nodes[name] for name in junction.readers]
        exponents = doublings(peaks, junction.bound, _columns(graph, readers, peaks))
        _scale(graph, nodes[junction.writer], readers, exponents)
        record[junction.tensor] = {
            "writer": junction.writer,
            "readers": list(junction.readers),
            "scaled": int(np.count_nonzero(exponents)),
            "at_bound": int((peaks >= junction.bound).sum()),
            "spread": {"before": _spread(peaks), "after": _spread(np.ldexp(peaks, exponents))},
            "doublings": exponents.tolist(),
        }
    after = survey(equalized, [], images)
    difference = max(float(np.abs(b - a).max()) for b, a in zip(before.outputs, after.outputs))
    limit = TOLERANCE * max(1.0, *(float(np.abs(output).max()) for output in before.outputs))
    if not difference <= limit:
        raise MachineError(
            f"equalization changed the float32 network by {difference:.1e}, expected {limit:.0e} at most: build with "
            "--no-equalization, and report it with the checkpoint"
        )
    return equalized, {"difference": difference, "tensors": record, "left": junctions.left}


def _spread(peaks: NDArray[np.float32]) -> float:
    """Largest peak by the smallest of the channels that are alive."""
    live = peaks[peaks > 0]
    return float(live.max() / live.min()) if len(live) else 1.0


def _columns(
    graph: onnx.GraphProto, readers: list[onnx.NodeProto], peaks: NDArray[np.float32]
) -> NDArray[np.float64] | None:
    constants = initializers(graph)
    dense = [reader for reader in readers if not is_depthwise(graph, reader)]
    if not dense:
        return None
    sizes = [
        column_sizes(numpy_helper.to_array(constants[reader.input[1]]), int(attributes(reader).get("group", 1)), peaks)
        for reader in dense
    ]
    largest: NDArray[np.float64] = np.max(sizes, axis=0)
    return largest


def _scale(
    graph: onnx.GraphProto, writer: onnx.NodeProto, readers: list[onnx.NodeProto], exponents: NDArray[np.int64]
) -> None:
    """Double the output channels of `writer` so often, and halve the input channels of `readers` as often."""
    constants = initializers(graph)
    for name in writer.input[1:]:
        values = numpy_helper.to_array(constants[name])
        powers = exponents.reshape(-1, *[1] * (values.ndim - 1))
        constants[name].CopyFrom(numpy_helper.from_array(np.ldexp(values, powers).astype(np.float32), name))
    for reader in readers:
        name = reader.input[1]
        values = numpy_helper.to_array(constants[name])
        groups = int(attributes(reader).get("group", 1))
        apart = values.reshape(groups, -1, *values.shape[1:])  # (g, C_out / g, C_in / g, kh, kw)
        powers = -exponents.reshape(groups, 1, -1, 1, 1)
        scaled = np.ldexp(apart, powers).astype(np.float32).reshape(values.shape)
        constants[name].CopyFrom(numpy_helper.from_array(scaled, name))
