"""Every network on its way to a device: quantized, halved, taken by NVIDIA's builder, built and run by the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from build_engine.lowering import lower
from build_engine.make import main
from build_engine.precision import to_float16
from build_engine.weights import choose_weights
from calibration.graph import CONVOLUTIONS, MDCONV
from calibration.insertion import insert
from calibration.placement import activations, place
from calibration.quantize import quantize
from edge.classify import NO_CAM
from edge.errors import UsageError
from edge.results import probabilities
from mdconv.checkpoint import Checkpoint, save_checkpoint
from mdconv.data.phantom import render
from mdconv.networks import NETWORKS, build, stages
from mdconv.weights import DEMO_CHECKPOINT
from tests.native.real_plugin import real_plugin
from tests.system.conftest import ROOT, run_make
from tests.system.quantized import SIZE, Phantoms, convolutions, needs_rtx, portable, taken_by_tensorrt
from tests.unit.build_engine.random_networks import randomise, run

DEPTHWISE = [name for name in NETWORKS if stages(name)]


def chances(model: onnx.ModelProto) -> NDArray[np.float64]:
    return probabilities(np.concatenate([run(model, image, "logits")[0] for image in Phantoms()]))


@needs_rtx
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_int8_agrees_with_float32_and_is_taken_by_tensorrt(tmp_path: Path, name: str) -> None:
    """As make.py does it, with MD-Conv in all stages, lowered to plain convolutions: without MD-Conv it is the same."""
    model = portable(name, stages(name))
    quantized, _ = quantize(model, Phantoms(), equalization=True, bias_correction=True)
    difference = np.abs(chances(quantized) - chances(model))
    assert difference.mean() < 0.06, "of random weights, which magnify what rounding changes"
    layers = taken_by_tensorrt(lower(quantized, "padded"), tmp_path)
    in_int8 = sum(node.op_type in CONVOLUTIONS for node in quantized.graph.node) - 1 - _on_vectors(name)
    assert convolutions(layers).count("Int8") == in_int8
    # What a shuffle moves is int8: the units of shufflenet_v2 put nothing wider together.
    wide = [layer for layer in layers if [tensor["Datatype"] for tensor in layer["Inputs"]].count("Float") > 2]
    assert not wide


def _on_vectors(name: str) -> int:
    """Convolutions on one value a channel, the last one aside: of 8 gates and of a hidden layer."""
    return 2 * 8 + 1 if name == "mobilenet_v3" else 0


@needs_rtx
def test_int8_by_the_plugin_is_taken_by_tensorrt(tmp_path: Path) -> None:
    model = portable("mobilenet_v3", stages("mobilenet_v3"))
    placement = place(model.graph)
    quantized = insert(model, placement, dict.fromkeys(activations(model.graph, placement), np.float32(0.1)))
    layers = taken_by_tensorrt(lower(quantized, "plugin"), tmp_path, plugin=real_plugin())
    plugins = [layer for layer in layers if layer["LayerType"] == "custom_layer"]
    assert len(plugins) == sum(node.op_type == MDCONV for node in quantized.graph.node) == 15
    assert {tensor["Datatype"] for layer in plugins for tensor in (layer["Inputs"][0], *layer["Outputs"])} == {"Int8"}


@needs_rtx
@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet"])
def test_float16_agrees_with_float32_and_is_taken_by_tensorrt(tmp_path: Path, name: str) -> None:
    """Three images at once, the number being known only when the engine runs."""
    model = portable(name, stages(name), batch=3)
    half = to_float16(model)
    assert 0 < np.abs(chances(half) - chances(model)).max() < 0.01
    kinds = convolutions(taken_by_tensorrt(lower(half, "split"), tmp_path, batch=3))
    assert kinds and set(kinds) == {"Half"}


def phantoms(directory: Path, count: int) -> list[Path]:
    directory.mkdir()
    paths = [directory / f"{seed}.png" for seed in range(count)]
    for seed, path in enumerate(paths):
        cv2.imwrite(str(path), render(seed, SIZE).image)
    return paths


def classify(bundle: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge", "classify", *arguments, "--bundle", bundle, "--json"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)


def test_a_network_without_activation_maps(tmp_path: Path) -> None:
    """mobilenet_v3 before any training: its bundle says what it is, answers, and why there are no maps."""
    bundle = tmp_path / "bundle"
    made = run_make(
        *("--int8", "--network", "mobilenet_v3", "--md-stages", "layer5", "--input-size", str(SIZE)),
        *("--backend", "onnxruntime", "--lowering", "padded", "--calibration-images", "8", "--output", bundle),
    )
    assert made.returncode == 0, made.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["model"]["cam"] is False
    assert manifest["model"]["notice"] == "random weights, for timing only"
    assert manifest["gate"]["verdict"] == "not assessed" and "random" in manifest["gate"]["reason"]
    repaired = manifest["calibration"]["equalization"]
    assert len(repaired["layers"]) == 8 and len(repaired["left"]) == 22, "most tensors lie behind HardSwish or gates"
    assert "equalization: " in made.stderr and "22 left as they are" in made.stderr
    with np.load(bundle / "golden.npz") as golden:
        assert sorted(golden) == ["images", "logits"]

    (image,) = phantoms(tmp_path / "images", 1)
    answer = classify(bundle, image)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["status"] == "done" and result["cam"] is None and len(result["findings"]) == 14
    with_cam = classify(bundle, image, "--cam", tmp_path / "maps")
    assert with_cam.returncode == 0
    assert json.loads(with_cam.stdout)["cam"] is None and not (tmp_path / "maps").exists()
    assert f"edge-infer: {NO_CAM}\n" in with_cam.stderr


def test_two_labels_that_exclude_each_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = ("Normal", "Pneumonia")
    network = build("mobilenet_v2", labels=2).eval()
    randomise(network)
    thresholds = dict.fromkeys(labels, 0.5)
    checkpoint = Checkpoint(
        network, "mobilenet_v2", {"labels": 2}, labels, SIZE, thresholds, "untrained, for tests", exclusive=True
    )
    save_checkpoint(checkpoint, tmp_path / "two.safetensors")
    images = phantoms(tmp_path / "images", 8)
    made = run_make(
        *("--int8", "--checkpoint", tmp_path / "two.safetensors", "--calibration-data", tmp_path / "images"),
        *("--calibration-images", "8"),
        *("--backend", "onnxruntime", "--lowering", "padded", "--output", tmp_path / "bundle"),
        *("--no-equalization", "--no-bias-correction"),
    )
    assert made.returncode == 0, made.stderr
    calibration = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["calibration"]
    assert calibration["equalization"] is None and calibration["bias_correction"] is None
    assert "equalization: switched off" in made.stderr and "bias correction: switched off" in made.stderr
    answer = classify(tmp_path / "bundle", images[0], "--cam", tmp_path / "maps")
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    chances = [result["findings"][label]["probability"] for label in labels]
    assert sum(chances) == pytest.approx(1, abs=1e-5), "one of the two holds"
    assert [result["findings"][label]["positive"] for label in labels] == [chance >= 0.5 for chance in chances]
    assert np.load(result["cam"]["array"]).shape == (2, 2, 2)


def test_network_options_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["--network", "vgg"], "--network vgg: expected one of mobilenet"),
        (["--md-stages", "all"], "--md-stages without --network"),
        (["--network", "mobilenet", "--md-stages", "layer7"], "mobilenet has no stage 'layer7'"),
        (["--network", "resnet50", "--md-stages", "layer1"], "resnet50 has no stage"),
        (["--checkpoint", str(DEMO_CHECKPOINT), "--network", "resnet50"], "--network asks for resnet50: leave"),
        (
            ["--checkpoint", str(DEMO_CHECKPOINT), "--network", "mobilenet_v2", "--md-stages", "none"],
            "is mobilenet_v2 with MD-Conv in layer5, --network asks for mobilenet_v2 with MD-Conv in no stage",
        ),
    ):
        assert main([*arguments, "--output", str(tmp_path / "none")]) == 2
        assert said in capsys.readouterr().err


def test_a_checkpoint_that_does_not_name_its_stages_has_the_networks_own(tmp_path: Path) -> None:
    network = build("shufflenet_v2", labels=2, width=0.5)
    labels = ("a", "b")
    checkpoint = Checkpoint(
        network, "shufflenet_v2", {"labels": 2, "width": 0.5}, labels, SIZE, dict.fromkeys(labels, 0.5), "untrained"
    )
    save_checkpoint(checkpoint, tmp_path / "own.safetensors")
    assert not choose_weights(tmp_path / "own.safetensors", "shufflenet_v2", "layer2").random
    with pytest.raises(UsageError, match="with MD-Conv in layer2, --network asks for shufflenet_v2 with MD-Conv in no"):
        choose_weights(tmp_path / "own.safetensors", "shufflenet_v2", "none")
    with pytest.raises(UsageError, match="is shufflenet_v2 with MD-Conv in layer2, --network asks for mobilenet: "):
        choose_weights(tmp_path / "own.safetensors", "mobilenet", None)


def test_the_demo_checkpoint_is_taken_where_it_is_what_is_asked_for() -> None:
    demo = choose_weights(None, None, None)
    for network, md_stages in (("mobilenet_v2", None), ("mobilenet_v2", "layer5")):
        assert choose_weights(None, network, md_stages).checkpoint.sha256 == demo.checkpoint.sha256
    other = choose_weights(None, "mobilenet_v2", "all")
    assert other.random and not choose_weights(None, "resnet50", "none").checkpoint.config.get("md_stages")
    assert other.checkpoint.notice == "random weights, for timing only"
