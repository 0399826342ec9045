"""MobileNet-v2: shapes; what networks cost, as their authors publish it; what goes in and what comes out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdconv.cost import cost
from mdconv.layers import MDConv
from mdconv.networks import GRAY_MEAN, GRAY_STD, build, log_odds, normalise
from mdconv.networks.mobilenet_v2 import STAGES, MobileNetV2


@pytest.mark.parametrize(
    ("md_stages", "million_macs", "million_parameters"),
    [((), 1198.0, 2.242), (("layer5",), 1201.9, 2.262), (tuple(STAGES), 1271.7, 2.299)],
)
def test_cost_at_448(md_stages: tuple[str, ...], million_macs: float, million_parameters: float) -> None:
    counted = cost(MobileNetV2(md_stages=md_stages), 448)
    assert round(counted.macs / 1e6, 1) == million_macs
    assert round(counted.parameters / 1e6, 3) == million_parameters


@pytest.mark.parametrize(
    ("name", "options", "million_macs"),
    [
        ("mobilenet", {}, 569),
        ("mobilenet_v2", {}, 300),
        ("mobilenet_v3", {}, 219),
        *[
            ("shufflenet", {"groups": groups, "narrow": False}, published)
            for groups, published in ((1, 143), (2, 140), (3, 137), (4, 133), (8, 137))
        ],
        *[
            ("shufflenet", {"width": width, "narrow": False}, published)
            for width, published in ((0.5, 38), (1.5, 292), (2.0, 524))
        ],
        *[
            ("shufflenet_v2", {"width": width}, published)
            for width, published in ((0.5, 41), (1.0, 146), (1.5, 299), (2.0, 591))
        ],
    ],
)
def test_costs_that_the_networks_authors_publish(name: str, options: dict[str, Any], million_macs: int) -> None:
    """At 224x224 with 1000 labels: Howard et al. 2017 Table 8, Sandler et al. Table 4, Howard et al. 2019 Table 3,
    Zhang et al. Tables 2 and 5, Ma et al. Table 8. They round, and not all alike."""
    counted = cost(build(name, labels=1000, md_stages=(), **options), 224)
    assert counted.macs / 1e6 == pytest.approx(million_macs, rel=0.013)


def test_default_places_mdconv_in_layer5_only() -> None:
    network = MobileNetV2()
    placed = {name.split(".")[0] for name, module in network.named_modules() if isinstance(module, MDConv)}
    assert placed == {"layer5"}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 95)])
def test_shapes(height: int, width: int) -> None:
    network = MobileNetV2(labels=5, md_stages=("layer1", "layer4")).eval()
    x = torch.randn(2, 3, height, width)
    assert network.features(x).shape == (2, 1280, -(-height // 32), -(-width // 32))
    assert network(x).shape == (2, 5)


def test_normalise_gives_equal_channels() -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    x = normalise(images)
    assert x.shape == (1, 3, 1, 3)
    expected = (torch.tensor([0, 128, 255]) / 255 - GRAY_MEAN) / GRAY_STD
    torch.testing.assert_close(x[0], expected.expand(3, 1, 3))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("resnet", {}, "none of"),
        ("mobilenet_v2", {"depth": 3}, "does not take these options: .*depth"),
        ("mobilenet_v2", {"md_stages": ["layer9"]}, "'layer9'"),
    ],
)
def test_build_names_what_is_wrong(name: str, options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build(name, **options)


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_log_odds_of_exclusive_labels_are_their_softmax(labels: int) -> None:
    outputs = torch.randn(4, labels, generator=torch.Generator().manual_seed(0)) * 5
    torch.testing.assert_close(torch.sigmoid(log_odds(outputs, exclusive=True)), torch.softmax(outputs, dim=1))
    torch.testing.assert_close(log_odds(outputs, exclusive=False), outputs)
