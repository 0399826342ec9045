"""The ways to run a bundle: one interface, one module a way."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import MachineError, UsageError

log = logging.getLogger(__name__)

CHOICES = ("auto", "tensorrt", "openvino", "onnxruntime")


X86 = ("x86_64", "AMD64")
"""What `platform.machine` says of an x86 processor of 64 bits."""


class Outputs(NamedTuple):
    """What a network returns for N images. The arrays are the caller's own: a later call never changes them."""

    logits: NDArray[np.float32]
    """(N, L) float32, one logit a finding."""
    cam: NDArray[np.float32] | None
    """(N, L, h, w) float32 class activation maps, logit units; None where the network's head is not linear."""
    gpu_ms: float | None
    """Time on the GPU in milliseconds, copies included, measured by events; None where there is no GPU."""


class Backend(Protocol):
    """Runs one bundle. Made, used and closed by one thread."""

    name: str
    facts: dict[str, Any]
    """What a report should say about how inference ran: library versions, device, engine origin, memory, CUDA graph."""

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Run (N, 1, H, W) uint8 images, 1 <= N <= the bundle's batch. Raises `EdgeError`; never a stale result."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_backend(bundle: Bundle, choice: str = "auto", threads: int | None = None) -> Backend:
    """Open `bundle` with the backend `choice`; ``auto`` takes the first of `CHOICES` that works here.

    On a CPU, `threads` (default: the cores that this process may use) compute one image together. OpenVINO is among
    the choices of ``auto`` on x86 only. Raises `MachineError` if the chosen backend cannot run here.
    """
    if choice not in CHOICES:
        raise UsageError(f"backend {choice!r} is none of {', '.join(CHOICES)}")
    if choice != "auto":
        backend = _OPENERS[choice](bundle, threads)
        backend.facts["chosen_because"] = f"--backend {choice}"
        return backend
    passed_over: list[str] = []
    for name in _automatic():
        try:
            backend = _OPENERS[name](bundle, threads)
        except MachineError as error:
            passed_over.append(f"{name} cannot run here ({error})")
            continue
        for text in passed_over:
            log.info("backend %s, because %s", name, text)
        because = "; ".join(passed_over) or "the first that works here"
        backend.facts["chosen_because"] = f"auto: {because}"
        return backend
    raise MachineError(f"no backend works: {'; '.join(passed_over)}")


def _automatic() -> Iterator[str]:
    """The backends that ``auto`` tries, in this order."""
    yield "tensorrt"
    if platform.machine() in X86:  # where it was measured to be the faster one
        yield "openvino"
    yield "onnxruntime"


# Imported where they are opened: each backend brings a library that the others' users may not have.


def _open_tensorrt(bundle: Bundle, threads: int | None) -> Backend:
    from edge.backends.tensorrt import open_tensorrt

    return open_tensorrt(bundle)


def _open_openvino(bundle: Bundle, threads: int | None) -> Backend:
    try:
        from edge.backends.openvino import OpenVinoBackend
    except ImportError as error:
        raise MachineError(f"OpenVINO cannot be loaded ({error}): pip install 'mdconv-edge[openvino]'") from None
    return OpenVinoBackend(bundle, threads)


def _open_onnxruntime(bundle: Bundle, threads: int | None) -> Backend:
    from edge.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads)


_OPENERS: dict[str, Callable[[Bundle, int | None], Backend]] = {
    "tensorrt": _open_tensorrt,
    "openvino": _open_openvino,
    "onnxruntime": _open_onnxruntime,
}
