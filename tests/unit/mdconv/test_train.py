"""The training command: data sets, what it writes, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge.labels import CHESTXRAY14
from mdconv import train
from mdconv.checkpoint import load_checkpoint
from mdconv.train import main
from tests.unit.mdconv.squares import write_children

VALIDATED_ON = "phantoms 1000000 to 1000039"
RUN = ["--size", "32", "--batch", "8", "--epochs", "1", "--workers", "0", "--network", "shufflenet_v2"]


@pytest.fixture(scope="module")
def kermany(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_children(tmp_path_factory.mktemp("kermany"))


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and the one line of its error."""
    status = main(words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return status, error


def test_a_data_set_by_its_folder(kermany: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "kind"
    words = ["--chestxray2017", str(kermany), "--task", "kind", "--output", str(output), "--md-stages", "layer0,layer1"]
    assert main([*words, "--kernel-sizes", "3,5,7", "--ratios", "2,1,1", *RUN]) == 0
    printed = capsys.readouterr().out
    assert "epoch 1 of 1 was best" in printed and "research use only" in printed
    checkpoint = load_checkpoint(output / "best.safetensors")
    assert checkpoint.labels == ("Bacterial", "Viral") and checkpoint.exclusive and checkpoint.input_size == 32
    config = {"labels": 2, "md_stages": ["layer0", "layer1"], "kernel_sizes": [3, 5, 7], "ratios": [2, 1, 1]}
    assert checkpoint.config == config
    name, count = checkpoint.card["data"]["train"]
    assert name == "chestxray2017 kind train" and count + checkpoint.card["data"]["validation"][1] == 120
    assert checkpoint.card["command"].startswith(f"python -m mdconv.train --chestxray2017 {kermany}")
    card = (output / "CARD.md").read_text("utf-8")
    assert "Kermany" in card and "cross-entropy" in card and "kernels 3 x 3, 5 x 5, 7 x 7, ratios 2:1:1" in card

    # From there, by the network that the checkpoint says.
    again = ["--chestxray2017", str(kermany), "--task", "kind", "--initial", str(output / "best.safetensors")]
    again += ["--epochs", "1", "--batch", "8", "--workers", "0"]
    assert main([*again, "--output", str(tmp_path / "again")]) == 0
    tuned = load_checkpoint(tmp_path / "again" / "best.safetensors")
    assert (tuned.network, tuned.config, tuned.input_size) == ("shufflenet_v2", config, 32)
    status, error = fails([*again, "--md-stages", "none", "--output", str(tmp_path / "c")], capsys)
    assert status == 2 and "--md-stages: with --initial the checkpoint says what the network is" in error
    status, error = fails([*again, "--task", "pneumonia", "--output", str(tmp_path / "d")], capsys)
    assert status == 2 and "expected shufflenet_v2 for Normal, Pneumonia" in error


def test_a_corrupt_image_ends_it_by_name(kermany: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kermany / "train" / "PNEUMONIA" / "person7_bacteria_7.jpeg"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 3])
        words = ["--chestxray2017", str(kermany), "--output", str(tmp_path / "out"), *RUN]
        status, error = fails(words, capsys)
    finally:
        path.write_bytes(whole)
    assert status == 1 and "person7_bacteria_7.jpeg" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--size", "64"], "--size needs a data set"),
        (["--skip-missing"], "--skip-missing is about the images of --chestxray14"),
        (["--md-stages", "layer9"], "--md-stages: mobilenet_v2 has no stage 'layer9'"),
        (["--phantoms", "4", "--skip-missing"], "--skip-missing is about the images of --chestxray14"),
        (["--qat", "bundle"], "--qat needs a data set"),
        (["--phantoms", "0"], "--phantoms 0: expected 1 to"),
        (["--phantoms", "9", "--task", "kind"], "--task is ChestX-ray2017's"),
        (["--phantoms", "9", "--qat", "bundle"], "name it with --initial"),
        (["--phantoms", "9", "--md-stages", "layer9"], "--md-stages: mobilenet_v2 has no stage 'layer9'"),
        (["--phantoms", "9", "--network", "resnet50", "--ratios", "1,1"], "resnet50 has no depthwise layers"),
        (["--phantoms", "9", "--initial", "nothing"], "no checkpoint at nothing"),
        (["--chestxray14", "nowhere"], "nowhere"),
        (["--chestxray2017", "nowhere"], "nowhere"),
    ],
)
def test_wrong_use_is_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = fails([*words, "--output", str(tmp_path / "x")], capsys)
    assert status == 2 and expected in error
    assert not (tmp_path / "x").exists()


def test_the_demo_s_checkpoint_needs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, error = fails(["--output", str(tmp_path / "nowhere" / "x.safetensors")], capsys)
    assert status == 2 and "make it first" in error


def test_an_output_that_cannot_be_written(kermany: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    words = ["--chestxray2017", str(kermany), "--output", str(tmp_path / "file" / "out"), *RUN]
    status, error = fails(words, capsys)
    assert status == 3 and "cannot write" in error


def test_phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "VALIDATION_PHANTOMS", 40)
    output = tmp_path / "out"
    assert main(["--phantoms", "16", "--cache", str(tmp_path / "cache"), "--output", str(output), *RUN]) == 0
    (record,) = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert record["epoch"] == 1 and 0 < record["loss"] < 2 and record["images_per_second"] > 0
    checkpoint = load_checkpoint(output / "best.safetensors")
    assert checkpoint.labels == CHESTXRAY14 and checkpoint.notice == "synthetic phantoms, research use only"
    assert checkpoint.card["data"] == {"train": ["phantoms 0 to 15", 16], "validation": [VALIDATED_ON, 40]}
    assert len(list((tmp_path / "cache").glob("*-37.npy"))) == 2  # rendered at 8/7 of the size, to be cropped


def test_the_command_has_help() -> None:
    done = subprocess.run([sys.executable, "-m", "mdconv.train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--chestxray14" in done.stdout
