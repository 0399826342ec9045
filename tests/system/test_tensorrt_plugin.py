"""A bundle made for the MD-Conv plugin in the TensorRT backend, on the stand-ins: found, loaded, done without, told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from build_engine.bundle_writer import write_manifest
from edge.bundle import ENGINE, MANIFEST, PLUGIN_LIBRARY
from tests.stand_ins.build import ROOT, SOURCES
from tests.stand_ins.places import stand_in_environment

SIZE = 32
PLUGIN_MODEL, FALLBACK = "model.fp32.plugin.onnx", "model.fp32.padded.onnx"


class Run(NamedTuple):
    facts: dict[str, Any]
    error: str
    log: str


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two shared libraries that load, of different content."""
    folder = tmp_path_factory.mktemp("libraries")
    made = []
    for name in ("first", "second"):
        source, library = folder / f"{name}.c", folder / f"{name}.so"
        source.write_text(f'char const *{name}(void) {{ return "{name}"; }}\n')
        subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", library, source], check=True)
        made.append(library)
    return made[0], made[1]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that holds no plugin library, whatever the checkout has."""
    ignored = shutil.ignore_patterns("__pycache__", "lib")
    shutil.copytree(ROOT / "edge", tmp_path / "package" / "edge", ignore=ignored)
    return tmp_path / "package"


@pytest.fixture
def run(tmp_path: Path, package: Path) -> Callable[..., Run]:
    """Opens a bundle in a process of its own and runs two images; checks that the driver saw nothing wrong."""
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((2, 1, SIZE, SIZE), np.uint8))

    def go(bundle: Path, **settings: str) -> Run:
        report = tmp_path / "report"
        shutil.rmtree(report, ignore_errors=True)
        report.mkdir()
        environment = stand_in_environment(report, tmp_path / "cache", **settings)
        environment["PYTHONPATH"] = os.pathsep.join([str(package), environment["PYTHONPATH"]])
        command = [sys.executable, "-W", "error", SOURCES / "run_backend.py", bundle, images, tmp_path / "output.npz"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        for path in report.glob("*.json"):
            seen = json.loads(path.read_text())
            assert seen["violations"] == [] and not any(seen["live"].values())
        with np.load(tmp_path / "output.npz") as found:
            assert len(found["logits"]) == (0 if str(found["error"]) else 2)
            return Run(json.loads(str(found["facts"])), str(found["error"]), done.stderr)

    return go


def made_for_plugin(
    directory: Path, library: Path | None, fallback: bool = True, platform: Mapping[str, Any] | None = None
) -> Path:
    """Make a bundle one for the plugin. Both its models are the network, but without a library the plugin's is junk."""
    portable = (directory / "model.onnx").read_bytes()
    (directory / PLUGIN_MODEL).write_bytes(portable if library else b"none that a parser takes")
    if library is not None:
        shutil.copy(library, directory / PLUGIN_LIBRARY)
    lowering = {"kind": "plugin", "builder_model": PLUGIN_MODEL}
    if fallback:
        (directory / FALLBACK).write_bytes(portable)
        lowering["fallback_model"] = FALLBACK
    facts = json.loads((directory / MANIFEST).read_text())
    engine = {"backend": "tensorrt", "platform": platform} if platform else {}
    write_manifest(directory, {**facts, "lowering": lowering, **engine})
    return directory


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


MakeBundle = Callable[..., Path]


