"""Grad-CAM of any network here: where in an image the evidence for a label lies.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017, section
3; the paper's Fig. 7. The maps come before the final ReLU, which `edge.heatmap.normalised` and `mdconv.localisation`
apply: where a network finds no evidence at all, the least contrary place is still known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edge.errors import UsageError
from mdconv.networks import log_odds


def grad_cam(
    network: nn.Module, x: Tensor, labels: Sequence[int], *, layer: str | None = None, exclusive: bool = False
) -> tuple[Tensor, Tensor]:
    """Outputs and maps of a network in evaluation mode.

    With A^k the feature maps of `layer` and y the log-odds of a label, the weight of A^k is the mean over positions of
    dy / dA^k (eq. 1) and the map is the weighted sum of all A^k (eq. 2 before its ReLU). For a linear head on the mean
    of A, so on the last feature map of our networks, the map is the class activation map divided by its h w positions.

    Args:
        network: with `features` and `classifier` as all of `mdconv.networks`.
        x: (N, in_channels, H, W) float, normalised.
        labels: the outputs to explain, one backward pass each.
        layer: a module's name in the network, as "layer4"; the last feature map if None.
        exclusive: whether the outputs exclude each other (`mdconv.networks.log_odds`).

    Returns:
        Logits (N, L), whose sigmoid is the probability, and maps (N, len(labels), h, w).

    Raises:
        UsageError: `layer` is no module of the network, was not run, or gives no (N, C, h, w) maps.
    """
    with torch.enable_grad():
        logits, maps = _forward(network, x, layer, exclusive)
        parts = []
        for label in labels:
            (gradient,) = torch.autograd.grad(logits[:, label].sum(), maps, retain_graph=True)
            weights = gradient.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
            parts.append((weights * maps).sum(dim=1).detach())  # (N, h, w)
    return logits.detach(), torch.stack(parts, dim=1)


def _forward(network: Any, x: Tensor, layer: str | None, exclusive: bool) -> tuple[Tensor, Tensor]:
    """Logits (N, L) and the feature maps (N, C, h, w) that they were computed from."""
    if layer is None:
        with torch.no_grad():
            maps = network.features(x)
        maps.requires_grad_()
        return log_odds(network.classifier(maps.mean(dim=(2, 3))), exclusive), maps
    seen: list[Any] = []
    try:
        module = network.get_submodule(layer)
    except AttributeError:
        names = ", ".join(name for name, _ in network.named_children())
        raise UsageError(f"the network has no layer {layer!r}: name one of {names}, or one inside them") from None
    handle = module.register_forward_hook(lambda _module, _arguments, out: seen.append(out))
    try:
        # a gradient reaches every layer, also where all weights are frozen
        outputs = network(x.detach().requires_grad_())
    finally:
        handle.remove()
    if not seen or not isinstance(seen[-1], Tensor) or seen[-1].ndim != 4:
        shape = tuple(seen[-1].shape) if seen and isinstance(seen[-1], Tensor) else "nothing"
        raise UsageError(f"layer {layer!r} gives {shape}, expected maps (N, C, h, w): name an earlier one")
    return log_odds(outputs, exclusive), seen[-1]
