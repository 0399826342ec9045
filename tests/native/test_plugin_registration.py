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
probe = ctypes.CDLL(sys.argv[2]) if sys.argv[2] else None
plugin = ctypes.CDLL(sys.argv[1])
count = ctypes.c_int32()
plugin.getCreators.restype = ctypes.POINTER(ctypes.c_void_p)
print(bool(plugin.getCreators(ctypes.byref(count))[0]), count.value)
if probe:
    probe.probe_namespace.restype = ctypes.c_char_p
    print(probe.probe_registered(), probe.probe_namespace().decode())
"""
VARIABLE = "MDCONV_PLUGIN_REGISTER"


def probe(major: int) -> Path:
    """Stands for TensorRT of this major version, loaded by the process for itself."""
    source = EMULATOR / "tensorrt" / "registry_probe.cpp"
    # NVIDIA's interface has functions that NVIDIA deprecates; whoever implements it has to name them.
    flags = ("-isystem", str(HEADERS), "-Wno-deprecated-declarations")
    name, soname = f"registry_probe_{major}", f"libnvinfer.so.{major}"
    return library(name, [source], more_flags={source: flags}, soname=soname)


def open_plugin(tensorrt: Path | None, *, asked: bool) -> tuple[list[str], str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", OPEN, str(host_plugin()), str(tensorrt or "")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment, **({VARIABLE: "1"} if asked else {})}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_registers_itself_where_it_is_asked_to() -> None:
    assert open_plugin(probe(10), asked=True) == (["True 1", "1 mdconv"], "")


def test_waits_for_the_registry_otherwise() -> None:
    assert open_plugin(probe(10), asked=False) == (["True 1", "0 "], "")


@pytest.mark.parametrize("other", [None, 9])
def test_says_so_where_there_is_no_registry_that_it_knows(other: int | None) -> None:
    """The virtual functions of another major version may stand in another order."""
    lines, said = open_plugin(probe(other) if other else None, asked=True)
    assert lines == (["True 1", "0 "] if other else ["True 1"])
    assert (
        said == "MDConv: MDCONV_PLUGIN_REGISTER is set, but libnvinfer.so.10 is not loaded: open this library later\n"
    )
