"""Every network against an independent implementation (pytorchcv): same layers in the same order, same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import pytorchcv.model_provider
import torch
from torch import nn

from mdconv.networks import NETWORKS, build

# Ours, its options, theirs.
PEERS: list[tuple[str, dict[str, Any], str]] = [
    ("mobilenet", {"md_stages": ()}, "mobilenet_w1"),
    ("mobilenet_v2", {"md_stages": ()}, "mobilenetv2b_w1"),
    ("mobilenet_v3", {"md_stages": ()}, "mobilenetv3_large_w1"),
    ("shufflenet", {"md_stages": (), "groups": 3, "narrow": False}, "shufflenet_g3_w1"),
    ("shufflenet", {"md_stages": (), "groups": 8, "narrow": False}, "shufflenet_g8_w1"),
    ("shufflenet", {"md_stages": (), "groups": 3, "narrow": False, "width": 0.5}, "shufflenet_g3_wd2"),
    ("shufflenet_v2", {"md_stages": (), "width": 1.0}, "shufflenetv2_w1"),
    ("resnet50", {}, "resnet50b"),
    ("densenet121", {}, "densenet121"),
]
WITHOUT_BIAS = {"mobilenet_v2": ["classifier.bias"], "mobilenet_v3": ["classifier.0.bias"]}
"""Their last layers have none here; ours is then zero."""


def same_weights(name: str, ours: nn.Module, theirs: nn.Module) -> None:
    """Random weights and statistics in both: tensor for tensor, in the order of the layers."""
    generator = torch.Generator().manual_seed(0)
    mine = {k: v for k, v in ours.state_dict().items() if "num_batches" not in k}
    given = [v for k, v in theirs.state_dict().items() if "num_batches" not in k]
    for missing in WITHOUT_BIAS.get(name, []):
        nn.init.zeros_(mine.pop(missing))
    assert len(mine) == len(given)
    for (key, tensor), other in zip(mine.items(), given):
        assert tensor.numel() == other.numel(), key
        if key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
            value = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75
        else:
            value = torch.randn(tensor.shape, generator=generator)
            value *= tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        tensor.copy_(value)
        other.copy_(value.reshape(other.shape))


def as_its_authors_have_it(peer: nn.Module) -> None:
    """Theirs pools without a border and halves the first unit's channels; the authors' code pads, and passes 24."""
    peer.features.init_block.pool = nn.MaxPool2d(3, stride=2, padding=1)
    unit = peer.features.stage1.unit1
    unit.expand_conv3, unit.expand_bn3 = nn.Conv2d(58, 92, 1, bias=False), nn.BatchNorm2d(92).eval()
    unit.expand_conv5, unit.expand_bn5 = nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24).eval()


@pytest.mark.parametrize(("name", "config", "theirs"), PEERS, ids=[peer[2] for peer in PEERS])
def test_equals_an_independent_implementation(name: str, config: dict[str, Any], theirs: str) -> None:
    network = build(name, labels=14, **config).eval()
    peer = pytorchcv.model_provider.get_model(theirs, num_classes=14).eval()
    if name == "shufflenet_v2":
        as_its_authors_have_it(peer)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (network, peer)]
    extra = sum(network.get_parameter(missing).numel() for missing in WITHOUT_BIAS.get(name, []))
    assert counts[0] == counts[1] + extra
    same_weights(name, network, peer)
    # Theirs pools over 7 x 7 positions, so the input has 224 pixels.
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = network(x), peer(x)
        features, theirs_features = network.features(x), peer.features(x)
    assert found.shape == expected.shape == (1, 14)
    if theirs_features.shape[2] == 1:  # pooled already
        features = features.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(features, theirs_features, rtol=1e-4, atol=1e-4 * float(features.abs().max()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_every_network_has_a_peer() -> None:
    assert {name for name, _, _ in PEERS} == set(NETWORKS)
