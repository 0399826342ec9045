"""Networks on their way into NVIDIA's builder, which TensorRT-RTX brings and which needs no GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from build_engine.export import to_onnx
from build_engine.weights import random_weights
from edge.engine_from_onnx import build_engine
from mdconv.data.phantom import render
from mdconv.networks import stages

SIZE = 64

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (it has wheels for x86-64 only)",
)


class Phantoms:
    """A few, to calibrate on."""

    digest = "0" * 64

    def __init__(self, count: int = 6, size: int = SIZE) -> None:
        self.count = count
        self.size = size

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for seed in range(self.count):
            yield render(seed, self.size).image[None, None]


def portable(name: str, md_stages: tuple[str, ...], batch: int = 1, size: int = SIZE) -> onnx.ModelProto:
    """The network with random weights, in float32."""
    config = {"md_stages": md_stages} if stages(name) else {}
    return to_onnx(random_weights(name, config), batch, size)


def taken_by_tensorrt(
    model: onnx.ModelProto, directory: Path, batch: int = 1, plugin: Path | None = None
) -> list[dict[str, Any]]:
    """The layers of the engine that NVIDIA's parser and builder make of the model; raises what they say otherwise."""
    onnx.save(model, directory / "model.onnx")
    facts = build_engine(
        directory / "model.onnx",
        directory / "model.engine",
        target="tensorrt-rtx",
        batch=batch,
        plugin=plugin,
        compute_capabilities=["86"],
    )
    assert (directory / "model.engine").stat().st_size > 10_000
    return list(facts["layers"])


def convolutions(layers: list[dict[str, Any]]) -> list[str]:
    """The types that the engine's convolutions read."""
    return [layer["Inputs"][0]["Datatype"] for layer in layers if layer["LayerType"] == "correlation"]
