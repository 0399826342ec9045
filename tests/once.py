"""What tests share and is slow to make: once a test run, in however many processes pytest-xdist runs the tests."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path `name` in a folder of this test run, which `make` writes: for the first that asks, others wait for it.

    `name` is one for the whole run. Where `make` fails, what it left is removed, and whoever asks next makes it again.
    """
    base = factory.getbasetemp()
    # Each process of xdist has a folder of its own in the run's.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    shared.mkdir(exist_ok=True)
    target, finished = shared / name, shared / f"{name}.finished"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not finished.exists():
            shutil.rmtree(target, ignore_errors=True)
            make(target)
            finished.touch()
    return target
