"""What an ONNX graph costs a GPU, kernel by kernel: bytes from and to memory, operations, and the type they run in.

Nodes are gathered into kernels as TensorRT fuses them: a convolution with its bias, its activation and the sum of a
residual behind it; element-wise nodes in a row; QuantizeLinear with what it rounds, DequantizeLinear with what reads
it, so that a tensor between int8 layers is one byte a value in memory. Reshape and its like cost nothing; Split, Concat
and Transpose are copies. Not counted is what the graph does not show: kernels that only change a layout, and copies
that TensorRT saves by having the parts of a concatenation written into one buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper, shape_inference

from calibration.graph import MDCONV, attributes, consumers
from edge.errors import UsageError

_ALIASES = {"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_POINTWISE = {
    *("Add", "BatchNormalization", "Cast", "Clip", "Div", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "PRelu"),
    *("Relu", "Sigmoid", "Sub", "Tanh"),
}
_COPIES = {"Concat", "Split", "Transpose"}
_COMMUTING = {"MaxPool", *_ALIASES, *_COPIES}
"""A QuantizeLinear behind one of these is done before it: it moves values or picks them, and int8 is less to move."""
_POOLS = {"AveragePool", "MaxPool"}
_REDUCTIONS = {"GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceSum", "Softmax"}
_PRODUCTS = {"Gemm", "MatMul"}
_KNOWN = {"Constant", "Conv", "DequantizeLinear", "QuantizeLinear", MDCONV}
_KNOWN |= _ALIASES | _POINTWISE | _COPIES | _POOLS | _REDUCTIONS | _PRODUCTS
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


class KernelCost(NamedTuple):
    """What one kernel costs."""

    name: str
    """Of the node that it is named after: a convolution, else the first of its nodes."""
    kind: str
    dtype: str
    """What it computes in: "int8", "float16" or "float32"."""
    unit: str
    """The "tensor" or "cuda" cores; a copy does nothing on the latter."""
    read: int
    """Bytes of activations."""
    weights: int
    """Bytes of constants."""
    written: int
    """Bytes."""
    operations: int
    """Two a multiply-accumulate; one a value of each element-wise node or pool that stands alone."""

    @property
    def bytes(self) -> int:
        return self.read + self.weights + self.written


def kernel_costs(model: onnx.ModelProto, batch: int = 1) -> list[KernelCost]:
    """The kernels of `model`, whose `MDConv` nodes are the plugin's, in their order.

    `batch` is what the input's first axis is where it is a symbol. Raises `UsageError` for an operator that has no cost
    here, or a tensor of unknown shape.
    """
    unknown = sorted({node.op_type for node in model.graph.node} - _KNOWN)
    if unknown:
        raise UsageError(f"{', '.join(unknown)} has no modelled cost: expected {', '.join(sorted(_KNOWN))}")
    return list(_Walk(model, batch).costs())


@dataclass
class _Kernel:
    node: onnx.NodeProto
    kind: str
    dtype: str
    unit: str
    operations: int
    shape: tuple[int, ...]
    fuses: bool
    """Whether element-wise nodes may join it."""
    alone: bool = False
    """Whether all it does is element-wise."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)


