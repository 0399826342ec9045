"""How the plugin's library reaches a registry: asked by it, or by registering itself in a process that only opens it.

Opening a library cannot be undone: each case is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.build import EMULATOR, library
from tests.native.plugin_harness import HEADERS, host_plugin

OPEN = """
import ctypes, sys
probe = ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL) if sys.argv[2] else None
plugin = ctypes.CDLL(sys.argv[1])
count = ctypes.c_int32()
plugin.getCreators.restype = ctypes.POINTER(ctypes.c_void_p)
if probe:
    probe.probe_namespace.restype = ctypes.c_char_p
    print(probe.probe_registered(), probe.probe_namespace().decode() or "-")
print(bool(plugin.getCreators(ctypes.byref(count))[0]), count.value)
if probe:
    print(probe.probe_registered())
"""


@pytest.fixture(scope="module")
def probe() -> Path:
    source = EMULATOR / "tensorrt" / "registry_probe.cpp"
    # NVIDIA's interface has functions that NVIDIA deprecates; whoever implements it has to name them.
    flags = ("-isystem", str(HEADERS), "-Wno-deprecated-declarations")
    return library("registry_probe", [source], more_flags={source: flags})


def open_plugin(probe: Path | None, **environment: str) -> list[str]:
    command = [sys.executable, "-c", OPEN, str(host_plugin()), str(probe or "")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_registers_itself_where_tensorrt_is_there_and_leaves_it_to_who_asks(probe: Path) -> None:
    assert open_plugin(probe) == ["1 mdconv", "True 1", "0"]


def test_keeps_its_hands_off_a_registry_of_another_major_version(probe: Path) -> None:
    """Its virtual functions may stand in another order."""
    assert open_plugin(probe, PROBED_MAJOR="9") == ["0 -", "True 1", "0"]


def test_waits_to_be_asked_where_there_is_no_tensorrt() -> None:
    assert open_plugin(None) == ["True 1"]
