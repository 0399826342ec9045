"""Which lowering a bundle gets: the one asked for, or by measuring on the target, where that can be done."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from build_engine.bundle_writer import write_manifest
from build_engine.lowered_files import Engines, Lowered, write_lowering
from build_engine.lowering import KINDS
from build_engine.verify import say
from calibration.graph import MDCONV, attributes
from edge.backends import Backend, open_backend
from edge.bundle import MANIFEST, PORTABLE_MODEL, Bundle, load_bundle
from edge.errors import EdgeError, MachineError, UsageError
from edge.interleaved import Timing, time_interleaved
from edge.plugin_library import find_plugin
from edge.selftest import golden_inputs, open_tested
from edge.telemetry import UNAVAILABLE, machine_facts

NOISE = 0.03
"""Medians that differ by less than this share count as equal; then the lowering that comes first in `KINDS` is kept."""

Describe = Callable[[Lowered], Mapping[str, Any]]
"""From a lowering to the rest of the manifest that a candidate needs to be a bundle."""


def check_lowering(kind: str, backend: str) -> None:
    """Refuse early what cannot work: raises `UsageError`, or `MachineError` where the plugin is needed and missing."""
    if kind not in ("auto", *KINDS):
        raise UsageError(f"lowering {kind!r} is none of auto, {', '.join(KINDS)}")
    if kind == "plugin" and backend != "onnxruntime":
        find_plugin()


def apply_lowering(kind: str, directory: Path, engines: Engines, describe: Describe, scratch: Path) -> Lowered:
    """Write lowering `kind` into the bundle that is made in `directory`; ``auto`` takes the fastest (see `_fastest`).

    `directory` holds everything else that a bundle runs on, `describe` tells the rest of its manifest, `scratch` is a
    folder with room. Raises what `write_lowering` raises.
    """
    if kind != "auto":
        return _because("asked for", write_lowering(directory, kind, engines))
    graph = onnx.load(directory / PORTABLE_MODEL).graph
    if all(node.op_type != MDCONV for node in graph.node):
        reason = "the network has no MD-Conv, so all lowerings are the same"
    elif engines.backend == "tensorrt-rtx":
        reason = (
            "lowerings were not timed, since an engine for TensorRT-RTX runs on its own GPUs only; padded is one stock "
            "convolution a layer and needs no plugin library, and split adds a split and a concatenation"
        )
    else:
        return _fastest(directory, engines, describe, scratch)
    say(f"lowering padded: {reason}")
    return _because(reason, write_lowering(directory, "padded", engines))


def _because(reason: str, lowered: Lowered) -> Lowered:
    entry = {"kind": lowered.entry["kind"], "reason": reason, **lowered.entry}
    return lowered._replace(entry=entry)


def _fastest(directory: Path, engines: Engines, describe: Describe, scratch: Path) -> Lowered:
    """Make a bundle of every lowering that the backend offers, time them, and move the best into `directory`.

    One that cannot be built, or fails its self-test, is left out, with the reason. Raises `MachineError` if all are.
    """
    made: dict[str, Lowered] = {}
    bundles: dict[str, Bundle] = {}
    left_out: dict[str, str] = {}
    for kind in KINDS:
        try:
            _check_offered(kind, directory, engines)
            made[kind], bundles[kind] = _make_candidate(scratch / kind, directory, kind, engines, describe)
        except EdgeError as error:
            left_out[kind] = str(error)
            say(f"lowering {kind} is left out: {error}")
    if not made:
        raise MachineError("; ".join(dict.fromkeys(left_out.values())))
    say(f"timing lowerings {', '.join(made)}")
    timings = _time(bundles, engines)
    best = choose_fastest(timings)
    for file in (scratch / best).iterdir():
        if not (directory / file.name).exists() and file.name != MANIFEST:
            shutil.move(file, directory / file.name)
    builders = {kind: _builder(lowered) for kind, lowered in made.items()}
    lowered = _because(_reason(best, timings, builders[best], engines), made[best])
    rows: list[dict[str, Any]] = [
        {"kind": kind, **timings[kind]._asdict(), "builder": builders[kind]}
        if kind in timings
        else {"kind": kind, "left_out": left_out[kind]}
        for kind in KINDS
    ]
    lowered.entry.update(timed_on=_machine(bundles[best]), comparison=rows)
    say(f"lowering {best}: {lowered.entry['reason']}")
    return lowered


def choose_fastest(timings: Mapping[str, Timing]) -> str:
    """The lowering of least median time; of those that are as fast but for `NOISE`, the simplest."""
    least = min(timing.median_ms for timing in timings.values())
    return next(kind for kind in KINDS if kind in timings and timings[kind].median_ms <= least * (1 + NOISE))


def _check_offered(kind: str, directory: Path, engines: Engines) -> None:
    """Raises `MachineError` if `kind` makes no engine, or none of its own, with this backend."""
    if kind == "plugin" and engines.target is None:
        raise MachineError("ONNX Runtime has no plugins")
    nodes = [node for node in onnx.load(directory / PORTABLE_MODEL).graph.node if node.op_type == MDCONV]
    if kind == "split" and all(len(attributes(node)["kernel_sizes"]) == 1 for node in nodes):
        raise MachineError("each MD-Conv has one kernel size: it is the same as padded")


def _make_candidate(
    candidate: Path, directory: Path, kind: str, engines: Engines, describe: Describe
) -> tuple[Lowered, Bundle]:
    """A bundle of lowering `kind` that passed its self-test. Raises `EdgeError`."""
    candidate.mkdir()
    for file in directory.iterdir():
        (candidate / file.name).symlink_to(file.resolve())
    lowered = write_lowering(candidate, kind, engines)
    write_manifest(candidate, describe(lowered))
    bundle = load_bundle(candidate)
    with open_tested(bundle, _opener(bundle, engines)) as backend:
        # A backend may build another engine than the one that is to be timed, or fall back to another lowering.
        if engines.target and backend.facts["engine"] != "bundle":
            raise MachineError(f"its engine is not the one that runs here, but: {backend.facts['engine']}")
    return lowered, bundle


def _opener(bundle: Bundle, engines: Engines) -> Callable[[], Backend]:
    return functools.partial(open_backend, bundle, engines.backend)


def _time(bundles: Mapping[str, Bundle], engines: Engines) -> dict[str, Timing]:
    images, _ = golden_inputs(next(iter(bundles.values())))
    batch = np.resize(images, (engines.batch, *images.shape[1:]))
    return time_interleaved({kind: _opener(bundle, engines) for kind, bundle in bundles.items()}, batch)


def _builder(lowered: Lowered) -> str:
    engine = lowered.engine
    return f"ONNX Runtime {onnxruntime.__version__}" if engine is None else f"TensorRT {engine['tensorrt']}"


def _reason(best: str, timings: Mapping[str, Timing], builder: str, engines: Engines) -> str:
    medians = ", ".join(f"{kind} {timing.median_ms:.3g} ms" for kind, timing in timings.items())
    fastest = min(timings, key=lambda kind: timings[kind].median_ms)
    why = "the fastest" if fastest == best else f"within {NOISE:.0%} of the fastest, and simpler"
    others = "" if engines.target else "; an engine that a device builds may order them otherwise"
    return f"timed here with {builder} ({medians}): {best} is {why}{others}"


def _machine(bundle: Bundle) -> dict[str, Any]:
    """What the times belong to, for who reads them elsewhere."""
    machine, platform = machine_facts(), bundle.manifest["platform"]
    facts = {name: machine[name] for name in ("jetson", "power_mode", "cpu", "cores")}
    facts = {"device": platform.get("device", UNAVAILABLE), **facts}
    return {name: value for name, value in facts.items() if value != UNAVAILABLE}
