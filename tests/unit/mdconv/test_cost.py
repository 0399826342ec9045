"""Costs by hand and against PyTorch's own counter; receptive fields against gradients; the paper's numbers."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mdconv.cost import LayerCost, cost, layer_costs, main
from mdconv.layers import MDConv
from mdconv.networks import NETWORKS, build, stages
from mdconv.networks.blocks import Network
from mdconv.networks.mobilenet_v3 import SqueezeExcite
from mdconv.receptive_field import receptive_fields


@pytest.mark.parametrize(
    ("layer", "channels", "kind", "macs", "parameters"),
    [
        # eq. 1: positions x kernel area x input channels x output channels
        (nn.Conv2d(3, 8, 5, 2, 2), 3, "conv 5x5", 16 * 16 * 25 * 3 * 8, 25 * 3 * 8 + 8),
        (nn.Conv2d(6, 10, 1, bias=False), 6, "conv 1x1", 32 * 32 * 6 * 10, 60),
        (nn.Conv2d(6, 9, 3, 1, 1, groups=3), 6, "conv 3x3 in 3 groups", 32 * 32 * 9 * 2 * 9, 9 * 2 * 9 + 9),
        # depthwise: positions x kernel area x channels
        (nn.Conv2d(7, 7, 3, 2, 1, groups=7, bias=False), 7, "depthwise 3x3", 16 * 16 * 9 * 7, 63),
        # MD-Conv: each group of channels with its own kernel area; 7 channels are 4 and 3
        (MDConv(7, (3, 5), (1, 1)), 7, "depthwise 3x3 5x5", 32 * 32 * (4 * 9 + 3 * 25), 4 * 9 + 3 * 25),
        (MDConv(8, (3, 5, 7), (2, 1, 1), 2), 8, "depthwise 3x3 5x5 7x7", 16 * 16 * (4 * 9 + 2 * 25 + 2 * 49), 184),
    ],
)
def test_layers_by_hand(layer: nn.Module, channels: int, kind: str, macs: int, parameters: int) -> None:
    (counted,) = layer_costs(layer, 32, channels)
    side = 16 if getattr(layer, "stride", 1) in (2, (2, 2)) else 32
    width = layer.channels if isinstance(layer, MDConv) else layer.out_channels
    assert counted == LayerCost("", kind, (width, side, side), macs, macs, parameters)
    assert counted.activation_bytes == 4 * width * side * side
    assert cost(layer, 32, channels) == (macs, parameters)


def test_what_the_paper_counts_besides_by_hand() -> None:
    row = nn.Sequential(
        nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.BatchNorm2d(4), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2),
        SqueezeExcite(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    row[6] = nn.Identity()
    counted = {layer.kind: layer for layer in layer_costs(row, 32, 4)}
    operations = {kind: layer.operations for kind, layer in counted.items() if layer.operations}
    assert operations == {
        "relu": 4 * 32 * 32, "relu6": 4 * 32 * 32, "maxpool": 4 * 16 * 16 * 9, "avgpool": 4 * 8 * 8 * 4,
        "adaptiveavgpool": 4 * 8 * 8, "linear": 20,
    }  # fmt: skip
    assert sum(layer.macs for layer in counted.values()) == 20
    excited = layer_costs(SqueezeExcite(16), 10, 16)  # 16 channels, squeezed to 8
    assert sum(layer.macs for layer in excited) == 2 * 16 * 8
    assert sum(layer.operations for layer in excited) == 2 * 16 * 8 + 16 * 10 * 10 + 8


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_against_pytorch_s_counter(name: str) -> None:
    network = build(name, **({"md_stages": stages(name)[:2]} if stages(name) else {}))
    layers = layer_costs(network, 64)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.zeros(1, 3, 64, 64))
    assert 2 * sum(layer.macs for layer in layers) == counter.get_total_flops()  # a multiply-accumulate is two
    assert cost(network, 64).macs == sum(layer.macs for layer in layers)
    assert sum(layer.parameters for layer in layers) == cost(network, 64).parameters
    assert cost(network, 64).parameters == sum(parameter.numel() for parameter in network.parameters())
    (mean,) = [layer for layer in layers if layer.name == "mean"]
    assert mean.operations == 4 * mean.output[0]  # 2 x 2 positions


def linearised(network: Network) -> Network:
    """A copy in which every output is a sum of its inputs with positive weights, and nothing is gated."""
    copied = copy.deepcopy(network).eval()
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6, nn.Hardswish, SqueezeExcite)):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
            elif isinstance(child, nn.Conv2d):
                nn.init.constant_(child.weight, 1 / child.weight[0].numel())
    return copied


def seen_by_the_middle(network: Network, part: str, side: int) -> tuple[int, int, int]:
    """First and last input row that the middle position of a part's output depends on, and the step of its rows."""
    reached: list[Tensor] = []
    network.get_submodule(part).register_forward_hook(lambda _, inputs, output: reached.append(output))
    image = torch.ones(1, 3, side, side, requires_grad=True)
    network.features(image)
    output = reached[0]
    middle = output.shape[-1] // 2
    (gradient,) = torch.autograd.grad(output[0, :, middle, middle].sum(), image)
    rows = gradient[0].abs().sum(dim=(0, 2)).nonzero().flatten()
    columns = gradient[0].abs().sum(dim=(0, 1)).nonzero().flatten()
    assert torch.equal(rows, columns)
    return int(rows[0]), int(rows[-1]), round(side / output.shape[-1])


