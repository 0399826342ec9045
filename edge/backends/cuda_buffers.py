"""Memory that host and GPU exchange tensors through, allocated once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge.errors import MachineError


def import_pycuda() -> Any:
    """``pycuda.driver``, not initialised. Raises `MachineError` that says how to install it."""
    try:
        import pycuda.driver
    except (ImportError, OSError) as error:
        raise MachineError(f"PyCUDA does not import ({error}): on a Jetson `pip install pycuda`") from None
    return pycuda.driver


class Buffer:
    """A page-locked host array and the device memory that belongs to it.

    Where the GPU shares the host's memory (`mapped`, on a Jetson) both are the same memory and nothing is copied.
    Elsewhere `to_device` and `to_host` enqueue a copy. Either way what the host reads is the result, and what it writes
    harms nothing under way, only once the stream has been synchronized.
    """

    stream: Any = None
    """The PyCUDA stream of the copies, to be set before the first."""

    def __init__(self, driver: Any, shape: tuple[int, ...], dtype: DTypeLike, *, mapped: bool) -> None:
        """Allocate in the current context; `driver` is pycuda.driver, whose errors are raised."""
        self._driver = driver
        flags = driver.host_alloc_flags.DEVICEMAP if mapped else 0
        self.host: NDArray[Any] = driver.pagelocked_empty(shape, dtype, mem_flags=flags)
        self._allocation = self.host.base
        self._device: Any = None
        if mapped:
            self.address = int(self._allocation.get_device_pointer())
            return
        try:
            self._device = driver.mem_alloc(math.prod(shape) * np.dtype(dtype).itemsize)
        except BaseException:
            self.free()
            raise
        self.address = int(self._device)

    def to_device(self, count: int) -> None:
        """Enqueue the copy of the first `count` items to the device."""
        if self._device is not None:
            self._driver.memcpy_htod_async(self._device, self.host[:count], self.stream)

    def to_host(self, count: int) -> None:
        """Enqueue the copy of the first `count` items to the host."""
        if self._device is not None:
            self._driver.memcpy_dtoh_async(self.host[:count], self._device, self.stream)

    def free(self) -> None:
        """Free both and forget the stream; nothing that was enqueued may still use them."""
        self.stream = None
        if self._device is not None:
            self._device.free()
            self._device = None
        self.host = np.empty(0, self.host.dtype)
        self._allocation.free()
