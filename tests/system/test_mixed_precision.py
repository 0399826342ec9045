"""Mixed precision as a user meets it: one layer that INT8 ruins is found, left in float16, and the build passes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from calibration.graph import CONVOLUTIONS
from edge.bundle import load_bundle
from mdconv.checkpoint import load_checkpoint, save_checkpoint
from mdconv.data.phantom.folder import write_folder
from mdconv.weights import DEMO_CHECKPOINT
from tests.system.conftest import run_make

SIZE = 64
RUINED = "layer4.1.depthwise"
BACKEND = "tensorrt-rtx" if importlib.util.find_spec("tensorrt_rtx") else "onnxruntime"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """Those of a build whose layer `RUINED` reads channels of very different size, with repairs switched off."""
    directory = tmp_path_factory.mktemp("ruined")
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    block: Any = checkpoint.model.get_submodule(RUINED.rpartition(".")[0])
    channels = block.expand[0].out_channels
    factors = torch.from_numpy(10 ** np.random.default_rng(0).uniform(-3.5, 0, channels).astype(np.float32))
    with torch.no_grad():
        block.expand[1].weight *= factors
        block.expand[1].bias *= factors
        for parameter in block.depthwise[0].parameters():
            parameter /= factors.reshape(-1, 1, 1, 1)[: len(parameter)]
    save_checkpoint(checkpoint, directory / "ruined.safetensors")
    write_folder(directory / "calibration", 16, 4_700_000, SIZE)
    write_folder(directory / "gate", 24, 4_800_000, SIZE)
    return [
        *("--int8", "--checkpoint", directory / "ruined.safetensors", "--input-size", str(SIZE)),
        *("--calibration-data", directory / "calibration", "--gate-data", directory / "gate", "--lowering", "padded"),
        *("--no-equalization", "--no-bias-correction", "--max-auc-drop", "1", "--max-sensitivity-drop", "1"),
        *("--max-changed-decisions", "1", "--max-mean-difference", "0.02", "--backend", BACKEND),
    ]


def test_the_layer_is_left_in_float16_and_the_build_passes(options: list[str | Path], tmp_path: Path) -> None:
    made = run_make(*options, "--output", tmp_path / "bundle")
    assert made.returncode == 0, made.stderr
    bundle = load_bundle(tmp_path / "bundle")
    plan = bundle.manifest["mixed_precision"]
    assert plan["left"] == [RUINED] and plan["of"] == len(plan["layers"])
    assert max(plan["layers"], key=lambda layer: plan["layers"][layer]["mean_difference"]) == RUINED
    assert bundle.manifest["gate"]["verdict"] == "pass"
    assert f"left in float16: {RUINED}" in made.stderr

    calibration = json.loads((bundle.directory / "calibration.json").read_text())
    assert RUINED not in calibration["placement"]["weighted"]
    model = onnx.load(bundle.directory / "model.int8.padded.onnx")
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    half = [n.name for n in model.graph.node if n.op_type in CONVOLUTIONS and types.get(n.output[0]) == 10]
    assert half == [RUINED]
    if BACKEND == "tensorrt-rtx":
        layers = [layer for layer in bundle.manifest["platform"]["layers"] if layer["LayerType"] == "correlation"]
        kinds = [layer["Inputs"][0]["Datatype"] for layer in layers]
        assert kinds.count("Half") == 1 and kinds.count("Int8") == plan["of"] - 1 - len(_additions(plan))
    report = json.loads((bundle.directory / "report.json").read_text())
    assert [row["layer"] for row in report["precisions"]["rows"] if row["precision"] == "float16"] == [RUINED]


def _additions(plan: dict[str, Any]) -> list[str]:
    return [layer for layer in plan["layers"] if layer.endswith(".add")]


def test_switched_off_the_build_fails(options: list[str | Path], tmp_path: Path) -> None:
    made = run_make(*options, "--mixed-precision", "off", "--output", tmp_path / "bundle")
    assert made.returncode == 3
    assert not (tmp_path / "bundle").exists()