def test_the_bundle_s_library_is_loaded_and_named_in_the_facts(
    make_bundle: MakeBundle, run: Callable[..., Run], libraries: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = made_for_plugin(make_bundle(size=SIZE), libraries[0])
    first, second = run(bundle), run(bundle)
    assert (first.facts["engine"], second.facts["engine"]) == ("built here", "cache")
    for ran in (first, second):
        assert ran.facts["plugin"] == {"sha256": sha256(libraries[0]), "origin": "bundle"}
        assert "fallback" not in ran.facts
    (kept,) = (tmp_path / "cache" / "engines").glob("*.json")
    facts = json.loads(kept.read_text())
    assert facts["plugin_sha256"] == sha256(libraries[0])
    assert facts["onnx_sha256"] == sha256(bundle / PLUGIN_MODEL)


def test_another_library_gets_another_engine(
    make_bundle: MakeBundle, run: Callable[..., Run], libraries: tuple[Path, Path], package: Path
) -> None:
    bundle = made_for_plugin(make_bundle(size=SIZE), libraries[0])
    run(bundle)
    other = run(bundle, MDCONV_PLUGIN=str(libraries[1]))
    assert other.facts["engine"] == "built here"
    assert other.facts["plugin"] == {"sha256": sha256(libraries[1]), "origin": "MDCONV_PLUGIN"}
    (package / "edge" / "lib").mkdir()
    shutil.copy(libraries[1], package / "edge" / "lib" / PLUGIN_LIBRARY)
    bare = made_for_plugin(make_bundle("bare", size=SIZE), None, fallback=False)
    (bare / PLUGIN_MODEL).write_bytes((bare / "model.onnx").read_bytes())
    write_manifest(bare, json.loads((bare / MANIFEST).read_text()))
    installed = run(bare)
    assert installed.facts["plugin"]["origin"] == "installed"
    assert installed.facts["engine"] == "cache"  # of the same model and the same library


@pytest.mark.parametrize("same", [True, False])
def test_the_bundle_s_engine_runs_with_the_library_that_it_was_built_with_only(
    make_bundle: MakeBundle, run: Callable[..., Run], libraries: tuple[Path, Path], tmp_path: Path, same: bool
) -> None:
    bundle = made_for_plugin(make_bundle(size=SIZE), libraries[0])
    facts = run(bundle).facts
    (engine,) = (tmp_path / "cache" / "engines").glob("*.engine")
    shutil.copy(engine, bundle / ENGINE)
    shutil.rmtree(tmp_path / "cache")
    platform = {name: facts[name] for name in ("tensorrt", "cuda", "sm", "device", "l4t")}
    platform["plugin_sha256"] = sha256(libraries[0 if same else 1])
    ran = run(made_for_plugin(bundle, libraries[0], platform=platform))
    assert ran.facts["engine"] == ("bundle" if same else "built here")


def test_without_a_library_the_fallback_runs_and_says_so(make_bundle: MakeBundle, run: Callable[..., Run]) -> None:
    bundle = made_for_plugin(make_bundle(size=SIZE), None)
    for ran in (run(bundle), run(bundle)):
        assert f"runs without the MD-Conv plugin, from {FALLBACK}: no MD-Conv plugin for this machine" in ran.log
        assert ran.facts["fallback"].startswith(f"built from {FALLBACK}, without the MD-Conv plugin: no MD-Conv plugin")
        assert "make plugin" in ran.facts["fallback"]
        assert "plugin" not in ran.facts


def test_a_library_that_does_not_load_is_done_without_too(
    make_bundle: MakeBundle, run: Callable[..., Run], libraries: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(libraries[0].read_bytes()[:64])
    ran = run(made_for_plugin(make_bundle(size=SIZE), broken))
    assert "does not load" in ran.facts["fallback"]


def test_without_library_and_fallback_it_is_an_error(make_bundle: MakeBundle, run: Callable[..., Run]) -> None:
    ran = run(made_for_plugin(make_bundle(size=SIZE), None, fallback=False))
    assert ran.error.startswith("no MD-Conv plugin for this machine") and "\n" not in ran.error


def test_a_library_that_the_user_names_is_never_done_without(
    make_bundle: MakeBundle, run: Callable[..., Run], libraries: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(libraries[0].read_bytes()[:64])
    bundle = made_for_plugin(make_bundle(size=SIZE), libraries[0])
    assert "does not load" in run(bundle, MDCONV_PLUGIN=str(broken)).error
    assert "MDCONV_PLUGIN names" in run(bundle, MDCONV_PLUGIN=str(tmp_path / "none.so")).error


def test_a_bundle_of_another_lowering_loads_none(
    make_bundle: MakeBundle, run: Callable[..., Run], libraries: tuple[Path, Path]
) -> None:
    ran = run(make_bundle(size=SIZE), MDCONV_PLUGIN=str(libraries[0]))
    assert ran.error == "" and "plugin" not in ran.facts and "fallback" not in ran.facts
