"""Runs a bundle's engine with TensorRT (10.3 to 11.x) and PyCUDA: the Jetson's way.

One thread opens, uses and closes the backend, since a CUDA context is current to a thread. Everything is allocated
once; an inference copies in, enqueues, and waits for the stream before anybody sees a result.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.backends import Outputs
from edge.backends.cuda_buffers import Buffer, import_pycuda
from edge.backends.cuda_graph import CapturedGraph
from edge.bundle import Bundle
from edge.engine_build_process import import_tensorrt, load_plugin, make_logger
from edge.engine_cache import EngineSource, engine_source, engines, platform_facts
from edge.errors import BundleError, MachineError

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

OLDEST = (10, 3)
INPUT, LOGITS, CAM = "image", "logits", "cam"


def open_tensorrt(bundle: Bundle) -> TensorRTBackend:
    """Open `bundle` on the first CUDA device; where it holds no engine that fits, the engine is built here and kept.

    Raises `MachineError` where TensorRT, PyCUDA or a GPU is missing or fails, `BundleError` for an engine of other
    tensors than the bundle's.
    """
    return TensorRTBackend(bundle)


def probe_platform() -> dict[str, str | None]:
    """This machine's `platform_facts`. Raises `MachineError` where TensorRT, PyCUDA or a GPU is missing."""
    trt, driver = import_tensorrt("tensorrt"), import_pycuda()
    try:
        driver.init()
        return platform_facts(driver, trt)
    except driver.Error as error:
        raise MachineError(f"no CUDA device can be opened ({error}): run `edge-infer doctor`") from None


def _plugin_facts(source: EngineSource) -> dict[str, Any]:
    if source.plugin is not None:
        return {"plugin": {"sha256": source.plugin.sha256, "origin": source.plugin.origin}}
    if source.fallback is not None:
        return {"fallback": f"built from {source.onnx.name}, without the MD-Conv plugin: {source.fallback}"}
    return {}


