"""The demo bundles, built once a test session by the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.once import made_once

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "build_engine" / "make.py"
MAKE_QUICKLY = Path(__file__).with_name("make_quickly.py")


def edge_infer(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``edge-infer`` from another folder than the checkout."""
    command = [sys.executable, "-m", "edge", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def run_make(
    *arguments: str | Path, prefix: Sequence[str] = (), cwd: Path | None = None, program: Path = MAKE_QUICKLY
) -> subprocess.CompletedProcess[str]:
    """Run ``make.py`` as a user would, behind the command `prefix`, but with a short benchmark unless by `program`."""
    command = [*prefix, sys.executable, program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd)


def build(output: Path, *arguments: str | Path, program: Path = MAKE_QUICKLY) -> Path:
    made = run_make(*arguments, "--output", output, program=program)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == str(output)
    return output


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``make.py --int8`` with every default."""
    options = ("--int8", "--backend", "onnxruntime")
    return made_once(tmp_path_factory, "int8_bundle", lambda output: build(output, *options, program=MAKE))


@pytest.fixture(scope="session")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``make.py --fp32``, without its gate: it is the reference itself."""
    options = ("--fp32", "--backend", "onnxruntime", "--lowering", "padded", "--no-gate", "--calibration-images", "16")
    return made_once(tmp_path_factory, "fp32_bundle", lambda output: build(output, *options))
