"""Which layers int8 costs most, and the smallest set of them to leave out of it so that a model passes.

A layer's effect is what rounding its inputs and weights alone changes, all others being float32. The layers are then
left out in the order of their effects until the model passes, and layers are taken back as long as it passes without
one. So it fails with any one of the set taken back; that no other set is smaller is not shown, since there are 2^n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.delong import area_drops
from calibration.quantize import Calibrated, Progress
from edge.backends.onnxruntime import open_session
from edge.results import probabilities

Passes = Callable[[tuple[str, ...]], bool]
"""Whether a model passes with these layers left as they are."""


def layer_effects(
    calibrated: Calibrated,
    images: Sequence[NDArray[np.uint8]],
    truth: NDArray[np.bool_] | None,
    progress: Progress | None = None,
) -> dict[str, dict[str, float | None]]:
    """What int8 in each layer alone does to the model's outputs, by the layer's name, in the graph's order.

    Args:
        calibrated: the model and its ranges.
        images: N of them, each (1, 1, S, S) uint8.
        truth: (N, L), or None if it is not known.

    Returns:
        ``mean_difference`` and ``max_difference`` of probabilities from float32's, and ``auc_drop``, of the mean area
        under the ROC curve (None without truth, or where no finding is both present and absent).
    """
    layers = calibrated.layers
    reference = logits_of(calibrated.model, images)
    found = {}
    for number, layer in enumerate(layers):
        if progress:
            progress("effect of layers", number, len(layers))
        model, _ = calibrated.quantized([name for name in layers if name != layer])
        found[layer] = _effect(reference, logits_of(model, images), truth)
    return found


def _effect(
    reference: NDArray[np.float32], logits: NDArray[np.float32], truth: NDArray[np.bool_] | None
) -> dict[str, float | None]:
    difference = np.abs(probabilities(logits) - probabilities(reference))
    drop = np.nan
    if truth is not None:
        drop = area_drops(truth, reference.astype(np.float64), logits.astype(np.float64)).mean.value
    return {
        "mean_difference": float(difference.mean()),
        "max_difference": float(difference.max()),
        "auc_drop": None if np.isnan(drop) else float(drop),
    }


def logits_of(model: onnx.ModelProto, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The (N, L) logits of `model`, in ONNX Runtime, for N images of (1, 1, S, S)."""
    session = open_session(model.SerializeToString(), threads=0)
    return np.concatenate([session.run(["logits"], {"image": image})[0] for image in images])


def by_effect(effects: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The layers, the one that changes probabilities most on average first."""
    return tuple(sorted(effects, key=lambda layer: -effects[layer]["mean_difference"]))


def smallest_set(order: Sequence[str], passes: Passes) -> tuple[str, ...] | None:
    """The fewest first layers of `order` that must be left so that the model `passes`, less what can be missed.

    `passes` is taken to be false for no layer at all. Where few suffice, few sets are tried: 1, 2, 4, ... layers, then
    by halves between the last that fails and the first that passes. None if the model fails with all of them left.
    """
    fails, enough = 0, 1
    while not passes(tuple(order[:enough])):
        if enough >= len(order):
            return None
        fails, enough = enough, min(2 * enough, len(order))
    while enough - fails > 1:
        middle = (fails + enough) // 2
        if passes(tuple(order[:middle])):
            enough = middle
        else:
            fails = middle
    left = tuple(order[:enough])
    shown: set[str] = set()
    """Layers without one of which the model fails, the others of `left` being left."""
    while rest := [layer for layer in reversed(left) if layer not in shown]:
        fewer = tuple(name for name in left if name != rest[0])
        if fewer and passes(fewer):
            left = fewer
            shown.clear()  # what was needed beside this layer may not be without it
        else:
            shown.add(rest[0])
    return left
