"""Quantization-aware training against the INT8 model itself, run by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from build_engine.bundle_writer import write_manifest
from build_engine.export import to_onnx
from calibration.insertion import insert, quantize_weight
from calibration.placement import place
from calibration.quantize import quantize
from edge.bundle import CALIBRATION, GOLDEN, sha256_of
from edge.errors import BundleError, UsageError
from edge.preprocess import Preprocess
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.networks import build, normalise
from mdconv.qat import FakeQuantized, Scales, fake_quantize_weight, read_scales, scales_of
from mdconv.recipe import Recipe
from mdconv.training import fit
from tests.unit.mdconv.squares import squares

LABELS = ("Upper", "Lower", "Bright")
SMALL = {"labels": 3, "md_stages": ("layer2",), "kernel_sizes": (3, 5), "ratios": (1, 1), "width": 0.5}


@dataclass(frozen=True)
class Images:
    """What `quantize` calibrates on."""

    pixels: NDArray[np.uint8]
    digest: str = "the test's own"

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (image[None] for image in self.pixels)


def run(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (N, L), computed node by node as the model says: optimisations would round elsewhere."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])


def patches(count: int, size: int) -> NDArray[np.uint8]:
    """Images that differ much from each other, so that batch norm does not magnify what they share."""
    rng = np.random.default_rng(2)
    coarse = [rng.integers(0, 256, (3 + number, 3 + number), np.uint8) for number in range(count)]
    return np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_NEAREST) for one in coarse])[:, None]


def random_network(name: str, images: NDArray[np.uint8]) -> Any:
    """Random weights, batch norm's statistics those of `images`, outputs that differ from image to image."""
    torch.manual_seed(1)
    network = build(name, labels=3).train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches so far: of one
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    with torch.no_grad():
        network(normalise(torch.from_numpy(images)))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "equalization"),
    [
        ("mobilenet_v2", False),
        ("mobilenet_v3", False),
        ("shufflenet", False),
        ("densenet121", False),
        ("mobilenet_v2", True),
        ("shufflenet", True),
    ],
)
def test_it_computes_what_the_int8_model_computes(
    name: str, equalization: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digits, on most images; on the others one value of many thousands fell on the other side of a
    rounding, since no two programs add up alike. Biases are not rounded to whole steps here, as they are not there."""
    monkeypatch.setattr("calibration.quantize.make_biases_whole", lambda model: None)
    images = patches(6, 32)
    network = random_network(name, images)
    model = to_onnx(Checkpoint(network, name, {}, LABELS, 32, {}, ""))
    quantized, record = quantize(model, Images(images), equalization=equalization)
    scales = scales_of(record)
    assert any(any(channels) for channels in scales.doublings.values()) == equalization
    fake = FakeQuantized(network, scales).eval()
    with torch.inference_mode():
        ours = fake(normalise(torch.from_numpy(images))).numpy()
        exact = network(normalise(torch.from_numpy(images))).numpy()
    int8 = run(quantized, images)
    apart = np.abs(ours - int8).max(axis=1)
    lost = np.abs(exact - int8).max(axis=1)
    assert (apart < 1e-4 * np.abs(int8).max()).sum() >= 2, apart
    assert (lost > 1e-2 * np.abs(int8).max()).all() and apart.mean() < 0.25 * lost.mean()


def test_gradients_pass_roundings_within_range_and_no_others() -> None:
    network = random_network("mobilenet_v2", patches(4, 32)).train()
    layer = network.stem[0]
    scales = Scales(weighted={"stem": 0.05}, skips={}, whole={})
    fake = FakeQuantized(network, scales).train()
    stem = fake.features.get_submodule("stem_0_quantized")
    x = torch.linspace(-12, 12, 3 * 32 * 32).reshape(1, 1, 32, 96)[..., :32].contiguous().requires_grad_()
    stem(x).sum().backward()
    within = (x.detach() / 0.05).round().clamp(-128, 127) == (x.detach() / 0.05).round()
    assert x.grad is not None and (x.grad[~within] == 0).all() and (x.grad[within] != 0).all()
    assert 100 < int(within.sum()) < 900
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    assert {id(one) for one in fake.parameters()} == {id(one) for one in network.parameters()}
    statistics = network.stem[1].running_mean.clone()
    fake(normalise(torch.from_numpy(patches(4, 32))))
    assert torch.equal(network.stem[1].running_mean, statistics)  # frozen, in training too


def test_a_weight_is_rounded_as_calibration_does_it() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    codes, scales = quantize_weight(weight)
    assert np.array_equal(fake_quantize_weight(torch.from_numpy(weight)).numpy(), codes * scales.reshape(-1, 1, 1, 1))


def test_scales_of_another_network_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no layer 'layer9\.0\.expand'.*of another network"):
        FakeQuantized(build("mobilenet_v2", labels=3), Scales({"stem": 0.1, "layer9.0.expand": 0.1}, {}, {}))


def test_fine_tuning_makes_the_int8_model_better(tmp_path: Path) -> None:
    """With scales that are much too coarse the INT8 model is bad; after fine-tuning for them it is much better."""
    sets = squares(160, seed=1), squares(48, seed=2)
    recipe = Recipe(size=32, epochs=7, batch=16, learning_rate=8e-3, warm_up_steps=5, augment=False)
    trained = fit("shufflenet_v2", SMALL, *sets, recipe, tmp_path / "float").checkpoint
    images = np.stack([sets[0].read(index, 32) for index in range(160)])[:, None]
    truth = sets[0].truth
    _, record = quantize(to_onnx(load_checkpoint(trained)), Images(images[:16]))
    for tensor in record["tensors"].values():
        tensor["scale"] *= 20

    def int8_loss(path: Path) -> float:
        """Of weights `path` on the training images."""
        model = to_onnx(load_checkpoint(path))
        scales = {name: np.float32(tensor["scale"]) for name, tensor in record["tensors"].items()}
        logits = run(insert(model, place(model.graph), scales), images).astype(np.float64)
        return float(np.mean(np.logaddexp(0, np.where(truth, -logits, logits))))

    tuning = replace(recipe, epochs=3, learning_rate=3e-3, warm_up_steps=0)
    after = fit(
        "shufflenet_v2", SMALL, *sets, tuning, tmp_path / "tuned", initial=trained, scales=scales_of(record)
    ).checkpoint
    assert int8_loss(after) < 0.6 * int8_loss(trained)
    tuned = load_checkpoint(after)
    assert tuned.card["quantization_aware"] and tuned.card["recipe"]["precision"] == "float32"
    one, other = load_checkpoint(trained).model.state_dict(), tuned.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one if "running" in name)
    to_onnx(tuned)  # a checkpoint like any other


def test_scales_come_from_a_bundle_of_these_weights(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    network = build("shufflenet_v2", **SMALL).eval()
    checkpoint = Checkpoint(network, "shufflenet_v2", SMALL, LABELS, 32, dict.fromkeys(LABELS, 0.5), "for tests")
    save_checkpoint(checkpoint, path)
    quantized, record = quantize(to_onnx(checkpoint), Images(patches(2, 32)))

    def bundle(name: str, record: dict[str, Any], **changes: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        onnx.save(quantized, directory / "model.int8.onnx")
        onnx.save(quantized, directory / "model.onnx")
        np.savez(directory / GOLDEN)
        (directory / CALIBRATION).write_text(json.dumps(record))
        facts: dict[str, Any] = {
            "name": name,
            "model": {
                "network": "shufflenet_v2",
                "input_size": 32,
                "batch": 1,
                "labels": list(LABELS),
                "thresholds": dict.fromkeys(LABELS, 0.5),
                "notice": "for tests",
                "weights_sha256": sha256_of(path),
            },
            "preprocess": Preprocess(32).to_manifest(),
            "precision": "int8",
            "lowering": {"kind": "padded"},
            "backend": "onnxruntime",
            "platform": {},
            "calibration": {},
            "gate": {"verdict": "not assessed"},
        }
        write_manifest(directory, {**facts, **changes})
        return directory

    assert read_scales(bundle("good", record), path) == scales_of(record)
    with pytest.raises(UsageError, match="needs the scales of an int8 one"):
        read_scales(bundle("float", record, precision="fp32"), path)
    with pytest.raises(BundleError, match="does not say where it rounds"):
        read_scales(bundle("old", {"tensors": {}}), path)
    other = tmp_path / "other.safetensors"
    save_checkpoint(replace(checkpoint, notice="other"), other)
    with pytest.raises(UsageError, match=r"was not built from .*other\.safetensors"):
        read_scales(tmp_path / "good", other)
