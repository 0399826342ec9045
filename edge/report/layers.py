"""The engine's layers as a table, with those that only change a tensor's format called out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def layer_rows(backend_facts: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a layer: ``{"name", "type", "format", "reformat", "ms"}``; ``ms`` None where it was not measured.

    They come from what the backend says of the engine it runs, else from what the bundle's builder wrote down
    (`edge.engine_from_onnx.build_engine`): objects with the keys of TensorRT's engine inspector.
    """
    layers = backend_facts.get("layers") or manifest["platform"].get("layers") or []
    return [_row(layer) for layer in layers]


def _row(layer: Mapping[str, Any]) -> dict[str, Any]:
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    return {
        "name": name,
        "type": kind,
        "format": ", ".join(dict.fromkeys(_format(output) for output in layer.get("Outputs", []))),
        "reformat": "reformat" in f"{kind} {name}".lower(),
        "ms": layer.get("ms"),
    }


def _format(tensor: Mapping[str, Any]) -> str:
    """Type and memory layout of a tensor: one field in the inspector's output, two in the builder's log."""
    return str(tensor.get("Format/Datatype") or f"{tensor.get('Datatype', '')} {tensor.get('Format', '')}".strip())
