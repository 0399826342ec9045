"""Runs a bundle's ONNX model in OpenVINO on an x86 processor, whose int8 instructions it uses.

OpenVINO runs the convolutions of a symmetric Q/DQ graph in int8 as TensorRT does; ONNX Runtime needs another form of it
and is slower then, too (docs/figures.md compares them).

Raises `ImportError` where OpenVINO is not installed. Import it from here only: to import it elsewhere reports the use
of this machine to an analytics service.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends import Outputs
from edge.backends.onnxruntime import model_to_run
from edge.bundle import Bundle
from edge.errors import BundleError, MachineError

# OpenVINO reports its import by this library, unless told otherwise by a file in the user's home. Without it, it does
# not: what runs beside a hospital's images talks to nobody who is not in the settings.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402


class OpenVinoBackend:
    """One compiled model and one inference request. Each image runs alone, so a result depends on no other."""

    name = "openvino"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Load `bundle`'s model. `threads` (default: the cores that this process may use) compute one image together.

        Raises `MachineError` where OpenVINO cannot load the model, `BundleError` for a model without logits.
        """
        threads = threads or len(os.sched_getaffinity(0))
        path = model_to_run(bundle)
        size = bundle.input_size
        core = openvino.Core()
        try:
            model = core.read_model(path)
            model.reshape([1, 1, size, size])
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": threads,
                    "NUM_STREAMS": 1,
                    # What is not int8 is float32: on processors with AMX it would else be bfloat16.
                    "INFERENCE_PRECISION_HINT": "f32",
                    # Pinned threads would wait for the cores on which the next images are being decoded.
                    "ENABLE_CPU_PINNING": False,
                },
            )
        except RuntimeError as error:
            raise MachineError(
                f"OpenVINO {openvino.__version__} cannot load {path}: {_reason(error)}: take --backend onnxruntime"
            ) from None
        self._request = compiled.create_infer_request()
        names = {name for output in compiled.outputs for name in output.names}
        self._outputs = [name for name in ("logits", "cam") if name in names]
        if "logits" not in self._outputs:
            raise BundleError(f"{path} has no output named logits: build the bundle anew")
        self.facts: dict[str, Any] = {
            "openvino": openvino.__version__.partition("-")[0],  # without branch and build
            "device": core.get_property("CPU", "FULL_DEVICE_NAME"),
            "threads": threads,
            "model": path.name,
        }

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Run (N, 1, H, W) uint8 images. Raises `MachineError` if the run fails."""
        runs = [self._run(images[i : i + 1]) for i in range(len(images))]
        logits = np.concatenate([run["logits"] for run in runs])
        cam = np.concatenate([run["cam"] for run in runs]) if "cam" in self._outputs else None
        return Outputs(logits, cam, None)

    def _run(self, image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        try:
            found = self._request.infer([image], share_inputs=True)  # reads the image where it is
        except RuntimeError as error:
            raise MachineError(f"OpenVINO failed on an image: {_reason(error)}: run `edge-infer doctor`") from None
        return {name: found[name] for name in self._outputs}

    def close(self) -> None:
        """Free the model; the backend cannot be used afterwards."""
        del self._request

    def __enter__(self) -> OpenVinoBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reason(error: Exception) -> str:
    """The line of an OpenVINO error that says what is wrong: the others name its own source files."""
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip("- ")] or [type(error).__name__]
    return next((line for line in lines if line.startswith("No conversion rule")), lines[-1])
