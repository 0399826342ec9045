"""The TensorRT plugin on this CPU, called as TensorRT calls it. See plugin/host/tensorrt/plugin_harness.cpp.

The structures are those of NvInferRuntime.h. Needs NVIDIA's headers, which tests/stand_ins/build.py fetches.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.gpu.build import device_plugin
from tests.native.build import EMULATOR, PLUGIN, library
from tests.native.host_kernel import ON_GPU, SANITIZED
from tests.stand_ins.build import FOLDER

HEADERS = FOLDER / "tensorrt_headers" / "kernel_lens" / "include" / "tensorrt"

TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bool": 4, "uint8": 5, "bf16": 7, "int64": 8}
FORMATS = {
    "linear": 0, "chw2": 1, "hwc8": 2, "chw4": 3, "chw16": 4, "chw32": 5, "dhwc8": 6, "cdhw32": 7, "hwc": 8,
    "dla_linear": 9, "dla_hwc4": 10, "hwc16": 11, "dhwc": 12,
}  # fmt: skip
FLOAT16, FLOAT32, INT32, CHAR, INT64 = 0, 1, 5, 6, 10
"""Values of PluginFieldType."""

BUILD, RUNTIME = 0, 1


class Dims(ctypes.Structure):
    _fields_ = (("nbDims", c_int32), ("d", c_int64 * 8))

    @classmethod
    def of(cls, values: Sequence[int]) -> Dims:
        return cls(len(values), (c_int64 * 8)(*values))

    def tuple(self) -> tuple[int, ...]:
        return tuple(self.d[: self.nbDims])


class TensorDesc(ctypes.Structure):
    _fields_ = (("dims", Dims), ("type", c_int32), ("format", c_int32), ("scale", c_float))


class DynamicTensorDesc(ctypes.Structure):
    _fields_ = (("desc", TensorDesc), ("min", Dims), ("max", Dims), ("opt", Dims))


class Field(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("data", c_void_p), ("type", c_int32), ("length", c_int32))


class FieldCollection(ctypes.Structure):
    _fields_ = (("count", c_int32), ("fields", POINTER(Field)))


class Tensor(NamedTuple):
    """What a TensorDesc says. Scales are left at what TensorRT makes of them, which is nothing to rely on."""

    dims: Sequence[int]
    type: str = "float32"
    format: str = "linear"

    def desc(self) -> TensorDesc:
        return TensorDesc(Dims.of(self.dims), TYPES[self.type], FORMATS[self.format], -1.0)


class Value(NamedTuple):
    """A field's value, with the type of its elements."""

    type: int
    elements: bytes
    length: int


def ints(*values: int, kind: int = INT32) -> Value:
    return Value(kind, np.array(values, np.int32 if kind == INT32 else np.int64).tobytes(), len(values))


def text(value: str) -> Value:
    return Value(CHAR, value.encode(), len(value))


def floats(*values: float) -> Value:
    return Value(FLOAT32, np.array(values, np.float32).tobytes(), len(values))


def take_messages() -> list[str]:
    """What the plugin logged since the last call; each an error."""
    lines = _harness().harness_take_messages().decode().splitlines()
    assert all(line.startswith("1 MDConv: ") for line in lines), lines
    return [line.removeprefix("1 MDConv: ") for line in lines]


def set_logger(present: bool) -> None:
    _harness().harness_set_logger(present)


def creator_identity() -> tuple[str, ...]:
    return tuple(_harness().harness_identity(None, which).decode() for which in range(3))


def field_names() -> dict[str, int]:
    collection = _harness().harness_field_names().contents
    return {field.name.decode(): field.type for field in collection.fields[: collection.count]}


def create(fields: Mapping[str, Value], phase: int = BUILD) -> Plugin | None:
    """What the creator makes of the fields; None if it refuses them."""
    array = (Field * max(len(fields), 1))()
    kept = []
    for field, (name, value) in zip(array, fields.items()):
        # A copy of the exact size, so that reading beyond it shows under AddressSanitizer.
        data = ctypes.create_string_buffer(value.elements, len(value.elements))
        kept.append(data)
        field.name, field.data, field.type, field.length = name.encode(), ctypes.addressof(data), *value[::2]
    collection = FieldCollection(len(fields), array)
    return _owned(_harness().harness_create(b"node", byref(collection), phase))


def _owned(handle: int | None) -> Plugin | None:
    return Plugin(handle) if handle else None


