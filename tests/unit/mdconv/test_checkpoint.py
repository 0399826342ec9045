"""Checkpoints: what is written is what is read, and what does not fit is refused with its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edge.errors import UsageError
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.networks import build


@pytest.fixture
def checkpoint() -> Checkpoint:
    config = {"labels": 3, "md_stages": ["layer2"]}
    labels = ("A", "B", "C")
    return Checkpoint(
        model=build("mobilenet_v2", **config).eval(),
        network="mobilenet_v2",
        config=config,
        labels=labels,
        input_size=64,
        thresholds=dict.fromkeys(labels, 0.25),
        notice="for tests",
        card={"seed": 1},
    )


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(checkpoint, path)
    read = load_checkpoint(path)

    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(read.model(x), checkpoint.model(x))
    assert not read.model.training
    for name in ("network", "config", "labels", "input_size", "thresholds", "notice", "card"):
        assert getattr(read, name) == getattr(checkpoint, name)
    assert len(read.sha256) == 64
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_weights_of_other_shapes_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(replace(checkpoint, config={"labels": 5, "md_stages": ["layer2"]}), path)
    with pytest.raises(UsageError, match=r"classifier.bias is \(3,\), its network expects \(5,\)"):
        load_checkpoint(path)
    save_checkpoint(replace(checkpoint, config={"labels": 3, "md_stages": []}), path)
    with pytest.raises(UsageError, match=r"expects nothing|is nothing"):
        load_checkpoint(path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UsageError, match="no checkpoint at"):
        load_checkpoint(path)
    path.write_bytes(b"text")
    with pytest.raises(UsageError, match="not a safetensors file"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="no readable 'mdconv' metadata"):
        load_checkpoint(path)
