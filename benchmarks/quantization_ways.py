"""Ways from one float32 model to an int8 one, all on the same calibration images: ours, ModelOpt's, ONNX Runtime's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.hard_case import quantized_as
from benchmarks.modelopt_environment import last_line, prepare
from build_engine.lowering import lower
from build_engine.make import parse
from calibration.observers import METHODS
from calibration.quantize import Images
from edge.errors import MachineError

FOR_TENSORRT: Mapping[str, Any] = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "Add", "Clip"],
}
"""`extra_options` of ONNX Runtime's `quantize_static` for what TensorRT takes: no zero point, no int32 bias."""

DEFAULT_METHOD = parse([]).calibration_method


@dataclass(frozen=True)
class Source:
    """What is quantized, and on what."""

    portable: onnx.ModelProto
    """Float32, MD-Conv as one node: what ours takes."""
    padded: Path
    """The same function in standard ONNX, in a folder of its own: what the others take."""
    images: Images
    pixels: NDArray[np.uint8]
    """(N, 1, S, S), the same `images`."""
    environment: Path
    """Where ModelOpt lives, or will."""


Way = Callable[[Source, Path], float]
"""Writes the int8 model, in standard ONNX, to a path. Returns the seconds of processor time that it took, decoding of
images included but not the start of a process. Raises `MachineError` where it cannot run here."""


def _ours(method: str) -> Way:
    def run(source: Source, output: Path) -> float:
        started = time.process_time()
        quantized = quantized_as(("--calibration-method", method), source.portable, source.images)
        onnx.save(lower(quantized, "padded"), output)
        return time.process_time() - started

    return run


def _onnxruntime(method: str, for_tensorrt: bool = True) -> Way:
    def run(source: Source, output: Path) -> float:
        # Here, since it takes a second to import.
        from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

        options: dict[str, Any] = {}
        if for_tensorrt:
            options = {"per_channel": True, "activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
            # It keeps all activations of a stretch of images at once, a gigabyte for ten; a histogram takes one by one.
            stretch = {} if method == "MinMax" else {"CalibStridedMinMax": 1}
            options["extra_options"] = {**FOR_TENSORRT, **stretch}
        started = time.process_time()
        reader = _reader(source.pixels)
        with redirect_stdout(sys.stderr):  # it says a line an image
            quantize_static(source.padded, output, reader, calibrate_method=CalibrationMethod[method], **options)
        return time.process_time() - started

    return run


def _reader(pixels: NDArray[np.uint8]) -> Any:
    """The images one by one, as ONNX Runtime's calibration reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.set_range(0, len(pixels))

        def __len__(self) -> int:
            return len(pixels)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(pixels[start_index:end_index])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image[None]}

    return Reader()


def _modelopt(method: str) -> Way:
    def run(source: Source, output: Path) -> float:
        python = prepare(source.environment)
        pixels = output.with_suffix(".calibration.npy")
        np.save(pixels, source.pixels)
        script = Path(__file__).with_name("quantization_modelopt.py")
        # -I: of this environment's variables and folders nothing reaches the other one.
        command = [python, "-I", script, source.padded, pixels, output, "--method", method]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            raise MachineError(f"ModelOpt ended with status {done.returncode}: {last_line(done.stderr)}")
        return float(json.loads(done.stdout.splitlines()[-1])["seconds"])

    return run


OURS: Mapping[str, Way] = {method: _ours(method) for method in sorted(METHODS, key=lambda name: name != DEFAULT_METHOD)}
"""By the name of the calibration method, the default of make.py first; everything else is its default."""

PEERS: Mapping[str, Way] = {
    "modelopt-entropy": _modelopt("entropy"),
    "modelopt-max": _modelopt("max"),
    "onnxruntime-minmax": _onnxruntime("MinMax"),
    "onnxruntime-entropy": _onnxruntime("Entropy"),
    "onnxruntime-percentile": _onnxruntime("Percentile"),
    "onnxruntime-plain": _onnxruntime("MinMax", for_tensorrt=False),
}

TITLES: Mapping[str, str] = {
    **{method: f"ours, {method}" for method in OURS},
    DEFAULT_METHOD: f"**ours, {DEFAULT_METHOD}: the default of make.py**",
    "modelopt-entropy": "ModelOpt, entropy (its default)",
    "modelopt-max": "ModelOpt, max",
    "onnxruntime-minmax": "ONNX Runtime for TensorRT, MinMax (its default)",
    "onnxruntime-entropy": "ONNX Runtime for TensorRT, Entropy",
    "onnxruntime-percentile": "ONNX Runtime for TensorRT, Percentile",
    "onnxruntime-plain": "ONNX Runtime, plain `quantize_static`",
}
