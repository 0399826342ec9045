"""The ways to run a bundle: one interface, one module a way."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import MachineError, UsageError

log = logging.getLogger(__name__)

CHOICES = ("auto", "tensorrt", "onnxruntime")


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


def open_backend(bundle: Bundle, choice: str = "auto") -> Backend:
    """Open `bundle` with the backend `choice`; ``auto`` takes TensorRT if it works here, else ONNX Runtime.

    Raises `MachineError` if the chosen backend cannot run here.
    """
    if choice not in CHOICES:
        raise UsageError(f"backend {choice!r} is none of {', '.join(CHOICES)}")
    # Imported here: each backend brings a library that the others' users may not have.
    reason = f"--backend {choice}"
    if choice in ("auto", "tensorrt"):
        from edge.backends.tensorrt import open_tensorrt

        try:
            backend = open_tensorrt(bundle)
            backend.facts["chosen_because"] = reason if choice == "tensorrt" else "auto: the first that works here"
            return backend
        except MachineError as error:
            if choice == "tensorrt":
                raise
            reason = f"auto: TensorRT cannot run here ({error})"
            log.info("backend onnxruntime, because TensorRT cannot run here: %s", error)
    from edge.backends.onnxruntime import OnnxRuntimeBackend

    fallback = OnnxRuntimeBackend(bundle)
    fallback.facts["chosen_because"] = reason
    return fallback
