"""The plugin library that ships, built by nvcc for the Jetsons: to be loaded into NVIDIA's builder, and taken apart."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.build import FOLDER, PLUGIN
from tests.native.plugin_harness import HEADERS

ARCHITECTURES = ("87", "110")
"""Jetson Orin and Jetson Thor."""

BUILD = FOLDER / "cuda"


@functools.cache
def real_plugin() -> Path:
    """``libmdconv_plugin.so``, built anew where a source changed. Skips the test where nvcc or CMake is missing.

    Fails it where NVIDIA's headers were not fetched yet, which ``make test`` does first.
    """
    for tool in ("nvcc", "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} to build the plugin")
    if not HEADERS.is_dir():
        pytest.fail("the headers for the plugin are not there: run `python tests/stand_ins/build.py`")
    real = ";".join(f"{architecture}-real" for architecture in ARCHITECTURES)
    BUILD.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "cuda.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed: other processes of the tests build it too
        configure(BUILD, f"-DCMAKE_CUDA_ARCHITECTURES={real}", f"-DTENSORRT_INCLUDE={HEADERS}")
        _run("cmake", "--build", BUILD, "--parallel", os.cpu_count() or 1)
    return BUILD / "libmdconv_plugin.so"


def configure(build: Path, *options: str) -> None:
    """Runs CMake on plugin/. Raises `RuntimeError` with what it said if that fails."""
    _run("cmake", "-S", PLUGIN, "-B", build, *options)


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-8000:]}")
