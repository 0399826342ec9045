"""Grad-CAM against class activation maps, against finite differences, and against its equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edge.errors import UsageError
from mdconv.grad_cam import grad_cam
from mdconv.networks import build, log_odds


def network(name: str, labels: int = 3) -> Any:
    """A network in double precision whose batch norms have met some data, so that its maps differ by position."""
    torch.manual_seed(0)
    model = build(name, labels=labels, in_channels=1).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    with torch.no_grad():
        model(torch.randn(4, 1, 64, 64, dtype=torch.float64))
    return model.eval()


def images(count: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 1, 64, 64, dtype=torch.float64)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet", "shufflenet_v2", "densenet121"])
def test_of_a_linear_head_it_is_the_class_activation_map_over_h_w(name: str) -> None:
    model, x = network(name), images()
    logits, maps = grad_cam(model, x, [2, 0])
    features = model.features(x).detach()
    cam = torch.einsum("nchw,lc->nlhw", features, model.classifier.weight.detach())
    torch.testing.assert_close(maps, cam[:, [2, 0]] / (features.shape[2] * features.shape[3]))
    torch.testing.assert_close(logits, model(x).detach())
    assert maps.std() > 0


def test_of_two_exclusive_labels_it_explains_their_difference() -> None:
    model, x = network("mobilenet_v2", labels=2), images()
    logits, maps = grad_cam(model, x, [0, 1], exclusive=True)
    outputs = model(x).detach()
    torch.testing.assert_close(logits[:, 0], outputs[:, 0] - outputs[:, 1])
    torch.testing.assert_close(maps[:, 0], -maps[:, 1])
    plain = grad_cam(model, x, [0, 1])[1]
    torch.testing.assert_close(maps[:, 0], plain[:, 0] - plain[:, 1])


@pytest.mark.parametrize("exclusive", [False, True])
def test_of_a_head_with_a_hidden_layer_it_agrees_with_finite_differences(exclusive: bool) -> None:
    model, x = network("mobilenet_v3"), images(1)
    _, maps = grad_cam(model, x, [1], exclusive=exclusive)
    with torch.no_grad():
        features = model.features(x)
        count, step = features.shape[2] * features.shape[3], 1e-6
        pooled = features.mean(dim=(2, 3))
        expected = torch.zeros_like(maps[:, 0])
        for channel in range(pooled.shape[1]):
            ahead, behind = pooled.clone(), pooled.clone()
            ahead[:, channel] += step
            behind[:, channel] -= step
            rise = log_odds(model.classifier(ahead), exclusive) - log_odds(model.classifier(behind), exclusive)
            # dy / dA^k at a position is dy / d(mean of A^k) over the number of positions
            expected += rise[0, 1] / (2 * step) / count * features[:, channel]
    torch.testing.assert_close(maps[:, 0], expected, rtol=1e-5, atol=1e-9)


class Small(nn.Module):
    """Two convolutions and a linear head; the second's output is the last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2)
        self.classifier = nn.Linear(5, 2)
        self.unused = nn.Linear(2, 2)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.tanh(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def test_of_an_inner_layer_it_agrees_with_finite_differences() -> None:
    torch.manual_seed(2)
    model = Small().double()
    x = torch.randn(1, 1, 7, 6, dtype=torch.float64)
    _, maps = grad_cam(model, x, [1], layer="first")
    with torch.no_grad():
        hidden = model.first(x)

        def output(value: Tensor) -> float:
            features = torch.relu(model.second(torch.tanh(value)))
            return float(model.classifier(features.mean(dim=(2, 3)))[0, 1])

        gradient = torch.zeros_like(hidden)
        for at in range(hidden.numel()):
            shift = torch.zeros(hidden.numel(), dtype=torch.float64)
            shift[at] = 1e-6
            shift = shift.view_as(hidden)
            gradient.view(-1)[at] = (output(hidden + shift) - output(hidden - shift)) / 2e-6
        expected = (gradient.mean(dim=(2, 3), keepdim=True) * hidden).sum(dim=1)
    torch.testing.assert_close(maps[:, 0], expected, rtol=1e-5, atol=1e-8)


def test_the_layer_before_the_pooling_is_the_default() -> None:
    model, x = network("mobilenet_v2"), images()
    torch.testing.assert_close(grad_cam(model, x, [1], layer="head")[1], grad_cam(model, x, [1])[1])


def test_frozen_weights_and_a_caller_without_gradients_change_nothing_and_nothing_is_left_behind() -> None:
    model, x = network("mobilenet_v2"), images()
    expected = grad_cam(model, x, [1], layer="layer3")[1]
    with torch.no_grad():
        torch.testing.assert_close(grad_cam(model, x, [1], layer="layer3")[1], expected)
    for weight in model.parameters():
        weight.requires_grad_(False)
    torch.testing.assert_close(grad_cam(model, x, [1], layer="layer3")[1], expected)
    assert not x.requires_grad
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.layer3._forward_hooks


@pytest.mark.parametrize(
    "layer, said",
    [
        ("third", "no layer 'third': name one of first, second, classifier, unused"),
        ("unused", "'unused' gives nothing"),
        ("classifier", r"'classifier' gives \(1, 2\), expected maps"),
    ],
)
def test_a_layer_without_maps_is_refused(layer: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        grad_cam(Small(), torch.zeros(1, 1, 7, 6), [0], layer=layer)