class TensorRTBackend:
    """An engine with its context, stream and buffers. To be used by the thread that made it, and by no other."""

    name = "tensorrt"

    # Attributes, never local variables: the frames of an error would keep those alive, beyond the CUDA context.
    _runtime: trt.Runtime
    _engine: trt.ICudaEngine
    _context: trt.IExecutionContext
    _stream: Any = None
    _graph: CapturedGraph | None = None

    def __init__(self, bundle: Bundle) -> None:
        trt = import_tensorrt("tensorrt")
        if tuple(int(part) for part in trt.__version__.split(".")[:2]) < OLDEST:
            raise MachineError(f"TensorRT {trt.__version__} is too old, expected 10.3 or later: install JetPack 6.1")
        self._driver = import_pycuda()
        self._thread = threading.get_ident()
        self._batch = bundle.batch
        self._rows = 0
        self._failure: str | None = None
        self._buffers: dict[str, Buffer] = {}
        # Frees in reverse order whatever was made so far, and goes on when one of them fails.
        self._made = ExitStack()
        try:
            with self._cuda_errors("open the GPU"):
                self._open(trt, bundle)
        except BaseException:
            with suppress(self._driver.Error):  # the first error is the one to tell
                self._free()
            raise

    def _open(self, trt: Any, bundle: Bundle) -> None:
        driver = self._driver
        driver.init()
        device = driver.Device(0)
        platform = platform_facts(driver, trt)
        # Not the primary context: PyCUDA leaves that one on the thread's stack, whatever one calls.
        self._cuda_context = device.make_context()
        self._made.callback(self._cuda_context.detach)
        source = engine_source(bundle, lambda library: load_plugin(trt.get_plugin_registry(), library))
        origin = self._load(trt, bundle, platform, source)
        mapped = bool(device.get_attribute(driver.device_attribute.INTEGRATED))
        self._make_buffers(trt, bundle, mapped)
        self._made.callback(self._forget, "_context")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise MachineError("TensorRT made no execution context: free GPU memory, or use a smaller batch")
        self._made.callback(self._forget, "_stream", "_start", "_stop")
        self._stream, self._start, self._stop = driver.Stream(), driver.Event(), driver.Event()
        for name, buffer in self._buffers.items():
            buffer.stream = self._stream
            if not self._context.set_tensor_address(name, buffer.address):
                raise MachineError(f"TensorRT refuses the address of tensor {name}: run `edge-infer doctor`")
        # TensorRT loads kernels on first use, which must not be captured; and what cannot run fails here already.
        self.infer(np.zeros((self._batch, *self._input.host.shape[1:]), np.uint8))
        self.facts: dict[str, Any] = {
            **platform,
            "engine": origin,
            **_plugin_facts(source),
            "memory": "mapped page-locked, no copies" if mapped else "page-locked, asynchronous copies",
            "cuda_graph": self._capture(),
        }

    def _load(self, trt: Any, bundle: Bundle, platform: dict[str, str | None], source: EngineSource) -> str:
        """Deserialize the first engine that TensorRT takes; returns its origin. Raises `MachineError`."""
        logger = make_logger(trt)
        self._made.callback(self._forget, "_engine", "_runtime")
        self._runtime = trt.Runtime(logger)
        with closing(engines(bundle, platform, source)) as candidates:
            for candidate in candidates:
                self._engine = self._runtime.deserialize_cuda_engine(candidate.plan)
                if self._engine is not None:
                    for warning in logger.warnings:
                        log.warning("TensorRT: %s", warning)
                    return candidate.origin
                said = "; ".join(logger.errors[-3:]) or "no reason given"
                log.warning("TensorRT does not take the engine (%s): %s", candidate.origin, said)
        raise MachineError(
            f"TensorRT {platform['tensorrt']} takes no engine of bundle {bundle.name}, not even one built here "
            f"({said}): report this with the bundle"
        )

    def _make_buffers(self, trt: Any, bundle: Bundle, mapped: bool) -> None:
        """Allocate a buffer for each tensor of the engine. Raises `BundleError` if they are not a classifier's."""
        size, labels = bundle.input_size, len(bundle.labels)
        kinds = {trt.DataType.UINT8: np.uint8, trt.DataType.FLOAT: np.float32}
        wanted = {INPUT: (trt.DataType.UINT8, (1, size, size)), LOGITS: (trt.DataType.FLOAT, (labels,))}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shape, kind = tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name)
            if name == CAM:
                wanted[CAM] = (trt.DataType.FLOAT, (labels, *shape[2:]))
            if wanted.get(name) != (kind, shape[1:]) or shape[0] not in (-1, self._batch):
                raise BundleError(
                    f"the engine of bundle {bundle.name} has a tensor {name} {kind.name} {shape}, expected "
                    f"{wanted.get(name, 'none of that name')} in batches of {self._batch}: build the bundle anew"
                )
            self._dynamic = shape[0] == -1 and self._batch > 1
            self._buffers[name] = Buffer(self._driver, (self._batch, *shape[1:]), kinds[kind], mapped=mapped)
            self._made.callback(self._buffers[name].free)
        missing = wanted.keys() - self._buffers.keys()
        if missing:
            raise BundleError(
                f"the engine of bundle {bundle.name} has no tensor {missing.pop()}: build the bundle anew"
            )
        self._input = self._buffers[INPUT]

    def _capture(self) -> str:
        """Capture the inference as a CUDA graph; returns what a report should say about it."""
        if self._dynamic:
            return "not used: the number of images varies"
        try:
            self._graph = CapturedGraph(self._stream.handle, lambda: self._enqueue(self._batch))
        except (MachineError, self._driver.Error) as error:
            log.info("no CUDA graph: %s", error)
            return f"not used: {error}"
        self._made.callback(self._graph.free)
        return "used"

    def _enqueue(self, rows: int) -> None:
        """Put one inference of the first `rows` images into the stream: copy, kernels, copies."""
        if rows != self._rows:
            if not self._context.set_input_shape(INPUT, (rows, *self._input.host.shape[1:])):
                raise MachineError(f"TensorRT refuses a batch of {rows}: rebuild the bundle with --batch {rows}")
            self._rows = rows
        self._input.to_device(rows)
        if not self._context.execute_async_v3(self._stream.handle):
            raise MachineError("TensorRT failed to enqueue an inference: run `edge-infer doctor`")
        for name, buffer in self._buffers.items():
            if name != INPUT:
                buffer.to_host(rows)

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Run (N, 1, H, W) uint8 images, 1 <= N <= batch. Raises `MachineError` if anything fails, and from then on."""
        self._check_thread()
        if self._failure is not None:
            raise MachineError(f"an earlier inference failed ({self._failure}): open the bundle anew")
        count = len(images)
        if not 1 <= count <= self._batch or images.shape[1:] != self._input.host.shape[1:] or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {images.shape}, expected uint8 {self._input.host.shape} at most"
            )
        try:
            with self._cuda_errors("run an inference"):
                milliseconds = self._run(images)
        except BaseException as error:
            self._failure = str(error) or type(error).__name__
            raise
        found = {name: buffer.host[:count].copy() for name, buffer in self._buffers.items() if name != INPUT}
        return Outputs(found[LOGITS], found.get(CAM), milliseconds)

    def _run(self, images: NDArray[np.uint8]) -> float:
        """Copy in, enqueue, wait; returns the milliseconds on the GPU."""
        self._input.host[: len(images)] = images
        self._start.record(self._stream)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue(len(images) if self._dynamic else self._batch)
        self._stop.record(self._stream)
        self._stream.synchronize()
        return float(self._stop.time_since(self._start))

    def close(self) -> None:
        """Wait for what runs, free everything in reverse order, leave the context. A second call does nothing."""
        self._check_thread()
        with self._cuda_errors("free the GPU"):
            self._free()

    def _free(self) -> None:
        if self._stream is not None:
            # After a failure work may still be under way in the buffers; a dead context answers with an error.
            with suppress(self._driver.Error):
                self._stream.synchronize()
        self._made.close()

    def _forget(self, *names: str) -> None:
        """Drop our reference: TensorRT's and PyCUDA's objects free themselves with the last one."""
        for name in names:
            setattr(self, name, None)

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("a TensorRT backend belongs to the thread that opened it: open one there")

    @contextmanager
    def _cuda_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise MachineError(
                f"CUDA cannot {doing} ({' '.join(str(error).split())}): run `edge-infer doctor`"
            ) from None

    def __enter__(self) -> TensorRTBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
