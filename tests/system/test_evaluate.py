"""The demo network as checkpoint, float32 bundle and INT8 bundle, judged on the same phantoms by one command."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.labels import CHESTXRAY14
from mdconv.weights import DEMO_CHECKPOINT

PHANTOMS = 24


def read(table: Path) -> np.ndarray:
    """Probabilities (N, 14)."""
    with table.open(newline="") as file:
        return np.array([[float(row[label]) for label in CHESTXRAY14] for row in csv.DictReader(file)])


def test_a_network_is_judged_alike_in_each_of_its_forms(fp32_bundle: Path, int8_bundle: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-m", "mdconv.evaluate", "--phantoms", str(PHANTOMS)]
    command += ["--output", tmp_path, "--json"]
    for model in (DEMO_CHECKPOINT, fp32_bundle, int8_bundle):
        command += ["--model", model]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    checkpoint, fp32, _ = result["models"]
    assert [(model["kind"], model["precision"]) for model in result["models"]] == [
        ("checkpoint", "fp32"),
        ("bundle", "fp32"),
        ("bundle", "int8"),
    ]
    assert fp32["auc"] == pytest.approx(checkpoint["auc"], abs=1e-9)
    assert fp32["auc_interval"].keys() == checkpoint["auc_interval"].keys() == checkpoint["auc"].keys()
    for label, interval in checkpoint["auc_interval"].items():
        assert fp32["auc_interval"][label] == pytest.approx(interval, abs=1e-9)
    same, quantized = result["differences"]
    assert same["mean_auc_difference"] == pytest.approx(0, abs=1e-9)
    assert same["interval"] == pytest.approx([0, 0], abs=1e-9)
    low, high = quantized["interval"]
    assert low <= quantized["mean_auc_difference"] <= high and -0.05 < low < high < 0.05

    reference, bundled, rounded = (read(tmp_path / f"model-{number}-predictions.csv") for number in (1, 2, 3))
    assert reference.shape == (PHANTOMS, 14)
    np.testing.assert_allclose(bundled, reference, atol=1e-4)
    assert 0 < np.abs(rounded - reference).mean() < 0.05
    assert result["notice"] == "synthetic phantoms, research use only"
    assert result["notice"] in (tmp_path / "model-3-roc.svg").read_text()
