"""What tests of every package share: a small bundle that takes no training to make."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from build_engine.bundle_writer import write_manifest
from edge.bundle import GOLDEN, PORTABLE_MODEL, Bundle, load_bundle
from edge.labels import CHESTXRAY14
from edge.preprocess import Preprocess
from tests.once import made_once

NOTICE = "random weights, for tests only"


def tiny_network(size: int, seed: int = 5) -> onnx.ModelProto:
    """uint8 (N, 1, S, S) -> cast, convolution, ReLU, 1x1 convolution = cam, mean + bias = logits; seeded."""
    rng = np.random.default_rng(seed)
    labels = len(CHESTXRAY14)
    constants = {
        "offset": np.float32(124.0),
        "scale": np.float32(1 / 58.0),
        "W1": rng.normal(0, 0.4, (8, 1, 5, 5)).astype(np.float32),
        "W2": rng.normal(0, 0.8, (labels, 8, 1, 1)).astype(np.float32),
        "bias": rng.normal(0, 0.5, labels).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["x0"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["x0", "offset"], ["x1"]),
        helper.make_node("Mul", ["x1", "scale"], ["x2"]),
        helper.make_node("Conv", ["x2", "W1"], ["x3"], strides=[4, 4], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["x3"], ["x4"]),
        helper.make_node("Conv", ["x4", "W2"], ["cam"]),
        helper.make_node("ReduceMean", ["cam"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["mean", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 1, size, size])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", labels]),
            helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", labels, size // 4, size // 4]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_tiny_bundle(directory: Path, *, size: int = 64, batch: int = 4, **changes: Any) -> Path:
    """Write a float32 bundle of `tiny_network` into `directory`; `changes` replace entries of the manifest."""
    directory.mkdir(parents=True)
    onnx.save(tiny_network(size), directory / PORTABLE_MODEL)
    images = np.random.default_rng(7).integers(0, 256, (5, 1, size, size), dtype=np.uint8)
    session = onnxruntime.InferenceSession(directory / PORTABLE_MODEL, providers=["CPUExecutionProvider"])
    logits, cam = session.run(["logits", "cam"], {"image": images})
    np.savez_compressed(directory / GOLDEN, images=images, logits=logits, cam=cam)
    facts = {
        "name": "tiny",
        "model": {
            "network": "tiny",
            "input_size": size,
            "batch": batch,
            "labels": list(CHESTXRAY14),
            "thresholds": dict.fromkeys(CHESTXRAY14, 0.5),
            "notice": NOTICE,
        },
        "preprocess": Preprocess(size).to_manifest(),
        "precision": "fp32",
        "lowering": {"kind": "padded"},
        "backend": "onnxruntime",
        "platform": {},
        "calibration": {},
        "golden": {"max_probability_difference": 1e-4, "mean_probability_difference": 1e-4},
        "gate": {"verdict": "not assessed"},
    }
    write_manifest(directory, {**facts, **changes})
    return directory


@pytest.fixture(scope="session", autouse=True)
def interrupts_reach_commands() -> None:
    """A shell that starts the tests in the background ignores SIGINT for them, and so for all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_level_is_restored() -> Iterator[None]:
    """A command that runs within the test's process sets the log's level for the whole of it."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes small float32 bundles: ``make_bundle(name, size=64, batch=4, <manifest entry>=...)``."""

    def make(name: str = "tiny", **changes: Any) -> Path:
        return write_tiny_bundle(tmp_path / "bundles" / name, **changes)

    return make


@pytest.fixture(scope="session")
def tiny_bundle_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "tiny_bundle", write_tiny_bundle)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_directory: Path) -> Bundle:
    """A small bundle, shared by the whole session: do not change its files."""
    return load_bundle(tiny_bundle_directory)
