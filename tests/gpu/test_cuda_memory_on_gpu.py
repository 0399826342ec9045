"""The TensorRT backend's own driver calls (PyCUDA, cuda-bindings) on a real GPU. Skipped, never passed, without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge.backends.cuda_buffers import Buffer, import_pycuda
from edge.backends.cuda_graph import CapturedGraph
from edge.errors import MachineError


@pytest.fixture
def driver() -> Iterator[Any]:
    try:
        pycuda = import_pycuda()
    except MachineError as error:
        pytest.skip(f"needs a GPU with PyCUDA: {error}")
    try:
        pycuda.init()
    except pycuda.Error as error:
        pytest.skip(f"needs a GPU: {error}")
    context = pycuda.Device(0).make_context()
    yield pycuda
    context.detach()


@pytest.mark.parametrize("shape", [(1, 1, 448, 448), (3, 14), (5, 7, 11, 13)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("mapped", [False, True])
def test_what_the_device_was_given_comes_back(driver: Any, shape: tuple[int, ...], dtype: Any, mapped: bool) -> None:
    stream = driver.Stream()
    source, target = (Buffer(driver, shape, dtype, mapped=mapped) for _ in range(2))
    for buffer in (source, target):
        buffer.stream = stream
    rng = np.random.default_rng(8)
    for _ in range(3):
        source.host[:] = values = rng.integers(0, 255, shape).astype(dtype)
        target.host[:] = 0
        source.to_device(shape[0])
        driver.memcpy_dtod_async(target.address, source.address, values.nbytes, stream)
        target.to_host(shape[0])
        stream.synchronize()
        np.testing.assert_array_equal(target.host, values)
    for buffer in (source, target):
        buffer.free()


def test_only_the_rows_asked_for_travel(driver: Any) -> None:
    buffer = Buffer(driver, (4, 6), np.float32, mapped=False)
    buffer.stream = stream = driver.Stream()
    buffer.host[:] = 1
    buffer.to_device(4)
    buffer.host[:] = 2
    buffer.to_device(2)
    buffer.host[:] = 3
    buffer.to_host(3)
    stream.synchronize()
    assert buffer.host[:, 0].tolist() == [2, 2, 1, 3]
    buffer.free()


def test_a_captured_graph_does_it_again_with_what_the_host_holds_then(driver: Any) -> None:
    shape = (2, 1, 61, 47)
    source, target = (Buffer(driver, shape, np.uint8, mapped=False) for _ in range(2))
    source.stream = target.stream = stream = driver.Stream()

    def enqueue() -> None:
        source.to_device(2)
        driver.memcpy_dtod_async(target.address, source.address, source.host.nbytes, stream)
        target.to_host(2)

    graph = CapturedGraph(stream.handle, enqueue)
    rng = np.random.default_rng(9)
    for _ in range(5):
        source.host[:] = values = rng.integers(0, 255, shape, dtype=np.uint8)
        graph.launch()
        stream.synchronize()
        np.testing.assert_array_equal(target.host, values)
    graph.free()
    for buffer in (source, target):
        buffer.free()


def test_a_capture_that_fails_leaves_the_stream_usable(driver: Any) -> None:
    buffer = Buffer(driver, (1, 9), np.uint8, mapped=False)
    buffer.stream = stream = driver.Stream()

    def refuse() -> None:
        buffer.to_device(1)
        raise MachineError("no")

    with pytest.raises(MachineError, match="no"):
        CapturedGraph(stream.handle, refuse)
    buffer.host[:] = 5
    buffer.to_device(1)
    buffer.host[:] = 0
    buffer.to_host(1)
    stream.synchronize()
    assert (buffer.host == 5).all()
    buffer.free()
