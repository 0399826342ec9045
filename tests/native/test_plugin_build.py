"""How CMake finds what the plugin is built from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.native.plugin_harness import HEADERS
from tests.native.real_plugin import configure, real_plugin


def test_the_headers_are_found_in_the_python_that_cmake_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_plugin()  # skips where there is no nvcc
    monkeypatch.delenv("TENSORRT_INCLUDE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(HEADERS.parents[2]))
    configure(tmp_path, f"-DPython3_EXECUTABLE={sys.executable}")
    assert f"headers:PATH={HEADERS}" in (tmp_path / "CMakeCache.txt").read_text()
