"""Engines that fit this machine: the bundle's own, one built here before, or one built here now.

An engine runs only on the TensorRT and the kind of GPU that it was built for. What is built here is kept under a key of
the model and of those facts, with its SHA-256 beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edge.bundle import ENGINE, Bundle
from edge.engine_from_onnx import build_engine
from edge.errors import BundleError, MachineError, describe_os_error
from edge.plugin_library import PLUGIN_VARIABLE, PluginLibrary, find_plugin
from edge.progress import ProgressLine

log = logging.getLogger(__name__)

FITTING = ("tensorrt", "sm", "device", "l4t")
"""The facts of a platform in which a machine must equal the one that an engine was built on."""


class EngineSource(NamedTuple):
    """What the engines of a bundle are built from on this machine."""

    onnx: Path
    """What NVIDIA's parser reads."""
    plugin: PluginLibrary | None
    """Registered already; None where the model needs none."""
    fallback: str | None
    """Why a bundle made for the plugin runs without it; None where it does not."""


class Engine(NamedTuple):
    """An engine to try."""

    origin: str
    """"bundle", "cache" or "built here"."""
    plan: bytes


def platform_facts(driver: Any, trt: Any) -> dict[str, str | None]:
    """What an engine depends on, as a bundle's manifest keeps it under ``platform``.

    ``tensorrt`` version, ``cuda`` version of the driver, ``sm`` ("87"), ``device`` name, ``l4t`` (None off Jetson).
    `driver` is ``pycuda.driver`` after init; no CUDA context is needed.
    """
    device = driver.Device(0)
    major, minor = device.compute_capability()
    version = driver.get_driver_version()
    return {
        "tensorrt": str(trt.__version__),
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
        "sm": f"{major}{minor}",
        "device": device.name(),
        "l4t": l4t_release(),
    }


def l4t_release(path: Path = Path("/etc/nv_tegra_release")) -> str | None:
    """Jetson Linux's release, "36.4.3"; None where this is no Jetson."""
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def cache_folder() -> Path:
    """``$MDCONV_EDGE_CACHE``, else ``mdconv-edge`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    chosen = os.environ.get("MDCONV_EDGE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mdconv-edge"


def engine_source(bundle: Bundle, register: Callable[[Path], None]) -> EngineSource:
    """Choose what the engines of `bundle` are built from here; a plugin that they need is found and registered.

    Where there is no plugin, or `register` raises `MachineError`, the manifest's ``fallback_model`` is taken, if it
    names one and ``MDCONV_PLUGIN`` is not set; else that error is raised. `BundleError` if ``files`` lacks the model.
    """
    lowering = bundle.manifest["lowering"]
    name = lowering.get("builder_model", bundle.model_path.name)
    if lowering.get("kind") != "plugin":
        return EngineSource(_listed(bundle, name), None, None)
    try:
        plugin = find_plugin(bundle)
        register(plugin.path)
    except MachineError as error:
        fallback = lowering.get("fallback_model")
        if fallback is None or os.environ.get(PLUGIN_VARIABLE):
            raise
        log.warning("bundle %s runs without the MD-Conv plugin, from %s: %s", bundle.name, fallback, error)
        return EngineSource(_listed(bundle, fallback), None, str(error))
    log.info("MD-Conv plugin: %s (%s)", plugin.path, plugin.origin)
    return EngineSource(_listed(bundle, name), plugin, None)


def _listed(bundle: Bundle, name: str) -> Path:
    path = bundle.path(name)
    if path is None:
        raise BundleError(
            f"{bundle.directory}: lowering names {name}, which files does not list: copy the bundle again"
        )
    return path


def engines(bundle: Bundle, platform: dict[str, str | None], source: EngineSource) -> Generator[Engine, None, None]:
    """The engines of `bundle` that should run on `platform`, best first; the last is built when it is asked for.

    A caller takes the next one if TensorRT cannot load one. Raises `MachineError` if one cannot be built or kept.
    """
    own = bundle.path(ENGINE)
    if own is not None and bundle.manifest["backend"] == "tensorrt":
        made_for = {name: bundle.manifest["platform"].get(name) for name in (*FITTING, "plugin_sha256")}
        plugin = source.plugin.sha256 if source.plugin else None
        here = {**{name: platform[name] for name in FITTING}, "plugin_sha256": plugin}
        if made_for == here:
            yield Engine("bundle", own.read_bytes())
        else:
            log.info("the engine of bundle %s was built for %s, this is %s", bundle.name, made_for, here)
    key = _key(bundle, platform, source)
    folder = cache_folder() / "engines"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / f"{key}.lock"):
            kept = _kept(folder, key)
            if kept is not None:
                yield Engine("cache", kept)
            yield Engine("built here", _build(bundle, platform, source, folder, key))
    except OSError as error:
        raise MachineError(
            f"the engine cache cannot be used: {describe_os_error(error)} (environment variable MDCONV_EDGE_CACHE)"
        ) from None


def _key(bundle: Bundle, platform: dict[str, str | None], source: EngineSource) -> str:
    facts = {
        "onnx": bundle.manifest["files"][source.onnx.name]["sha256"],
        "plugin": source.plugin.sha256 if source.plugin else None,
        "batch": bundle.batch,
        **{name: platform[name] for name in FITTING},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time: a second one waits for the engine that the first builds, and finds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kept(folder: Path, key: str) -> bytes | None:
    """The engine kept under `key`, if there is one and it is as it was written."""
    facts_path = folder / f"{key}.json"
    if not facts_path.exists():
        return None
    try:
        plan = (folder / f"{key}.engine").read_bytes()
        expected = json.loads(facts_path.read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the kept engine %s.engine cannot be read (%s): it is built anew", folder / key, error)
        return None
    if hashlib.sha256(plan).hexdigest() != expected:
        log.warning("the kept engine %s.engine was altered or broken off: it is built anew", folder / key)
        return None
    return plan


def _build(bundle: Bundle, platform: dict[str, str | None], source: EngineSource, folder: Path, key: str) -> bytes:
    """Build the engine for this machine, keep it under `key`, return it."""
    timing = hashlib.sha256(json.dumps({name: platform[name] for name in FITTING}).encode()).hexdigest()
    log.warning(
        "bundle %s holds no engine for this machine: it is built here, once; this can take minutes", bundle.name
    )
    with ProgressLine("building the engine") as progress:
        facts = build_engine(
            source.onnx,
            folder / f"{key}.engine",
            target="tensorrt",
            batch=bundle.batch,
            timing_cache=folder / f"{timing}.timing",
            plugin=source.plugin.path if source.plugin else None,
            progress=progress,
        )
    # Last, so that an engine counts only once it is whole.
    partial = folder / f".{key}.json.{os.getpid()}.partial"
    partial.write_text(json.dumps({**facts, "platform": platform, "bundle": bundle.name}))
    partial.replace(folder / f"{key}.json")
    log.warning(
        "engine of bundle %s built in %.0f s (timing cache: %s), kept as %s",
        *(bundle.name, facts["seconds"], facts["timing_cache"], folder / f"{key}.engine"),
    )
    return (folder / f"{key}.engine").read_bytes()
