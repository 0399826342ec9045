"""Maps of where the evidence for a finding lies, from any model: class activation maps, or Grad-CAM of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edge.errors import UsageError
from mdconv.checkpoint import load_checkpoint
from mdconv.grad_cam import grad_cam
from mdconv.networks import normalise
from mdconv.predictors import open_predictor

METHODS = ("cam", "grad-cam")


class Evidence(NamedTuple):
    """What a network says of one image, and why."""

    probabilities: dict[str, float]
    """Of each label."""
    maps: dict[str, NDArray[np.float32]]
    """(h, w) of each finding that was asked for, positive where the evidence speaks for it."""


class Explainer(Protocol):
    """A network that can be asked for its evidence. A context manager: what it holds is freed at the end."""

    labels: tuple[str, ...]
    input_size: int
    """Height and width of the images that it takes, pixels."""
    notice: str
    """What must be said wherever an output is shown."""
    identity: dict[str, Any]
    """As a predictor's, and ``method``; for Grad-CAM also ``layer``, None for the last feature map."""

    def explain(self, image: NDArray[np.uint8], findings: Sequence[str] | None) -> Evidence:
        """The evidence for `findings` (of `labels`), or if they are None for the likeliest one, in an (S, S) image."""
        ...

    def __enter__(self) -> Explainer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_explainer(path: Path, method: str = "cam", layer: str | None = None) -> Explainer:
    """The model in `path` (as `mdconv.predictors.open_predictor` reads it), explained by one of `METHODS`.

    Raises `UsageError` for Grad-CAM of something else than a checkpoint, a layer without Grad-CAM, and what loading
    raises. That a model has no class activation maps shows, as `UsageError`, when it is asked.
    """
    if method == "grad-cam":
        return _GradCamExplainer(path, layer)
    if layer is not None:
        raise UsageError(f"layer {layer!r}: class activation maps are the last layer's; add --method grad-cam")
    return _CamExplainer(path)


class _CamExplainer:
    def __init__(self, path: Path) -> None:
        self._predictor = open_predictor(path)
        self.labels, self.input_size = self._predictor.labels, self._predictor.input_size
        self.notice = self._predictor.notice
        self.identity = {**self._predictor.identity, "method": "cam"}

    def explain(self, image: NDArray[np.uint8], findings: Sequence[str] | None) -> Evidence:
        prediction = self._predictor.predict(image[np.newaxis, np.newaxis])
        if prediction.cam is None:
            raise UsageError(
                f"{self.identity['file']} has no class activation maps, its head is not linear: "
                "use --method grad-cam on the checkpoint (.safetensors) that it was made from"
            )
        if findings is None:
            findings = [self.labels[int(prediction.logits[0].argmax())]]
        return Evidence(
            _probabilities(self.labels, prediction.logits[0]),
            {finding: prediction.cam[0, self.labels.index(finding)] for finding in findings},
        )

    def __enter__(self) -> _CamExplainer:
        self._predictor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._predictor.__exit__(kind, error, trace)


class _GradCamExplainer:
    def __init__(self, path: Path, layer: str | None) -> None:
        if path.suffix != ".safetensors":
            raise UsageError(
                f"{path}: Grad-CAM needs gradients, so a checkpoint (.safetensors): name the one that this model was "
                "made from, or use --method cam"
            )
        self._checkpoint = load_checkpoint(path)
        self._layer = layer
        self.labels, self.input_size = self._checkpoint.labels, self._checkpoint.input_size
        self.notice = self._checkpoint.notice
        self.identity = {
            "kind": "checkpoint",
            "file": path.name,
            "sha256": self._checkpoint.sha256,
            "precision": "fp32",
            "network": self._checkpoint.network,
            "method": "grad-cam",
            "layer": layer,
        }

    def explain(self, image: NDArray[np.uint8], findings: Sequence[str] | None) -> Evidence:
        checkpoint = self._checkpoint
        x = normalise(torch.from_numpy(image[np.newaxis, np.newaxis]), checkpoint.config.get("in_channels", 3))
        if findings is None:
            with torch.inference_mode():
                findings = [self.labels[int(checkpoint.model(x)[0].argmax())]]
        chosen = [self.labels.index(finding) for finding in findings]
        logits, maps = grad_cam(checkpoint.model, x, chosen, layer=self._layer, exclusive=checkpoint.exclusive)
        return Evidence(
            _probabilities(self.labels, logits[0].numpy()),
            {finding: one.numpy() for finding, one in zip(findings, maps[0])},
        )

    def __enter__(self) -> _GradCamExplainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _probabilities(labels: tuple[str, ...], logits: NDArray[np.float32]) -> dict[str, float]:
    return {label: 1 / (1 + float(np.exp(-np.float64(logit)))) for label, logit in zip(labels, logits)}
