"""Runs a bundle's ONNX model in ONNX Runtime on the CPU, of any make."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends import Outputs
from edge.bundle import Bundle
from edge.errors import BundleError, MachineError


def model_to_run(bundle: Bundle) -> Path:
    """The file of the bundle's lowering; the one with `MDConv` as a function where that needs the TensorRT plugin.

    Raises `BundleError` if the manifest names a file that it does not list.
    """
    lowering = bundle.manifest["lowering"]
    name = lowering.get("builder_model", bundle.model_path.name)
    if lowering.get("kind") == "plugin":
        return bundle.model_path
    path = bundle.path(name)
    if path is None:
        raise BundleError(
            f"{bundle.directory}: lowering names {name}, which files does not list: copy the bundle again"
        )
    return path


REWRITES = ("WeightBiasQuantization",)
"""Optimizations of ONNX Runtime that change what a Q/DQ graph computes: this one rounds the bias of a convolution that
reads and writes int8 (microsoft/onnxruntime#22969, #25673), where the graph and TensorRT add it in float32."""


def open_session(model: Path | bytes, threads: int) -> Any:
    """An ``onnxruntime.InferenceSession`` of `model` on the CPU, `threads` (0: all there are) computing one image.

    Raises `MachineError` where ONNX Runtime is not installed, `BundleError` for a model that it cannot load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError(f"ONNX Runtime cannot be loaded ({error}): pip install 'mdconv-edge[onnxruntime]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the cores from the threads that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On x86 without VNNI, sums of int8 products would else saturate at 16 bits (microsoft/onnxruntime#12088).
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(REWRITES)
        )
    except Exception as error:  # the library's exceptions share no base class
        what = model if isinstance(model, Path) else "a model"
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {what}: {_first_line(error)}: "
            "build the bundle anew, or install the ONNX Runtime that it was built with"
        ) from None


class OnnxRuntimeBackend:
    """One inference session. Each image runs alone, so a result never depends on what else was waiting."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Load `bundle`'s model. `threads` (default: the cores that this process may use) compute one image together.

        Raises `MachineError` where ONNX Runtime is not installed, `BundleError` for a model that it cannot load.
        """
        threads = threads or len(os.sched_getaffinity(0))
        model = model_to_run(bundle)
        self._session = open_session(model, threads)
        import onnxruntime

        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs() if output.name in ("logits", "cam")]
        if "logits" not in self._outputs:
            raise BundleError(f"{model} has no output named logits: build the bundle anew")
        self.facts: dict[str, Any] = {
            "onnxruntime": onnxruntime.__version__,
            "provider": "CPUExecutionProvider",
            "threads": threads,
            "model": model.name,
        }

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Run (N, 1, H, W) uint8 images. Raises `MachineError` if the run fails."""
        runs = [self._run(images[i : i + 1]) for i in range(len(images))]
        logits = np.concatenate([run["logits"] for run in runs])
        cam = np.concatenate([run["cam"] for run in runs]) if "cam" in self._outputs else None
        return Outputs(logits, cam, None)

    def _run(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, {self._input: image}), strict=True))
        except Exception as error:  # as above
            raise MachineError(
                f"ONNX Runtime failed on an image: {_first_line(error)}: run `edge-infer doctor`"
            ) from None

    def close(self) -> None:
        """Free the session; the backend cannot be used afterwards."""
        del self._session

    def __enter__(self) -> OnnxRuntimeBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
