"""Training in real processes: killed and taken up again, interrupted, and several that train together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mdconv.checkpoint import load_checkpoint
from mdconv.data.augment import source_size
from mdconv.data.phantom import TRAIN_SEEDS, VALIDATION_SEEDS
from mdconv.data.phantom.sets import phantom_cases
from mdconv.train import VALIDATION_PHANTOMS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

SLOW_TRAINING = """
import sys, time, torch
from dataclasses import dataclass
from pathlib import Path
from mdconv.training import Recipe, fit
from tests.unit.mdconv.squares import Squares, squares

torch.set_num_threads(1)
config = {"labels": 3, "md_stages": ("layer2",), "kernel_sizes": (3, 5), "ratios": (1, 1), "width": 0.5}
recipe = Recipe(size=32, epochs=2, batch=8, learning_rate=1e-3, precision="float32")

class Slow(Squares):
    def read(self, index, size):
        time.sleep(float(sys.argv[2]))
        return super().read(index, size)

cases = Slow(**vars(squares(64, 1)))
fit("shufflenet_v2", config, cases, squares(32, 2), recipe, Path(sys.argv[1]), save_seconds=0)
"""

SHARED_TRAINING = """
import sys, torch
from pathlib import Path
from mdconv import trainer
from mdconv.distributed import join_world
from mdconv.training import Recipe, fit
from tests.unit.mdconv.squares import squares

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
in_float32 = trainer.normalise
trainer.normalise = lambda images, channels: in_float32(images, channels).double()
recipe = Recipe(size=32, epochs=8, batch=8, learning_rate=3e-4, patience=0, precision="float32")
with join_world() as world:
    fit("mobilenet_v2", {"labels": 3}, squares(8, 1), squares(33, 2), recipe, Path(sys.argv[1]), world=world)
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
    )


def wait_until(process: subprocess.Popen[str], path: Path) -> None:
    """Until `path` exists, which `process` is to write."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_killed_in_mid_epoch_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit those of a training that nobody killed."""
    whole = start("-c", SLOW_TRAINING, str(tmp_path / "whole"), "0")
    killed = start("-c", SLOW_TRAINING, str(tmp_path / "parts"), "0.05")
    wait_until(killed, tmp_path / "parts" / "state.pt")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    progress = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)["progress"]
    assert progress["epoch"] == 0 and 1 <= progress["step"] < 8
    finish(whole)
    finish(start("-c", SLOW_TRAINING, str(tmp_path / "parts"), "0"))
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts")]
    assert states[0]["progress"]["finished"] and states[1]["progress"]["finished"]
    for part in ("model", "optimiser"):
        assert_same(states[0][part], states[1][part])
    one, other = (load_checkpoint(tmp_path / name / "best.safetensors").model for name in ("whole", "parts"))
    assert_same(one.state_dict(), other.state_dict())


def assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor) and torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert one == other


def torchrun(*words: str) -> subprocess.Popen[str]:
    return start("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words)


def test_two_processes_train_as_one_does_with_the_whole_batch(tmp_path: Path) -> None:
    """Half of each batch in each: batch norm sums over both, and each draws its part of the one dropout mask.

    In float64, where sums in another order differ by 1e-15: Adam divides a gradient by its own size, so that in
    float32 one that is zero but for its last digits moves a weight as far as any other.
    """
    script = tmp_path / "train.py"
    script.write_text(SHARED_TRAINING)
    pair = torchrun(str(script), str(tmp_path / "two"))
    finish(start(str(script), str(tmp_path / "one")))
    finish(pair)
    one, two = (history_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 8
    assert one[0]["loss"] - one[-1]["loss"] > 0.01  # it moved
    for alone, together in zip(one, two):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-7)
        assert together["mean_auc"] == pytest.approx(alone["mean_auc"], abs=1e-3)
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["model"] for name in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.allclose(states[0][name], states[1][name], rtol=0, atol=1e-6) for name in states[0])


def history_of(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def test_ctrl_c_says_how_to_go_on_and_more_processes_may_do_so(tmp_path: Path) -> None:
    for seeds in (TRAIN_SEEDS[:24], VALIDATION_SEEDS[:VALIDATION_PHANTOMS]):
        phantom_cases(seeds, source_size(32), tmp_path / "phantoms")
    output = tmp_path / "output"
    words = ["-m", "mdconv.train", "--phantoms", "24", "--size", "32", "--batch", "8", "--epochs", "4"]
    words += ["--network", "shufflenet_v2", "--cache", str(tmp_path / "phantoms"), "--output", str(output)]
    one = start(*words)
    wait_until(one, output / "state.pt")
    one.send_signal(signal.SIGINT)
    printed, errors = one.communicate(timeout=120)
    assert one.returncode == 130 and "Traceback" not in errors
    assert f"interrupted; to go on: python {' '.join(words)}" in errors
    before = history_of(output)
    assert 1 <= len(before) < 4
    two = torchrun(*words)
    printed, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors
    assert history_of(output)[: len(before)] == before and len(history_of(output)) == 4
    assert printed.count("validation mean AUC") == 1  # one of the processes speaks
    assert "seed 0" in (output / "CARD.md").read_text()
    assert load_checkpoint(output / "best.safetensors").notice in printed
