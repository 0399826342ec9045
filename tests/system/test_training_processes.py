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
from mdconv.train import main
from tests.unit.mdconv.squares import write_children

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

SLOW_TRAINING = """
import sys, time, torch
from dataclasses import dataclass
from pathlib import Path
from mdconv.training import Recipe, fit
from mdconv.train import main
from tests.unit.mdconv.squares import Squares, squares

torch.set_num_threads(1)
config = {"labels": 3, "md_stages": ("layer2",), "kernel_sizes": (3, 5), "ratios": (1, 1), "width": 0.5}
recipe = Recipe(size=32, epochs=2, batch=8, learning_rate=1e-3, precision="float32")

class Slow(Squares):
    def read(self, index, size):
        time.sleep(float(sys.argv[1]))
        return super().read(index, size)

for directory in sys.argv[2:]:
    cases = Slow(**vars(squares(64, 1)))
    fit("shufflenet_v2", config, cases, squares(32, 2), recipe, Path(directory), save_seconds=0)
"""

SHARED_TRAINING = """
import sys, torch
from pathlib import Path
from mdconv import trainer
from mdconv.distributed import join_world
from mdconv.training import Recipe, fit
from mdconv.train import main
from tests.unit.mdconv.squares import squares

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
in_float32 = trainer.normalise
trainer.normalise = lambda images, channels: in_float32(images, channels).double()
recipe = Recipe(size=32, epochs=6, batch=8, learning_rate=3e-4, patience=0, precision="float32")
with join_world() as world:
    cases = world.in_turn(lambda: squares(8, 1))
    for directory, steps in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
        count = iter(range(1, steps))
        try:
            fit(
                "mobilenet_v2", {"labels": 3}, cases, squares(33, 2), recipe, Path(directory),
                world=world, stop=lambda: next(count, None) is None,
            )
        except KeyboardInterrupt:
            pass
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
    killed = start("-c", SLOW_TRAINING, "0.05", str(tmp_path / "parts"))
    wait_until(killed, tmp_path / "parts" / "state.pt")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    progress = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)["progress"]
    assert progress["epoch"] == 0 and 1 <= progress["step"] < 8
    finish(start("-c", SLOW_TRAINING, "0", str(tmp_path / "parts"), str(tmp_path / "whole")))
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
    """They take up what one began, half of each batch in each: batch norm sums over both, and each draws its part of
    the one dropout mask.

    In float64, where sums in another order differ by 1e-15: Adam divides a gradient by its own size, so that in
    float32 one that is zero but for its last digits moves a weight as far as any other.
    """
    script = tmp_path / "train.py"
    script.write_text(SHARED_TRAINING)
    finish(start(str(script), str(tmp_path / "one"), "1000", str(tmp_path / "two"), "2"))
    assert len(history_of(tmp_path / "two")) == 1
    finish(torchrun(str(script), str(tmp_path / "two"), "1000"))
    one, two = (history_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 6
    assert one[0]["loss"] - one[-1]["loss"] > 0.01  # it moved
    for alone, together in zip(one, two):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert together["mean_auc"] == pytest.approx(alone["mean_auc"], abs=1e-3)
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["model"] for name in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.allclose(states[0][name], states[1][name], rtol=0, atol=1e-6) for name in states[0])


def history_of(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, output = write_children(tmp_path / "images"), tmp_path / "output"
    words = ["--chestxray2017", str(images), "--size", "32", "--batch", "32", "--epochs", "6", "--workers", "0"]
    words += ["--network", "shufflenet", "--output", str(output)]
    one = start("-m", "mdconv.train", *words)
    wait_until(one, output / "state.pt")
    one.send_signal(signal.SIGINT)
    _, errors = one.communicate(timeout=120)
    assert one.returncode == 130 and "Traceback" not in errors
    assert f"interrupted; the same command goes on: python -m mdconv.train {' '.join(words)}" in errors
    before = history_of(output)
    assert 1 <= len(before) < 6
    assert main(words) == 0
    assert history_of(output)[: len(before)] == before and len(history_of(output)) == 6
    assert "validation mean AUC" in capsys.readouterr().out
