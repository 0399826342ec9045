from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from build_engine.export import PARITY_LIMIT, check_parity, export_onnx, main, reference_outputs, to_onnx
from build_engine.onnx_from_torch import fold_batch_norm
from calibration.graph import attributes, consumers, initializers
from edge.errors import MachineError, UsageError
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.layers import MDConv
from mdconv.networks import normalise
from tests.unit.build_engine.random_networks import random_checkpoint, random_images, randomise, run

ALL = tuple(f"layer{i}" for i in range(7))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("size", "stages", "kernels", "ratios"),
    [
        (64, ("layer5",), (3, 5), (1, 1)),
        (33, (), (3, 5), (1, 1)),
        (65, ALL, (3, 5), (1, 1)),
        (47, ("layer2", "layer5"), (3, 5, 7), (2, 1, 1)),
        (96, ("layer0", "layer6"), (5, 3), (3, 1)),
        (50, ("layer1",), (7,), (1,)),
    ],
)
def test_equals_pytorch(
    tmp_path: Path, batch: int, size: int, stages: tuple[str, ...], kernels: tuple[int, ...], ratios: tuple[int, ...]
) -> None:
    checkpoint = random_checkpoint(size, md_stages=stages, kernel_sizes=kernels, ratios=ratios)
    images = random_images(3, size)
    export_onnx(checkpoint, tmp_path / "model.onnx", batch)

    assert max(check_parity(checkpoint, tmp_path / "model.onnx", images)) <= PARITY_LIMIT
    model = onnx.load(tmp_path / "model.onnx")
    logits, cam = run(model, images[:batch], "logits", "cam")
    expected_logits, expected_cam = reference_outputs(checkpoint, images[:batch])
    np.testing.assert_allclose(logits, expected_logits, atol=PARITY_LIMIT * max(1, np.abs(expected_logits).max()))
    np.testing.assert_allclose(cam, expected_cam, atol=PARITY_LIMIT * max(1, np.abs(expected_cam).max()))
    whole, _ = reference_outputs(checkpoint, images)
    assert np.ptp(whole, axis=0).max() > 0.1  # else the outputs would agree whatever the graph does to the image
    assert logits.shape == (batch, 14)
    assert cam.shape == (batch, 14, -(-size // 32), -(-size // 32))


def test_activation_maps_are_grad_cam(checkpoint: Checkpoint) -> None:
    image = random_images(1, 64)
    (cam,) = run(to_onnx(checkpoint), image, "cam")
    network: Any = checkpoint.model
    features = network.features(normalise(torch.from_numpy(image))).detach().requires_grad_()
    logits = network.classifier(features.mean(dim=(2, 3)))
    for label in range(14):
        (gradient,) = torch.autograd.grad(logits[0, label], features, retain_graph=True)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        grad_cam = torch.relu((weights * features).sum(dim=1))[0].detach().numpy()
        ours = np.maximum(cam[0, label], 0)
        np.testing.assert_allclose(ours / max(ours.max(), 1e-9), grad_cam / max(grad_cam.max(), 1e-9), atol=1e-4)
    assert cam.max() > 0


def test_same_checkpoint_gives_same_bytes(tmp_path: Path) -> None:
    save_checkpoint(random_checkpoint(), tmp_path / "a.safetensors")
    for name in ("first", "second"):
        export_onnx(load_checkpoint(tmp_path / "a.safetensors"), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_contract_of_the_file(checkpoint: Checkpoint) -> None:
    model = to_onnx(checkpoint, batch=4)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "image": (onnx.TensorProto.UINT8, ["N", 1, 64, 64]),
        "logits": (onnx.TensorProto.FLOAT, ["N", 14]),
        "cam": (onnx.TensorProto.FLOAT, ["N", 14, 2, 2]),
    }
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 19, "mdconv": 1}
    assert model.ir_version <= 10  # what TensorRT 10.3 and ONNX Runtime 1.23 read
    assert [node.op_type for node in model.graph.node][:4] == ["Cast", "Sub", "Mul", "Conv"]
    assert not {"BatchNormalization", "Identity"} & {node.op_type for node in model.graph.node}
    assert initializers(model.graph)["stem.weight"].dims == [32, 1, 3, 3]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"stem", "layer1.0.expand", "layer3.2.add", "layer6.0.project", "head.relu6", "cam"} <= set(names)


def test_mdconv_nodes(checkpoint: Checkpoint) -> None:
    model = to_onnx(checkpoint)
    nodes = {node.name: node for node in model.graph.node if node.op_type == "MDConv"}
    assert list(nodes) == ["layer5.0.depthwise", "layer5.1.depthwise", "layer5.2.depthwise"]
    first = nodes["layer5.0.depthwise"]
    assert first.domain == "mdconv"
    facts = attributes(first)
    assert facts["kernel_sizes"] == [3, 5]
    assert facts["channel_splits"] == [288, 288]
    assert facts["stride"] == 2
    assert facts["activation"] == "relu6"
    assert (facts["plugin_version"], facts["plugin_namespace"]) == ("1", "mdconv")
    assert initializers(model.graph)[first.input[1]].dims == [576, 1, 5, 5]
    assert initializers(model.graph)[first.input[2]].dims == [576]
    (function,) = model.functions
    assert set(attributes(first)) == set(function.attribute)
    assert [node.op_type for node in consumers(model.graph)["layer5.0.depthwise"]] == ["Conv"]  # no Clip between


