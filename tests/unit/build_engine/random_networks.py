"""Checkpoints with random weights whose every batch norm and bias matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from edge.backends.onnxruntime import open_session
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import Checkpoint
from mdconv.networks import build, normalise


def random_checkpoint(size: int = 64, seed: int = 3, **config: Any) -> Checkpoint:
    """A MobileNet-v2 checkpoint for `size` pixels; its activations stay of order one through all layers."""
    torch.manual_seed(seed)
    network = build("mobilenet_v2", labels=14, **config)
    randomise(network)
    return Checkpoint(
        network.eval(), "mobilenet_v2", dict(config), CHESTXRAY14, size, {}, "random weights", {}, "0" * 64
    )


def randomise(network: nn.Module, size: int = 64) -> None:
    """Give every layer values that leave nothing out, and under which the outputs depend on the image.

    Batch norm gets statistics near those of a few random images, else activations vanish or explode on their way.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
            nn.init.normal_(module.bias, std=0.5)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.8, 1.6)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = None  # of the next pass: its own statistics
    channels = next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
    was_training = network.training
    with torch.no_grad():
        network.train()(normalise(torch.from_numpy(random_images(8, size)), channels))
        for norm in norms:
            norm.momentum = 0.1
            mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
            mean += torch.randn_like(mean) * 0.1
            variance *= torch.empty_like(variance).uniform_(0.5, 2.0)
    network.train(was_training)


def random_images(count: int, size: int, seed: int = 11) -> NDArray[np.uint8]:
    """(count, 1, size, size) uint8: smooth fields with noise, darker and brighter ones."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 1, size // 8 + 2, size // 8 + 2))
    fields = coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :size, :size] + rng.normal(0, 12, (count, 1, size, size))
    return np.clip(fields, 0, 255).astype(np.uint8)


def run(model: onnx.ModelProto, images: NDArray[Any], *outputs: str) -> list[NDArray[Any]]:
    """Outputs of `model` in ONNX Runtime, all of them unless named."""
    session = open_session(model.SerializeToString(), threads=0)
    results: list[NDArray[Any]] = session.run(list(outputs) or None, {session.get_inputs()[0].name: images})
    return results