@pytest.mark.parametrize(
    ("name", "config", "part", "expected", "side"),
    [
        ("mobilenet_v2", {}, "layer6", 651, 704),
        ("mobilenet_v2", {"md_stages": ("layer1", "layer2"), "kernel_sizes": (3, 7)}, "layer3", 275, 320),
        ("mobilenet", {"md_stages": ("layer0", "layer2"), "kernel_sizes": (5, 3)}, "layer3", 247, 288),
        ("mobilenet_v3", {"md_stages": ()}, "layer3", 211, 256),
        ("shufflenet", {"md_stages": ("layer0",)}, "layer1", 359, 416),
        ("shufflenet_v2", {"md_stages": ("layer0",), "width": 0.5}, "layer1", 359, 416),
        ("resnet50", {}, "layer2", 91, 128),
        ("densenet121", {}, "layer1", 63, 96),
    ],
)
def test_receptive_fields_are_those_of_the_gradients(
    name: str, config: dict[str, Any], part: str, expected: int, side: int
) -> None:
    network = build(name, **config)
    size, step = receptive_fields(network)[part]
    first, last, found_step = seen_by_the_middle(linearised(network), part, side)
    assert first > 0 and last < side - 1, "the image is large enough"
    assert (last - first + 1, found_step) == (size, step) == (expected, step)


def test_receptive_field_by_hand() -> None:
    """MobileNet: a 3x3 convolution with stride 2, then 13 depthwise ones of 3x3, by eq. 8."""
    size, step = 1, 1
    for stride in (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        size, step = size + 2 * step, step * stride
    assert receptive_fields(build("mobilenet", md_stages=()))["layer4"] == (size, step) == (315, 32)
    assert list(receptive_fields(build("densenet121"))) == [
        "stem", "pool", "layer1", "layer2", "layer3", "layer4", "head",
    ]  # fmt: skip


def test_the_table_has_every_published_number_within_a_percent_or_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [(row[0], row[1], row[3], row[7]) for row in rows] == [
        ("3", "MobileNet", "2291", ""),
        ("3", "MobileNet-v2", "1223", ""),
        ("3", "MobileNet-v3", "865", ""),
        ("3", "ShuffleNet", "521", ""),
        ("3", "ShuffleNet-v2", "2369", ""),
        ("7", "ResNet-50", "16395", "23.5"),
        ("7", "DenseNet-121", "11405", "7.0"),
        ("7", "ours", "1241", "2.3"),
    ]
    for _, title, _, published, ours, ratio, macs, published_parameters, parameters, parameter_ratio, note in rows:
        assert float(ratio) == pytest.approx(float(ours) / float(published), abs=1e-4)
        assert float(macs) < float(ours)
        if title == "ours":
            assert 0.988 < float(ratio) < 0.989 and note.startswith("1.2 % less")
        else:
            assert round(float(ours)) == int(published)
        if published_parameters:
            assert round(float(parameters), 1) == float(published_parameters)
            assert float(parameter_ratio) == pytest.approx(float(parameters) / float(published_parameters), abs=1e-4)
            assert "parameters agree to the digits printed" in note


def test_what_the_notes_of_the_table_say() -> None:
    def million(name: str, **config: Any) -> dict[str, float]:
        """As the paper counts, by the network's parts."""
        parts: dict[str, float] = defaultdict(float)
        for layer in layer_costs(build(name, **config), 448):
            parts[layer.name.split(".")[0]] += layer.operations / 1e6
        return parts

    assert round(sum(million("shufflenet", md_stages=(), narrow=False).values()), 1) == 562.8
    plain, mixed = million("mobilenet_v2", md_stages=()), million("mobilenet_v2", md_stages=stages("mobilenet_v2"))
    added = {stage: mixed[stage] - plain[stage] for stage in stages("mobilenet_v2")}
    assert not any(17.5 < more < 18.5 for more in added.values())
    assert round(sum(plain.values()) + added["layer2"] + added["layer5"], 1) == 1239.8
    assert round(sum(plain.values()) + added["layer3"] + added["layer4"], 1) == 1240.7
    # The first unit of ShuffleNet-v2 with 122 and 122 channels in place of 220 and 24, at 56 x 56:
    wider = 56 * 56 * ((122 * 220 + 24 * 24) - (122 * 122 + 24 * 122)) / 1e6
    assert round(sum(million("shufflenet_v2", md_stages=()).values()) - wider, 1) == 2339.1
    layers = layer_costs(build("mobilenet_v2", md_stages=()), 448)
    normed = sum(math.prod(layer.output) for layer in layers if layer.kind == "batchnorm")
    assert round((sum(layer.macs for layer in layers) + normed) / 1e6, 1) == 1224.7


def test_the_command_prints_layers_and_sums(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--network", "mobilenet_v2", "--size", "64", "--md-stages", "layer5", "--kernel-sizes", "3,7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = cost(build("mobilenet_v2", kernel_sizes=(3, 7)), 64)
    (total,) = [line for line in lines if line.startswith("all ")]
    assert total.split()[1:3] == [f"{expected.macs:,}", f"{expected.parameters:,}"]
    rows = lines[1 : lines.index(total)]
    numbers = [row.replace(",", "").split() for row in rows if not row.startswith("batch norms")]
    assert sum(int(row[-3]) for row in numbers) == expected.macs
    assert sum(int(row[-1]) for row in numbers) == int(total.replace(",", "").split()[-1])
    assert any("depthwise 3x3 7x7" in row and row.startswith("layer5.0") for row in rows)
    assert any(line.split() == ["layer4", "267", "16"] for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--md-stages", "layer9"], "no stage 'layer9'"),
        (["--network", "resnet50", "--md-stages", "all"], "resnet50 has no depthwise layers"),
        (["--kernel-sizes", "4,5"], "expected odd ones"),
        (["--size", "3"], "expected 32 pixels or more"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
