"""The shipped kernels on this CPU, from Python; plugin/host/host_run.h is the other side.

``result = run(layer, random_operands(layer, rng), tactic=2, check=True)`` has ``result.y`` and ``result.report``.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu.build import device_library
from tests.native.build import kernel_library
from tests.native.host_report import HostOptions, HostReport, Report, error_name, report_of
from tests.native.layer import ACTIVATIONS, DTYPES, Layer, Operands
from tests.native.layouts import LAYOUTS, pack, padded_channels, unpack

SANITIZED = "MDCONV_SANITIZED"
"""An environment variable: where it is 1, the kernels run that were compiled with the sanitizers."""

ON_GPU = "MDCONV_ON_GPU"
"""An environment variable: where it is 1, the kernels run on this machine's GPU; nothing is counted or checked then."""

_GROUPS = 8
_ALIGNMENT = 256  # of what cudaMalloc returns
_GUARD = 4096
_GUARD_BYTE = 0xA5


class Problem(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("type", "layout", "activation", "batch", "channels", "height", "width")),
        ("stride", c_int32),
        ("groups", c_int32),
        ("kernel_sizes", c_int32 * _GROUPS),
        ("channel_splits", c_int32 * _GROUPS),
        ("x_scale", c_float),
        ("y_scale", c_float),
    )


class _Tensors(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("x", "weight", "bias", "weight_scale", "y"))


class _Plan(ctypes.Structure):
    _fields_ = (
        ("grid", c_uint32 * 3),
        ("block", c_uint32 * 3),
        ("shared_bytes", c_uint64),
        *((name, c_int32) for name in ("rows_per_thread", "tile_planes", "tile_rows", "tile_columns")),
    )


@dataclass(frozen=True)
class Result:
    """`y` (N, C, H', W'); `padding` is what lies in the layout's padding channels, (N, C' - C, H', W')."""

    y: NDArray[Any]
    padding: NDArray[Any]
    report: Report


class LaunchError(RuntimeError):
    """A launch returned an error, or wrote where it must not."""


def run(
    layer: Layer,
    operands: Operands,
    tactic: int = 0,
    *,
    count: bool = False,
    check: bool = False,
    drop_barrier: int = -1,
) -> Result:
    """Run `mdconv::launch` on host memory; tactic 0 is the default one.

    `count` counts traffic, `check` looks for races and accesses outside the tensors, `drop_barrier` is the barrier of
    the kernel (from 0) that does nothing.

    Raises:
        LaunchError: the launch returned an error, or changed an operand or a byte beside Y.
    """
    library = _library()
    problem = problem_of(layer)
    chosen = tactic if tactic else library.mdconv_host_default_tactic(byref(problem))

    def launch(tensors: Any, options: Any, report: Any) -> int:
        return int(library.mdconv_host_launch(byref(problem), tensors, chosen, options, report))

    return _run(launch, layer, operands, HostOptions(count, check, drop_barrier))


def run_unfused(layer: Layer, operands: Operands, *, count: bool = False, check: bool = False) -> Result:
    """Run the layer by the unfused sequence (benchmarks/kernels/unfused.h) instead, in the linear layout."""

    def launch(tensors: Any, options: Any, report: Any) -> int:
        return int(_library().mdconv_host_launch_unfused(byref(problem_of(layer)), tensors, options, report))

    return _run(launch, layer, operands, HostOptions(count, check, -1))


