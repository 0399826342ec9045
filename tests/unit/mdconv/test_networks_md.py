"""MD-Conv in every network: in any stage, with any kernels; and what the exporter may rely on."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn

from mdconv.layers import MDConv
from mdconv.networks import NETWORKS, build, resolve_stages, stages

DEPTHWISE = sorted(name for name in NETWORKS if stages(name))
BASELINES = sorted(set(NETWORKS) - set(DEPTHWISE))


class Tracer(fx.Tracer):
    traced_func_name = "features"

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, MDConv) or super().is_leaf_module(module, name)


def test_which_networks_there_are() -> None:
    assert DEPTHWISE == ["mobilenet", "mobilenet_v2", "mobilenet_v3", "shufflenet", "shufflenet_v2"]
    assert BASELINES == ["densenet121", "resnet50"]


@pytest.mark.parametrize("name", DEPTHWISE)
def test_mdconv_replaces_exactly_the_depthwise_layers_of_its_stages(name: str) -> None:
    def is_depthwise(layer: nn.Module) -> bool:
        return isinstance(layer, MDConv) or (isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 3)

    for stage in stages(name):
        network = build(name, md_stages=(stage,))
        for path, layer in network.named_modules():
            if is_depthwise(layer) and ".convs." not in path:
                assert isinstance(layer, MDConv) == path.startswith(f"{stage}."), path
    assert not any(isinstance(layer, MDConv) for layer in build(name, md_stages=()).modules())


@pytest.mark.parametrize("name", DEPTHWISE)
def test_the_default_is_the_stage_at_a_32nd_of_the_input(name: str) -> None:
    found = [path for path, layer in build(name).named_modules() if isinstance(layer, MDConv)]
    sides: dict[str, int] = {}
    network = build(name, in_channels=1).eval()
    for path in found:

        def note(_: nn.Module, __: object, out: torch.Tensor, path: str = path) -> None:
            sides[path] = out.shape[-1]

        network.get_submodule(path).register_forward_hook(note)
    network(torch.zeros(1, 1, 64, 64))
    assert found and set(sides.values()) == {2}


@pytest.mark.parametrize("name", DEPTHWISE)
@pytest.mark.parametrize("kernels", [((3, 5), (1, 1)), ((3, 5, 7), (2, 1, 1)), ((7,), (1,))], ids=str)
def test_any_kernels_and_sizes(name: str, kernels: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    sizes, ratios = kernels
    network = build(name, labels=2, md_stages=stages(name), kernel_sizes=sizes, ratios=ratios, in_channels=1).eval()
    x = torch.randn(2, 1, 65, 33)
    with torch.inference_mode():
        assert network(x).shape == (2, 2)
        assert network.features(x).shape[2:] == (3, 2), "halved five times, rounded up"


@pytest.mark.parametrize(
    ("name", "md_stages", "ratios"),
    [(name, stages(name), (1, 0)) for name in DEPTHWISE if name != "mobilenet_v3"]
    # The stages of MobileNet-v3 whose own kernels are 3x3, and those where they are 5x5.
    + [
        ("mobilenet_v3", ("layer0", "layer1", "layer3", "layer4"), (1, 0)),
        ("mobilenet_v3", ("layer2", "layer5"), (0, 1)),
    ],
)
def test_all_channels_to_the_networks_own_kernel_is_the_plain_network(
    name: str, md_stages: tuple[str, ...], ratios: tuple[int, int]
) -> None:
    plain = build(name, md_stages=(), in_channels=1).eval()
    split = build(name, md_stages=md_stages, ratios=ratios, in_channels=1).eval()
    weights = plain.state_dict()
    split.load_state_dict({key: weights[key.replace(".convs.0.", ".")] for key in split.state_dict()})
    x = torch.randn(1, 1, 33, 65)
    with torch.inference_mode():
        torch.testing.assert_close(split(x), plain(x))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_features_are_made_of_what_the_export_knows(name: str) -> None:
    network = build(name, **({"md_stages": stages(name)} if stages(name) else {}))
    layers = (
        *(nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.AvgPool2d, nn.MaxPool2d),
        *(nn.AdaptiveAvgPool2d, nn.ChannelShuffle, MDConv),
    )
    functions = (operator.add, operator.mul, operator.getitem, torch.cat, torch.chunk)
    for node in Tracer().trace(network).nodes:
        if node.op == "call_module":
            layer = network.get_submodule(node.target)
            assert type(layer) in layers and not getattr(layer, "inplace", False), node.target
        elif node.op == "call_function":
            assert node.target in functions, node.target
            if node.target is torch.cat:
                assert node.kwargs == {"dim": 1} and len(node.args) == 1, node
            elif node.target is torch.chunk:
                assert node.kwargs == {"dim": 1} and node.args[1:] == (2,), node
        else:
            assert node.op in ("placeholder", "output"), node


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_msra_initialisation(name: str) -> None:
    torch.manual_seed(0)
    for path, layer in build(name).named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000:
            fan_out = layer.out_channels * layer.weight[0, 0].numel()
            assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), path


def test_stages_as_a_command_line_names_them() -> None:
    assert resolve_stages("mobilenet_v2", "all") == stages("mobilenet_v2")
    assert resolve_stages("shufflenet", "none") == ()
    assert resolve_stages("mobilenet", "layer1, layer3") == ("layer1", "layer3")
    for name, text in (("mobilenet_v2", "layer7"), ("resnet50", "layer1"), ("mobilenet", "")):
        with pytest.raises(ValueError, match="has no stage"):
            resolve_stages(name, text)


def test_options_that_a_network_does_not_have_are_refused() -> None:
    for config in ({"md_stages": ("layer1",)}, {"width": 2}):
        with pytest.raises(ValueError, match="resnet50"):
            build("resnet50", **config)
    with pytest.raises(ValueError, match="width 3, expected one of"):
        build("shufflenet_v2", width=3)
    with pytest.raises(ValueError, match="5 groups"):
        build("shufflenet", groups=5)
    with pytest.raises(ValueError, match=r"width 0\.25, expected one of"):
        build("shufflenet", width=0.25)
    with pytest.raises(ValueError, match="8 groups do not divide 90 channels of layer0"):
        build("shufflenet", groups=8)
    with pytest.raises(ValueError, match="8 groups do not divide 180 channels of layer0"):
        build("shufflenet", groups=8, narrow=False, width=0.5)
    with pytest.raises(ValueError, match="'resnet' is none of"):
        stages("resnet")
    with pytest.raises(ValueError, match="no stage 'layer9'"):
        build("mobilenet_v3", md_stages=("layer9",))
