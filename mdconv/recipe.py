"""The recipe of a training: everything that decides the weights, apart from network and images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Recipe:
    """The defaults are the paper's (Hu et al., IEEE Access 2020, section IV-B)."""

    size: int = 448
    """Height and width that the network sees, pixels."""
    epochs: int = 100
    batch: int = 64
    """Images a step, over all processes."""
    learning_rate: float = 1e-4
    """At its peak. The paper prints "10e-5"."""
    weight_decay: float = 1e-4
    """As printed; added to the gradients, as Adam had it in the paper's time, not decoupled."""
    warm_up_steps: int = 0
    patience: int = 10
    """Epochs without a better validation score after which training stops; 0 never stops it early."""
    augment: bool = True
    """Random crop, rotation and mirroring (section IV-B); without it mirroring alone."""
    seed: int = 0
    precision: str = "auto"
    """Of activations: one of `PRECISIONS`. "auto" is what the device is fast in. Weights and batch norm's statistics
    are float32 always."""


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Rate of a step, counted from 0: a linear warm-up times a cosine from the peak to zero over all steps."""
    warm = min(1.0, (step + 1) / recipe.warm_up_steps) if recipe.warm_up_steps else 1.0
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What activations are computed in, None for float32. "auto": half precision where the device is fast in it."""
    if precision != "auto":
        return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_fast_bfloat16() else None


def _has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 itself; oneDNN emulates it on others, many times slower than float32."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # no Linux
        return False