def test_depthwise_layers_elsewhere_are_plain_convolutions(checkpoint: Checkpoint) -> None:
    nodes = {node.name: node for node in to_onnx(checkpoint).graph.node}
    assert nodes["layer4.1.depthwise"].op_type == "Conv"
    assert attributes(nodes["layer4.1.depthwise"])["group"] == 576
    assert nodes["layer4.1.depthwise.relu6"].op_type == "Clip"
    plain = to_onnx(random_checkpoint(md_stages=()))
    assert not plain.functions
    assert [entry.domain for entry in plain.opset_import] == [""]


class Mixed(nn.Module):
    """Two MD-Conv layers, each with its own activation, and a convolution with a bias."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.first = nn.Sequential(MDConv(8), nn.BatchNorm2d(8), first)
        self.second = nn.Sequential(MDConv(8, (3, 5), (3, 1), 2), nn.BatchNorm2d(8), second)
        self.classifier = nn.Linear(8, 2)

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(self.stem(x)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return y


@pytest.mark.parametrize(
    ("first", "second", "fused"),
    [
        (nn.ReLU(), nn.ReLU(), {"relu"}),
        (nn.Hardswish(), nn.Hardswish(), {"hardswish"}),
        (nn.Identity(), nn.Identity(), {"none"}),
        (nn.ReLU6(), nn.Hardswish(), {"none"}),  # one model has one function, so a mixture stays outside
    ],
)
def test_activations(tmp_path: Path, first: nn.Module, second: nn.Module, fused: set[str]) -> None:
    torch.manual_seed(0)
    network = Mixed(first, second).eval()
    randomise(network)
    checkpoint = Checkpoint(network, "mixed", {}, ("a", "b"), 37, {}, "random weights")
    if isinstance(first, nn.Identity):
        network.first, network.second = network.first[:2], network.second[:2]
    export_onnx(checkpoint, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert {attributes(node)["activation"] for node in model.graph.node if node.op_type == "MDConv"} == fused
    assert len(model.functions) == 1
    check_parity(checkpoint, tmp_path / "model.onnx", random_images(2, 37))


def test_batch_norm_of_tiny_variance() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    nn.init.uniform_(norm.running_var, 0, 1e-5)  # of the size of eps
    nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 3, 8, 8)
    weight, bias = fold_batch_norm(
        convolution.weight.detach().numpy(), convolution.get_parameter("bias").detach().numpy(), norm
    )
    with torch.inference_mode():
        expected = norm.eval()(convolution(x)).numpy()
        found = nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_layer_without_a_form_is_named() -> None:
    network = Mixed(nn.ReLU(), nn.GELU()).eval()
    checkpoint = Checkpoint(network, "mixed", {}, ("a", "b"), 32, {}, "random weights")
    with pytest.raises(UsageError, match=r"second\.2 \(GELU\) has no ONNX form"):
        to_onnx(checkpoint)


def test_another_head_is_refused() -> None:
    network = Mixed(nn.ReLU(), nn.ReLU()).eval()
    network.classifier = nn.Sequential(nn.Linear(8, 2), nn.Softmax(dim=1))  # type: ignore[assignment]
    with pytest.raises(UsageError, match="Softmax"):
        to_onnx(Checkpoint(network, "mixed", {}, ("a", "b"), 32, {}, "random weights"))


def test_parity_fails_on_other_weights(tmp_path: Path, checkpoint: Checkpoint) -> None:
    export_onnx(random_checkpoint(seed=4), tmp_path / "model.onnx")
    with pytest.raises(MachineError, match="differs from its checkpoint"):
        check_parity(checkpoint, tmp_path / "model.onnx", random_images(1, 64))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Checkpoint) -> None:
    save_checkpoint(checkpoint, tmp_path / "c.safetensors")
    arguments = ["--checkpoint", str(tmp_path / "c.safetensors"), "--output", str(tmp_path / "model.onnx")]
    assert main(arguments) == 0
    assert "against the checkpoint in PyTorch on 4 synthetic phantoms logits differ by" in capsys.readouterr().out
    assert onnx.load(tmp_path / "model.onnx").graph.name == "mobilenet_v2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.safetensors", "model.onnx"]


def test_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Checkpoint
) -> None:
    save_checkpoint(checkpoint, tmp_path / "c.safetensors")
    output = str(tmp_path / "absent" / "model.onnx")
    assert main(["--checkpoint", str(tmp_path / "absent"), "--output", output]) == 2
    assert main(["--checkpoint", str(tmp_path / "c.safetensors"), "--output", output]) == 3
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "no checkpoint at" in errors[0]
    assert "cannot write" in errors[1]