class Plugin:
    """An object of the plugin. Destroyed with this one."""

    def __init__(self, handle: int) -> None:
        self._handle = c_void_p(handle)

    def __del__(self) -> None:
        _harness().harness_destroy(self._handle)

    def identity(self) -> tuple[str, ...]:
        return tuple(_harness().harness_identity(self._handle, which).decode() for which in range(3))

    def clone(self) -> Plugin:
        return Plugin(_harness().harness_clone(self._handle))

    def attach(self) -> Plugin:
        return Plugin(_harness().harness_attach(self._handle))

    def serialized(self) -> dict[str, Value]:
        """The fields that an engine would keep, copied as an engine would."""
        collection = _harness().harness_serialize(self._handle).contents
        sizes = {INT32: 4, FLOAT32: 4, CHAR: 1}
        return {
            field.name.decode(): Value(
                field.type, ctypes.string_at(field.data, field.length * sizes[field.type]), field.length
            )
            for field in collection.fields[: collection.count]
        }

    def output_count(self) -> int:
        return int(_harness().harness_output_count(self._handle))

    def output_type(self, *inputs: str) -> str | None:
        """None if the plugin refuses the inputs' types."""
        given, found = (c_int32 * len(inputs))(*(TYPES[name] for name in inputs)), c_int32(-1)
        status = _harness().harness_output_types(self._handle, given, len(inputs), byref(found))
        return None if status else next(name for name, value in TYPES.items() if value == found.value)

    def output_shape(
        self, inputs: Sequence[Sequence[int]], dynamic: Sequence[int] = ()
    ) -> tuple[tuple[int, ...], set[int]] | None:
        """Y's dimensions, and the indices of those that the network does not know yet; `dynamic` are those of X."""
        dims = (Dims * len(inputs))(*map(Dims.of, inputs))
        known = (Dims * len(inputs))(*(Dims.of([1] * len(shape)) for shape in inputs))
        for index in dynamic:
            known[0].d[index] = 0
        shape, shape_known = Dims(), Dims()
        arguments = (dims, known, len(inputs), byref(shape), byref(shape_known))
        if _harness().harness_output_shape(self._handle, *arguments):
            return None
        return shape.tuple(), {index for index, is_known in enumerate(shape_known.tuple()) if not is_known}

    def supports(self, position: int, tensors: Sequence[Tensor]) -> bool:
        """Tensors are X, W, B, perhaps w_scale, and Y."""
        return bool(_harness().harness_supports(self._handle, position, _dynamic_descs(tensors), len(tensors) - 1))

    def configure(self, tensors: Sequence[Tensor]) -> bool:
        return not _harness().harness_configure(self._handle, _dynamic_descs(tensors), len(tensors) - 1)

    def tactics(self) -> list[int]:
        found = (c_int32 * 64)()
        return found[: _harness().harness_tactics(self._handle, found, len(found))]

    def timing_id(self) -> str:
        return str(_harness().harness_timing_id(self._handle).decode())

    def metadata(self) -> str:
        return str(_harness().harness_metadata(self._handle).decode())

    def set_tactic(self, tactic: int) -> bool:
        return not _harness().harness_set_tactic(self._handle, tactic)

    def change_shape(self, tensors: Sequence[Tensor]) -> bool:
        return not _harness().harness_shape_change(self._handle, _descs(tensors), len(tensors) - 1)

    def enqueue(self, tensors: Sequence[Tensor], inputs: Sequence[NDArray[Any] | None], y: NDArray[Any]) -> bool:
        """Arrays in memory as their tensors' formats say; `y` is written. Addresses are aligned as a GPU's are."""
        arrays = [*inputs, y]
        if os.environ.get(ON_GPU) == "1":
            with _on_device(arrays) as addresses:
                return self._enqueue(tensors, addresses)
        return self._enqueue(tensors, [None if array is None else array.ctypes.data for array in arrays])

    def _enqueue(self, tensors: Sequence[Tensor], addresses: Sequence[int | None]) -> bool:
        """`addresses` are those of the inputs and of Y."""
        *inputs, y = addresses
        array = (c_void_p * len(inputs))(*inputs)
        return not _harness().harness_enqueue(self._handle, _descs(tensors), len(inputs), array, c_void_p(y))


@contextmanager
def _on_device(arrays: Sequence[NDArray[Any] | None]) -> Iterator[list[int | None]]:
    """Addresses of copies of the arrays on the GPU; the last one is copied back at the end."""
    harness = _harness()
    harness.device_memory_new.restype = c_void_p
    made = [
        None if array is None else harness.device_memory_new(c_void_p(array.ctypes.data), c_int64(array.nbytes))
        for array in arrays
    ]
    yield made
    last = arrays[-1]
    assert last is not None
    harness.device_memory_read(c_void_p(made[-1]), c_void_p(last.ctypes.data), c_int64(last.nbytes))
    for memory in made:
        if memory is not None:
            harness.device_memory_delete(c_void_p(memory))


def _descs(tensors: Sequence[Tensor]) -> Any:
    return (TensorDesc * len(tensors))(*(tensor.desc() for tensor in tensors))


def _dynamic_descs(tensors: Sequence[Tensor]) -> Any:
    descs = (DynamicTensorDesc * len(tensors))()
    for desc, tensor in zip(descs, tensors):
        desc.desc = tensor.desc()
        desc.min = desc.max = desc.opt = Dims.of([abs(extent) for extent in tensor.dims])
    return descs


@functools.cache
def _harness() -> Any:
    on_gpu = os.environ.get(ON_GPU) == "1"
    harness = ctypes.CDLL(str(device_plugin(HEADERS) if on_gpu else host_plugin()))
    for name in ("take_messages", "identity", "timing_id", "metadata"):
        getattr(harness, f"harness_{name}").restype = c_char_p
    for name in ("create", "clone", "attach"):
        getattr(harness, f"harness_{name}").restype = c_void_p
    for name in ("field_names", "serialize"):
        getattr(harness, f"harness_{name}").restype = POINTER(FieldCollection)
    harness.harness_supports.restype = ctypes.c_bool
    harness.harness_set_logger.argtypes = [ctypes.c_bool]
    return harness


def host_plugin() -> Path:
    """The plugin with its kernels, compiled by g++ for this CPU, with the harness in it."""
    if not HEADERS.is_dir():
        raise RuntimeError("NVIDIA's headers are not there: run `python tests/stand_ins/build.py`")
    own = [*sorted(PLUGIN.glob("*.cpp")), EMULATOR / "tensorrt" / "plugin_harness.cpp"]
    emulator = [path for path in sorted(EMULATOR.glob("*.c*")) if path.stem not in ("host_run", "host_plan")]
    flags = ("-isystem", str(HEADERS), '-DMDCONV_KERNEL_ID="host"')
    return library(
        "mdconv_plugin_host",
        [*own, *sorted(PLUGIN.glob("*.cu")), *emulator],
        more_flags=dict.fromkeys(own, flags),
        sanitized=os.environ.get(SANITIZED) == "1",
    )
