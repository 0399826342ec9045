"""Every network as ONNX against PyTorch: with and without MD-Conv, any number of outputs, one image or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from build_engine.export import PARITY_LIMIT, check_parity, export_onnx, has_cam, to_onnx
from build_engine.lowering import kept_padded, lower
from calibration.graph import MDCONV, attributes
from calibration.insertion import insert
from calibration.placement import activations, place
from edge.errors import UsageError
from edge.results import probabilities
from mdconv.checkpoint import Checkpoint
from mdconv.layers import MDConv
from mdconv.networks import NETWORKS, build, log_odds, normalise, stages
from tests.unit.build_engine.random_networks import random_images, randomise, run

DEPTHWISE = [name for name in NETWORKS if stages(name)]
VARIANTS: list[tuple[str, tuple[str, ...] | None]] = [
    (name, placed) for name in DEPTHWISE for placed in ((), stages(name))
]
VARIANTS += [(name, None) for name in NETWORKS if name not in DEPTHWISE]


def checkpoint_of(name: str, md_stages: tuple[str, ...] | None, labels: tuple[str, ...], size: int = 64) -> Checkpoint:
    torch.manual_seed(5)
    config = {"labels": len(labels), **({} if md_stages is None else {"md_stages": md_stages})}
    network = build(name, **config)
    randomise(network)
    thresholds = dict.fromkeys(labels, 0.5)
    return Checkpoint(
        network.eval(), name, config, labels, size, thresholds, "random weights", {}, "", len(labels) == 2
    )


@pytest.mark.parametrize(("name", "md_stages"), VARIANTS, ids=str)
def test_equals_pytorch(tmp_path: Path, name: str, md_stages: tuple[str, ...] | None) -> None:
    checkpoint = checkpoint_of(name, md_stages, tuple(f"finding {i}" for i in range(14)))
    export_onnx(checkpoint, tmp_path / "model.onnx", batch=3)
    images = random_images(3, 64)
    parity = check_parity(checkpoint, tmp_path / "model.onnx", images)
    assert (parity.cam is None) == (name == "mobilenet_v3")
    model = onnx.load(tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = checkpoint.model(normalise(torch.from_numpy(images))).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1  # else the outputs would agree whatever the graph does to the image
    together = run(model, images, "logits")[0]
    np.testing.assert_allclose(together, expected, atol=PARITY_LIMIT * max(1, np.abs(expected).max()))
    written = sum(node.op_type == MDCONV for node in model.graph.node)
    assert written == sum(isinstance(layer, MDConv) for layer in checkpoint.model.modules())
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["network"] == name and "finding 3" in facts["thresholds"]


@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet", "shufflenet_v2"])
@pytest.mark.parametrize("kind", ["padded", "split"])
def test_lowered_forms_are_equal(name: str, kind: str) -> None:
    model = to_onnx(checkpoint_of(name, stages(name), ("a", "b", "c")))
    images = random_images(1, 64)
    lowered = lower(model, kind)
    assert not any(node.op_type == MDCONV for node in lowered.graph.node)
    np.testing.assert_allclose(run(lowered, images, "logits")[0], run(model, images, "logits")[0], atol=1e-3)


def test_mixed_activations_stay_nodes_of_their_own() -> None:
    """One model has one MDConv function: mobilenet_v3, which has ReLU and hardswish behind them, has them outside."""
    model = to_onnx(checkpoint_of("mobilenet_v3", stages("mobilenet_v3"), ("a", "b", "c")))
    assert len(model.functions) == 1
    kinds = {attributes(node)["activation"] for node in model.graph.node if node.op_type == MDCONV}
    assert kinds == {"none"}


@pytest.mark.parametrize(
    ("name", "whole", "scales"),
    [
        (
            "mobilenet_v3",
            {f"layer{stage}.{i}.depthwise" for stage, count in ((2, 3), (4, 2), (5, 3)) for i in range(count)},
            0,
        ),
        (
            "shufflenet_v2",
            {f"layer{stage}.{i}.cat" for stage, count in ((0, 4), (1, 8), (2, 4)) for i in range(count)},
            3,
        ),
    ],
)
def test_the_plugin_can_have_every_quantized_layer(name: str, whole: set[str], scales: int) -> None:
    """What squeezes and excites is quantized, and each stage's row of shuffle units has one scale."""
    model = to_onnx(checkpoint_of(name, stages(name), ("a", "b", "c")))
    placement = place(model.graph)
    assert {tensor.removesuffix(".relu").removesuffix(".hardswish") for tensor in placement.whole} == whole
    assert len(placement.tied) == scales
    quantized = insert(model, placement, dict.fromkeys(activations(model.graph, placement), np.float32(0.1)))
    assert kept_padded(model) == kept_padded(quantized) == {}
    lowered = lower(quantized, "plugin")
    onnx.checker.check_model(lowered, full_check=True)
    assert all("y_scale" in attributes(node) for node in lowered.graph.node if node.op_type == MDCONV)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3"])
def test_two_exclusive_labels_leave_as_log_odds(tmp_path: Path, name: str) -> None:
    checkpoint = checkpoint_of(name, (), ("Normal", "Pneumonia"))
    assert checkpoint.exclusive
    images = random_images(2, 64)
    export_onnx(checkpoint, tmp_path / "model.onnx")
    check_parity(checkpoint, tmp_path / "model.onnx", images)
    logits = np.concatenate([run(onnx.load(tmp_path / "model.onnx"), image[None], "logits")[0] for image in images])
    with torch.inference_mode():
        outputs = checkpoint.model(normalise(torch.from_numpy(images)))
    np.testing.assert_allclose(probabilities(logits), torch.softmax(outputs, dim=1).numpy(), atol=1e-4)
    np.testing.assert_allclose(logits, log_odds(outputs, exclusive=True).numpy(), atol=1e-3)
    if has_cam(checkpoint):
        cam = run(onnx.load(tmp_path / "model.onnx"), images[:1], "cam")[0]
        bias = checkpoint.model.get_parameter("classifier.bias").detach().numpy()
        np.testing.assert_allclose(cam.mean(axis=(2, 3))[0], logits[0] - (bias - bias[::-1]), atol=1e-3)


def test_more_than_two_exclusive_labels_are_refused() -> None:
    checkpoint = checkpoint_of("mobilenet_v2", (), ("a", "b"))
    network = build("mobilenet_v2", labels=3)
    three = Checkpoint(network, "mobilenet_v2", {}, ("a", "b", "c"), 64, {}, "", exclusive=True)
    assert to_onnx(checkpoint)
    with pytest.raises(UsageError, match="3 labels that exclude each other"):
        to_onnx(three)
