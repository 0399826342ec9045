"""A trained network in any of its forms - checkpoint, ONNX file, bundle - behind one interface.

What is measured or explained is so the same code's doing, whatever runs the network.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.backends import Backend, open_backend
from edge.backends.onnxruntime import open_session
from edge.bundle import load_bundle, sha256_of
from edge.errors import UsageError
from mdconv.checkpoint import load_checkpoint
from mdconv.networks import log_odds, normalise

PIXELS = 448**2
"""That PyTorch takes at a time: of large images a batch costs several times what they cost one by one (fresh memory for
each layer), of small ones one by one costs more."""


class Prediction(NamedTuple):
    """What a network says of N images."""

    logits: NDArray[np.float32]
    """(N, L): their sigmoid is each label's probability."""
    cam: NDArray[np.float32] | None
    """(N, L, h, w) class activation maps: their mean over positions is the logit less its bias. None where the head is
    not linear."""


class Predictor(Protocol):
    """A network that can be asked. A context manager: what it holds is freed at the end."""

    labels: tuple[str, ...]
    input_size: int
    """Height and width of the images that it takes, pixels."""
    thresholds: dict[str, float]
    """Probability from which a label counts as positive."""
    notice: str
    """What must be said wherever an output is shown."""
    identity: dict[str, Any]
    """kind ("checkpoint", "onnx" or "bundle"), file, sha256, precision, network (where known)."""

    def predict(self, images: NDArray[np.uint8]) -> Prediction:
        """Run (N, 1, S, S) uint8 images."""
        ...

    def __enter__(self) -> Predictor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_predictor(path: Path, backend: str = "auto") -> Predictor:
    """The network in `path`: a checkpoint (.safetensors), an ONNX file of ours (.onnx), or a bundle's folder.

    `backend` is for bundles, as `edge.backends.open_backend` has it. Raises `UsageError` for anything else, and what
    loading it raises.
    """
    if path.is_dir():
        return _BundlePredictor(path, backend)
    if not path.is_file():
        raise UsageError(f"no model at {path}: name a checkpoint (.safetensors), an ONNX file or a bundle's folder")
    if path.suffix == ".safetensors":
        return _CheckpointPredictor(path)
    if path.suffix == ".onnx":
        return _OnnxPredictor(path)
    raise UsageError(f"{path} is no model: name a checkpoint (.safetensors), an ONNX file (.onnx) or a bundle's folder")


class _Closing:
    """Nothing to free."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what is held."""


class _CheckpointPredictor(_Closing):
    def __init__(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        self._network: Any = checkpoint.model
        self._channels = checkpoint.config.get("in_channels", 3)
        self._exclusive = checkpoint.exclusive
        self.labels, self.input_size = checkpoint.labels, checkpoint.input_size
        self.thresholds, self.notice = checkpoint.thresholds, checkpoint.notice
        self.identity = {
            "kind": "checkpoint",
            "file": path.name,
            "sha256": checkpoint.sha256,
            "precision": "fp32",
            "network": checkpoint.network,
        }

    def predict(self, images: NDArray[np.uint8]) -> Prediction:
        step = max(1, PIXELS // self.input_size**2)
        runs = [self._run(images[i : i + step]) for i in range(0, len(images), step)]
        return _joined([run.logits for run in runs], [run.cam for run in runs])

    @torch.inference_mode()
    def _run(self, images: NDArray[np.uint8]) -> Prediction:
        network = self._network
        features = network.features(normalise(torch.from_numpy(np.array(images)), self._channels))
        outputs = network.classifier(features.mean(dim=(2, 3)))
        logits = log_odds(outputs, self._exclusive).numpy()
        if not isinstance(network.classifier, nn.Linear) or (self._exclusive and len(self.labels) != 2):
            return Prediction(logits, None)
        weight = network.classifier.weight
        if self._exclusive:
            weight = weight - weight.flip(0)  # the log-odds of two labels are the difference of their outputs
        return Prediction(logits, torch.einsum("nchw,lc->nlhw", features, weight).numpy())


class _OnnxPredictor(_Closing):
    def __init__(self, path: Path) -> None:
        self._session = open_session(path, len(os.sched_getaffinity(0)))
        facts = self._session.get_modelmeta().custom_metadata_map
        if "labels" not in facts:
            raise UsageError(f"{path} does not name its labels: export it by `python -m build_engine.export`")
        self._outputs = [out.name for out in self._session.get_outputs() if out.name in ("logits", "cam")]
        source = self._session.get_inputs()[0]
        self._input, self.input_size = source.name, int(source.shape[2])
        self.labels = tuple(facts["labels"].split(","))
        self.thresholds = json.loads(facts.get("thresholds", "{}")) or dict.fromkeys(self.labels, 0.5)
        self.notice = facts.get("notice", "")
        self.identity = {"kind": "onnx", "file": path.name, "sha256": sha256_of(path), "precision": _precision(path)}
        if "network" in facts:
            self.identity["network"] = facts["network"]

    def predict(self, images: NDArray[np.uint8]) -> Prediction:
        runs = [self._session.run(self._outputs, {self._input: images[i : i + 1]}) for i in range(len(images))]
        found = {name: np.concatenate(parts) for name, parts in zip(self._outputs, zip(*runs))}
        return Prediction(found["logits"], found.get("cam"))


class _BundlePredictor(_Closing):
    def __init__(self, path: Path, backend: str) -> None:
        bundle = load_bundle(path)
        self._backend: Backend = open_backend(bundle, backend)
        self._batch = bundle.batch
        self.labels, self.input_size = bundle.labels, bundle.input_size
        self.thresholds, self.notice = bundle.thresholds, bundle.notice
        self.identity = {
            "kind": "bundle",
            "file": path.name,
            "sha256": bundle.sha256,
            "precision": bundle.precision,
            "network": bundle.manifest["model"]["network"],
            "backend": self._backend.name,
        }

    def predict(self, images: NDArray[np.uint8]) -> Prediction:
        runs = [self._backend.infer(images[i : i + self._batch]) for i in range(0, len(images), self._batch)]
        return _joined([run.logits for run in runs], [run.cam for run in runs])

    def close(self) -> None:
        self._backend.close()


def _joined(logits: list[NDArray[np.float32]], cams: list[NDArray[np.float32] | None]) -> Prediction:
    maps = [cam for cam in cams if cam is not None]
    return Prediction(np.concatenate(logits), np.concatenate(maps) if len(maps) == len(cams) else None)


def _precision(path: Path) -> str:
    """What the file computes in, as a bundle's manifest would say."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return "fp16" if half else "fp32"
