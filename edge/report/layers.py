"""The engine's layers as a table, with those that only change a tensor's format called out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def layer_rows(backend_facts: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a layer: ``{"name", "type", "format", "reformat", "ms"}``; ``ms`` None where it was not measured.

    They come from what the backend says of the engine it runs, else from what the bundle's builder wrote down. A layer
    is an object as TensorRT's engine inspector prints it (``Name``, ``LayerType``, ``Outputs`` with
    ``Format/Datatype``), or just a name.
    """
    layers = backend_facts.get("layers") or manifest["platform"].get("layers") or []
    return [_row(layer) for layer in layers]


def _row(layer: Any) -> dict[str, Any]:
    if not isinstance(layer, Mapping):
        layer = {"Name": str(layer)}
    facts = {str(key).lower(): value for key, value in layer.items()}
    name, kind = str(facts.get("name", "")), str(facts.get("layertype", facts.get("type", "")))
    outputs = facts.get("outputs")
    formats = [str(o.get("Format/Datatype", "")) for o in outputs if isinstance(o, Mapping)] if outputs else []
    return {
        "name": name,
        "type": kind,
        "format": ", ".join(dict.fromkeys(filter(None, formats))),
        "reformat": "reformat" in f"{kind} {name}".lower(),
        "ms": facts.get("ms"),
    }
