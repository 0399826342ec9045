"""A captured CUDA graph: one launch instead of one for each kernel. PyCUDA has none, NVIDIA's cuda-bindings have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge.errors import MachineError


class CapturedGraph:
    """What `enqueue` puts into a stream, captured once, to be launched in that stream. The context must be current."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture in the stream of handle `stream`, which stays usable if that fails. Raises `MachineError`."""
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise MachineError(f"cuda-bindings does not import ({error}): pip install cuda-bindings") from None
        self._driver = driver
        self._stream = driver.CUstream(stream)
        self._call(
            driver.cuStreamBeginCapture,
            self._stream,
            driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        )
        try:
            enqueue()
        except BaseException:
            driver.cuStreamEndCapture(self._stream)  # whatever it answers: this ends the capture
            raise
        self._graph = self._call(driver.cuStreamEndCapture, self._stream)
        try:
            self._executable = self._call(driver.cuGraphInstantiate, self._graph, 0)
        except MachineError:
            driver.cuGraphDestroy(self._graph)
            raise

    def launch(self) -> None:
        """Enqueue the whole graph. Raises `MachineError`."""
        self._call(self._driver.cuGraphLaunch, self._executable, self._stream)

    def free(self) -> None:
        self._call(self._driver.cuGraphExecDestroy, self._executable)
        self._call(self._driver.cuGraphDestroy, self._graph)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise MachineError(f"{function.__name__} failed with {status.name}: run `edge-infer doctor`")
        return results[0] if results else None