class _Walk:
    """Assigns nodes to kernels in one pass, and adds up what crosses their borders."""

    def __init__(self, model: onnx.ModelProto, batch: int) -> None:
        self.graph = shape_inference.infer_shapes(model).graph
        self.batch = batch
        self.readers = consumers(self.graph)
        values = [*self.graph.input, *self.graph.value_info, *self.graph.output]
        self.types = {value.name: value.type.tensor_type for value in values}
        first = [dim for value in self.graph.input for dim in value.type.tensor_type.shape.dim[:1]]
        self.symbols = {dim.dim_param for dim in first} - {""}
        self.outputs = {output.name for output in self.graph.output}
        self.narrow: set[str] = set()
        """Float tensors that are only moved about before they are rounded, and so are int8 in memory."""
        self.constants: set[str] = set()
        """Those that need no kernel: computed when the engine is built."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.elements = {name: value.elem_type for name, value in self.types.items()}
        for tensor in self.graph.initializer:
            self._note(tensor.name, tensor)
        for node in reversed(self.graph.node):
            self.narrow.update(name for name in node.output if self._is_narrow(name))
        self.same: dict[str, str] = {}
        """A tensor that is no memory of its own, and the one that it is."""
        self.rounded: dict[tuple[str, ...], str] = {}
        self.kernels: list[_Kernel] = []
        self.made_in: dict[str, int] = {}

    def costs(self) -> Iterator[KernelCost]:
        for node in self.graph.node:
            self._place(node)
        read: list[set[str]] = [set() for _ in self.kernels]
        written: list[set[str]] = [set() for _ in self.kernels]
        constants: list[set[str]] = [set() for _ in self.kernels]
        for number, kernel in enumerate(self.kernels):
            for name in (name for node in kernel.nodes for name in node.input if name):
                source, maker = self._source(name), self.made_in.get(self._source(name))
                if source in self.constants:
                    constants[number].add(source)
                elif maker != number:
                    read[number].add(source)
                    if maker is not None:
                        written[maker].add(source)
        for output in self.graph.output:
            maker = self.made_in.get(self._source(output.name))
            if maker is not None:
                written[maker].add(self._source(output.name))
        for kernel, reads, constant, writes in zip(self.kernels, read, constants, written):
            moved = (sum(map(self._bytes, reads)), sum(map(self._bytes, constant)), sum(map(self._bytes, writes)))
            yield KernelCost(kernel.node.name, kernel.kind, kernel.dtype, kernel.unit, *moved, kernel.operations)

    def _place(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            value = attributes(node).get("value")
            if not isinstance(value, TensorProto):
                raise UsageError(f"constant {node.output[0]!r} is no tensor: export it as one")
            self._note(node.output[0], value)
        elif all(self._source(name) in self.constants for name in node.input if name):
            self._fold(node)
        elif node.op_type in _ALIASES or node.op_type == "DequantizeLinear":
            self.same[node.output[0]] = node.input[0]
        elif node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type in _POINTWISE:
            self._join(node)
        else:
            self._start(node, self._anchor(node))

    def _fold(self, node: onnx.NodeProto) -> None:
        """What a node makes of constants is one; of int8 weights, int8 is what is kept."""
        if node.op_type in ("DequantizeLinear", *_ALIASES):
            self.same[node.output[0]] = node.input[0]
        else:
            self.constants.update(node.output)

    def _quantize(self, node: onnx.NodeProto) -> None:
        source = self._source(node.input[0])
        key = (source, *node.input[1:])
        if key in self.rounded:
            self.same[node.output[0]] = self.rounded[key]
            return
        self.rounded[key] = node.output[0]
        maker = self.made_in.get(source)
        if maker is None or self.elements[source] == TensorProto.INT8:
            self._start(node, _Kernel(node, "quantize", "float32", "cuda", self._size(node.output[0]), (), False))
        else:
            self._add(node, maker)

    def _join(self, node: onnx.NodeProto) -> None:
        """Put an element-wise node into the kernel that makes one of its inputs, or start one if none can take it."""
        shape, size = self._shape(node.output[0]), self._size(node.output[0])
        for name in sorted(node.input, key=lambda name: self.made_in.get(name, -1), reverse=True):
            number = self.made_in.get(name, -1)
            if number < 0 or not self.kernels[number].fuses or self.kernels[number].shape != shape:
                continue
            others = {self.made_in.get(self._source(other), -1) for other in node.input if other} - {number}
            if self._is_inner(name, shape) and not any(self._needs(other, number) for other in others):
                self._add(node, number)
                self.kernels[number].operations += size if self.kernels[number].alone else 0
                return
        self._start(node, _Kernel(node, "pointwise", self._type(node.output[0]), "cuda", size, shape, True, alone=True))

    def _needs(self, number: int, wanted: int) -> bool:
        """Whether kernel `number` runs after kernel `wanted`, by what they read."""
        seen: set[int] = set()
        ahead = [number]
        while ahead:
            kernel = ahead.pop()
            if kernel == wanted:
                return True
            if kernel >= 0 and kernel not in seen:
                seen.add(kernel)
                names = (name for node in self.kernels[kernel].nodes for name in node.input)
                ahead += [self.made_in.get(self._source(name), -1) for name in names]
        return False

    def _is_inner(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether all that reads a tensor is element-wise and of its shape, so that it need not be in memory."""
        readers = self.readers.get(name, [])
        fits = (reader.op_type in _POINTWISE and self._shape(reader.output[0]) == shape for reader in readers)
        return name not in self.outputs and all(fits)

    def _anchor(self, node: onnx.NodeProto) -> _Kernel:
        kind, out = node.op_type, node.output[0]
        shape, size, dtype = self._shape(out), self._size(out), self._type(node.input[0])
        if kind == "Conv":
            weight = self._shape(node.input[1])
            groups = attributes(node).get("group", 1)
            depthwise = groups > 1 and weight[1] == 1
            label = f"{'depthwise' if depthwise else 'conv'} {'x'.join(map(str, weight[2:]))}"
            unit = "cuda" if depthwise else "tensor"
            return _Kernel(node, label, self._computes_in(node), unit, 2 * size * math.prod(weight[1:]), shape, True)
        if kind == MDCONV:
            facts = attributes(node)
            area = sum(k * k * c for k, c in zip(facts["kernel_sizes"], facts["channel_splits"]))
            label = f"MDConv {' '.join(f'{k}x{k}' for k in facts['kernel_sizes'])}"
            return _Kernel(node, label, dtype, "cuda", 2 * size // shape[1] * area, shape, False)
        if kind in _PRODUCTS:
            left = self._shape(node.input[0])
            inner = left[0] if kind == "Gemm" and attributes(node).get("transA", 0) else left[-1]
            return _Kernel(node, kind.lower(), self._computes_in(node), "tensor", 2 * size * inner, shape, True)
        if kind in _POOLS:
            area = math.prod(attributes(node)["kernel_shape"])
            return _Kernel(node, "pool", dtype, "cuda", size * area, shape, False)
        if kind in _REDUCTIONS:
            return _Kernel(node, "reduction", dtype, "cuda", self._size(node.input[0]), shape, False)
        return _Kernel(node, kind.lower(), dtype, "cuda", 0, shape, False)

    def _computes_in(self, node: onnx.NodeProto) -> str:
        """int8 if both factors were dequantized, else the type of the node's own input."""
        kinds = {self._type(self._source(name)) for name in node.input[:2]}
        return "int8" if kinds == {"int8"} else self._type(node.input[0])

    def _start(self, node: onnx.NodeProto, kernel: _Kernel) -> None:
        self.kernels.append(kernel)
        self._add(node, len(self.kernels) - 1)

    def _add(self, node: onnx.NodeProto, number: int) -> None:
        self.kernels[number].nodes.append(node)
        self.made_in.update(dict.fromkeys(node.output, number))

    def _source(self, name: str) -> str:
        while name in self.same:
            name = self.same[name]
        return name

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            dims = self.types[name].shape.dim if name in self.types else []
            known = [dim.dim_value or (self.batch if dim.dim_param in self.symbols else 0) for dim in dims]
            if name not in self.types or not self.types[name].HasField("shape") or not all(known):
                raise UsageError(f"the shape of tensor {name!r} is not known: export the model with a fixed size")
            self.shapes[name] = tuple(known)
        return self.shapes[name]

    def _size(self, name: str) -> int:
        return math.prod(self._shape(name))

    def _type(self, name: str) -> str:
        """What a kernel that reads or writes tensor `name` computes in."""
        element = TensorProto.INT8 if name in self.narrow else self.elements.get(name, TensorProto.UNDEFINED)
        if element not in _TYPES:
            kind = TensorProto.DataType.Name(element).lower()
            raise UsageError(f"tensor {name!r} is {kind}: expected {', '.join(dict.fromkeys(_TYPES.values()))}")
        return _TYPES[element]

    def _bytes(self, name: str) -> int:
        element = TensorProto.INT8 if name in self.narrow else self.elements[name]
        return self._size(name) * int(helper.tensor_dtype_to_np_dtype(element).itemsize)

    def _note(self, name: str, tensor: TensorProto) -> None:
        self.shapes[name], self.elements[name] = tuple(tensor.dims), tensor.data_type
        self.constants.add(name)

    def _is_narrow(self, name: str) -> bool:
        readers = self.readers.get(name, [])
        return (
            bool(readers)
            and name not in self.outputs
            and all(
                reader.op_type == "QuantizeLinear"
                or (reader.op_type in _COMMUTING and self.narrow.issuperset(reader.output))
                for reader in readers
            )
        )