def _run(launch: Callable[[Any, Any, Any], int], layer: Layer, operands: Operands, options: HostOptions) -> Result:
    dtype, layout = DTYPES[layer.dtype], layer.layout
    # What a tensor's padding channels hold is anyone's guess, so they hold what would show.
    filler = 77 if layer.dtype == "int8" else np.nan
    inputs = [pack(operands.x, layout, filler), operands.weight, operands.bias, operands.weight_scale]
    buffers = [None if array is None else _guarded(array.nbytes, array) for array in inputs]
    n, c, h, w = layer.y_shape
    y = _guarded(n * padded_channels(c, layout) * h * w * np.dtype(dtype).itemsize)
    tensors = _Tensors(*(None if buffer is None else buffer.ctypes.data for buffer in (*buffers, y)))
    before = [None if buffer is None else _surroundings(buffer).copy() for buffer in buffers]

    seen = HostReport()
    error = launch(byref(tensors), byref(options), byref(seen))
    report = report_of(seen)
    if error:
        name = error_name(_library(), error)
        raise LaunchError(f"{name} for {layer}: {'; '.join(report.messages) or 'no message'}")
    if any(buffer is not None and (_surroundings(buffer) != was).any() for buffer, was in zip(buffers, before)):
        raise LaunchError(f"{layer}: an input was overwritten")
    edges = _surroundings(y)
    if (edges[:_GUARD] != _GUARD_BYTE).any() or (edges[-_GUARD:] != _GUARD_BYTE).any():
        raise LaunchError(f"{layer}: bytes beside Y were overwritten")
    values, padding = unpack(y.view(dtype), layout, layer.y_shape)
    return Result(values, padding, report)


@dataclass(frozen=True)
class Plan:
    """How a tactic cuts a layer into blocks; `tile` is (channels, rows, columns) of a block's outputs."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    rows_per_thread: int
    tile: tuple[int, int, int]


def plan(layer: Layer, tactic: int) -> Plan:
    """The launch of a tactic. Raises `LaunchError` if there is none."""
    made = _Plan()
    error = _library().mdconv_host_plan(byref(problem_of(layer)), tactic, byref(made))
    if error:
        raise LaunchError(f"{error_name(_library(), error)}: no tactic {tactic} for {layer}")
    tile = (made.tile_planes, made.tile_rows, made.tile_columns)
    return Plan(tuple(made.grid), tuple(made.block), made.shared_bytes, made.rows_per_thread, tile)


def tactic_count(dtype: str, layout: str) -> int:
    return int(_library().mdconv_host_tactic_count(list(DTYPES).index(dtype), LAYOUTS.index(layout)))


def default_tactic(layer: Layer) -> int:
    return int(_library().mdconv_host_default_tactic(byref(problem_of(layer))))


def why_unsupported(problem: Problem) -> str | None:
    """What the kernels say against a problem, of `problem_of`."""
    reason = _library().mdconv_host_why_unsupported(byref(problem))
    return None if reason is None else str(reason.decode())


def problem_of(layer: Layer) -> Problem:
    groups = len(layer.kernel_sizes)
    return Problem(
        list(DTYPES).index(layer.dtype),
        LAYOUTS.index(layer.layout),
        ACTIVATIONS.index(layer.activation),
        layer.batch,
        layer.channels,
        layer.height,
        layer.width,
        layer.stride,
        groups,
        (c_int32 * _GROUPS)(*layer.kernel_sizes),
        (c_int32 * _GROUPS)(*layer.channel_splits),
        layer.x_scale,
        layer.y_scale,
    )


def _guarded(size: int, content: NDArray[Any] | None = None) -> NDArray[np.uint8]:
    """`size` bytes, aligned, in the middle of guard bytes; filled with `content`, else as the guard."""
    whole = np.full(size + 2 * _GUARD + _ALIGNMENT, _GUARD_BYTE, np.uint8)
    start = _GUARD + -(whole.ctypes.data + _GUARD) % _ALIGNMENT
    buffer = whole[start - _GUARD : start + size + _GUARD][_GUARD : _GUARD + size]
    if content is not None:
        buffer[:] = np.frombuffer(content.tobytes(), np.uint8)
    return buffer


def _surroundings(buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A buffer of `_guarded` with its guard bytes."""
    whole = buffer.base
    assert isinstance(whole, np.ndarray)
    start = buffer.ctypes.data - whole.ctypes.data
    return whole[start - _GUARD : start + buffer.size + _GUARD]


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(_library_file()))
    library.mdconv_host_default_tactic.argtypes = [POINTER(Problem)]
    library.mdconv_host_why_unsupported.argtypes = [POINTER(Problem)]
    library.mdconv_host_why_unsupported.restype = c_char_p
    return library


def _library_file() -> Path:
    if os.environ.get(ON_GPU) == "1":
        return device_library()
    return kernel_library(sanitized=os.environ.get(SANITIZED) == "1")
