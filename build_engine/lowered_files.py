"""What a lowering puts into a bundle: the models that an engine builder reads, the plugin, the engine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from build_engine.export import save_model
from build_engine.integer_form import integer_form
from build_engine.lowering import kept_padded, lower
from build_engine.verify import say
from edge.bundle import ENGINE, PLUGIN_LIBRARY, model_file
from edge.engine_from_onnx import Target, build_engine
from edge.plugin_library import find_plugin
from edge.progress import ProgressLine

FALLBACK = "padded"
"""The lowering that a device builds from where a bundle was made for the plugin and none is there."""


@dataclass(frozen=True)
class Engines:
    """What engines are built for, and with which means of the builder."""

    backend: str
    precision: str
    batch: int
    workspace_mb: int | None
    timing_cache: Path | None

    @property
    def target(self) -> Target | None:
        """What to build an engine for; None where ONNX Runtime runs the model itself."""
        if self.backend == "onnxruntime":
            return None
        return "tensorrt-rtx" if self.backend == "tensorrt-rtx" else "tensorrt"


ONNXRUNTIME_MODEL = "model.int8.onnxruntime.onnx"


class Lowered(NamedTuple):
    """A lowering whose files are written."""

    entry: dict[str, Any]
    """The manifest's ``lowering``, but for ``reason``."""
    engine: dict[str, Any] | None
    """What the engine's builder says, if there is an engine (`edge.engine_from_onnx.build_engine`)."""


def lowered_file(precision: str, kind: str) -> str:
    """Name of the file that an engine builder reads."""
    return f"model.{precision}.{kind}.onnx"


def write_lowering(directory: Path, kind: str, engines: Engines) -> Lowered:
    """Write the files of lowering `kind` beside the model of the bundle's precision, and build the engine if any.

    Raises `UsageError` if the plugin can have no node of the network, `MachineError` if an engine cannot be built here.
    """
    library = find_plugin() if kind == "plugin" and engines.target else None
    model = onnx.load(directory / model_file(engines.precision))
    entry: dict[str, Any] = {"kind": kind, "builder_model": _write(directory, model, kind, engines.precision)}
    if kind == "plugin":
        entry["fallback_model"] = _write(directory, model, FALLBACK, engines.precision)
        entry.update(_kept_padded(model))
    entry.update(_for_onnxruntime(directory, entry.get("fallback_model", entry["builder_model"]), engines.precision))
    if library is not None:
        shutil.copyfile(library.path, directory / PLUGIN_LIBRARY)
        entry["plugin"] = {"sha256": library.sha256, "origin": library.origin}
    elif kind == "plugin":
        entry["note"] = (
            "ONNX Runtime has no plugins: it runs MD-Conv as standard operators in "
            f"{entry.get('onnxruntime_model', model_file(engines.precision))}, and so it was verified; a device with "
            f"TensorRT builds its engine from {entry['builder_model']} with its own plugin library, or from "
            f"{entry['fallback_model']} where it has none"
        )
    if engines.target is None:
        return Lowered(entry, None)
    say(f"building the {engines.target} engine, lowering {kind}")
    with ProgressLine("engine") as progress:
        engine = build_engine(
            directory / entry["builder_model"],
            directory / ENGINE,
            target=engines.target,
            batch=engines.batch,
            workspace_mb=engines.workspace_mb,
            timing_cache=engines.timing_cache,
            plugin=directory / PLUGIN_LIBRARY if library is not None else None,
            progress=progress,
        )
    return Lowered(entry, engine)


def _write(directory: Path, model: onnx.ModelProto, kind: str, precision: str) -> str:
    name = lowered_file(precision, kind)
    save_model(lower(model, kind), directory / name)
    return name


def _for_onnxruntime(directory: Path, name: str, precision: str) -> dict[str, Any]:
    """Write what ONNX Runtime runs of an int8 model `name`; returns the manifest's word on it."""
    form = integer_form(onnx.load(directory / name)) if precision == "int8" else None
    if form is None:
        return {}
    save_model(form, directory / ONNXRUNTIME_MODEL)
    return {"onnxruntime_model": ONNXRUNTIME_MODEL}


def _kept_padded(model: onnx.ModelProto) -> dict[str, Any]:
    """The manifest's word, and the user's, on nodes that the plugin cannot have."""
    refused = kept_padded(model)
    for name, reason in refused.items():
        say(f"{name} stays a padded convolution, not the plugin's: {reason}")
    return {"kept_padded": [{"node": name, "reason": why} for name, why in refused.items()]} if refused else {}
