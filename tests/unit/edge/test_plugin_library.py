"""Which plugin library is taken, and what is said where there is none."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import edge.plugin_library
from build_engine.bundle_writer import write_manifest
from edge.bundle import MANIFEST, PLUGIN_LIBRARY, Bundle, load_bundle
from edge.errors import MachineError
from edge.plugin_library import PLUGIN_VARIABLE, find_plugin, why_unfit

MACHINES = {"x86_64": 62, "aarch64": 183}
HERE = platform.machine()
OTHER = next(name for name in MACHINES if name != HERE)

pytestmark = pytest.mark.skipif(HERE not in MACHINES, reason=f"plugin libraries are for {', '.join(MACHINES)}")


def elf(machine: str, bits: int = 64, content: bytes = b"") -> bytes:
    """The start of a shared library's ELF header, for a machine."""
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    return ident + struct.pack("<HHI", 3, MACHINES[machine], 1) + content


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an installed library would lie; nothing does, and no variable names one."""
    path = tmp_path / "edge" / "lib" / PLUGIN_LIBRARY
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(edge.plugin_library, "INSTALLED_PLUGIN", path)
    monkeypatch.setattr(edge.plugin_library, "NOT_BUILT", path.with_name("not_built.txt"))
    monkeypatch.delenv(PLUGIN_VARIABLE, raising=False)
    return path


@pytest.fixture
def bundle_with(make_bundle: Callable[..., Path]) -> Callable[[bytes], Bundle]:
    def make(library: bytes) -> Bundle:
        directory = make_bundle()
        (directory / PLUGIN_LIBRARY).write_bytes(library)
        write_manifest(directory, json.loads((directory / MANIFEST).read_text()))
        return load_bundle(directory)

    return make


def test_the_variable_goes_before_the_bundle_and_that_before_the_installed(
    bundle_with: Callable[[bytes], Bundle], installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_with(elf(HERE, content=b"of the bundle"))
    installed.write_bytes(elf(HERE, content=b"installed"))
    named = tmp_path / "named.so"
    named.write_bytes(elf(HERE, content=b"named"))

    assert find_plugin() == (installed, hashlib.sha256(installed.read_bytes()).hexdigest(), "installed")
    own = bundle.directory / PLUGIN_LIBRARY
    assert find_plugin(bundle) == (own, bundle.manifest["files"][PLUGIN_LIBRARY]["sha256"], "bundle")
    monkeypatch.setenv(PLUGIN_VARIABLE, str(named))
    assert find_plugin(bundle) == (named, hashlib.sha256(named.read_bytes()).hexdigest(), PLUGIN_VARIABLE)


def test_a_bundle_s_library_for_another_processor_is_passed_over(
    bundle_with: Callable[[bytes], Bundle], installed: Path
) -> None:
    bundle = bundle_with(elf(OTHER))
    with pytest.raises(MachineError) as raised:
        find_plugin(bundle)
    said = str(raised.value)
    assert f"{PLUGIN_LIBRARY} was built for {OTHER}, this is {HERE}" in said
    assert f"{installed} is missing" in said
    assert "run `make plugin` in a checkout, or set MDCONV_PLUGIN to a library" in said
    installed.write_bytes(elf(HERE))
    assert find_plugin(bundle).origin == "installed"


def test_why_an_installation_built_none_is_told(installed: Path) -> None:
    installed.with_name("not_built.txt").write_text("nvcc was not found: install the CUDA toolkit\n")
    with pytest.raises(MachineError, match="the installation built none: nvcc was not found: install the CUDA toolkit"):
        find_plugin()


@pytest.mark.parametrize("content", [None, b"", b"#!/bin/sh\n" * 5, elf(HERE, bits=32), elf(OTHER)])
def test_what_the_variable_names_is_never_passed_over(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    installed.write_bytes(elf(HERE))
    named = tmp_path / "named.so"
    if content is not None:
        named.write_bytes(content)
    monkeypatch.setenv(PLUGIN_VARIABLE, str(named))
    with pytest.raises(MachineError, match=f"^MDCONV_PLUGIN names {re.escape(str(named))}, which (is|was) .*unset the"):
        find_plugin()


def test_a_library_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert why_unfit(tmp_path).startswith("cannot be read (Is a directory")


def test_a_real_library_fits_this_machine() -> None:
    import numpy

    library = next(Path(numpy.__file__).parent.rglob("_multiarray_umath*.so"))
    assert why_unfit(library) == ""
