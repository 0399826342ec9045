"""Where the stand-ins are, and the environment of a process that runs on them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.stand_ins.build import FOLDER, ROOT, SOURCES

MODULES = SOURCES / "modules"


def stand_in_environment(report: Path, cache: Path, **settings: str) -> dict[str, str]:
    """The environment in which ``tensorrt`` and the CUDA driver are stand-ins, PyCUDA and cuda-bindings the real ones.

    Each process that used the driver leaves a ``<pid>.json`` in the folder `report`; `cache` holds built engines.
    """
    if not (FOLDER / "pycuda" / "recipe.json").is_file():
        pytest.fail("the stand-ins are not built: run `python tests/stand_ins/build.py`")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(FOLDER / "driver"),
        "PYTHONPATH": os.pathsep.join(map(str, (MODULES, FOLDER / "pycuda", ROOT))),
        "MDCONV_EDGE_CACHE": str(cache),
        "STAND_IN_REPORT": str(report),
        "OMP_NUM_THREADS": "1",
        **settings,
    }


def stand_in_tensorrt() -> ModuleType:
    """The stand-in of ``tensorrt`` as a module, without putting it where edge would find it."""
    spec = importlib.util.spec_from_file_location("tensorrt", MODULES / "tensorrt" / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get("tensorrt")
    spec.loader.exec_module(module)
    assert sys.modules.get("tensorrt") is before
    return module
