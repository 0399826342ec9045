"""What NVIDIA's bindings offer, read from the real modules: names, members, and the signatures in their docstrings.

Run as a script, in a process of its own for each release, ``python binding_api.py tensorrt_bindings`` prints JSON.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\)(?: -> (.+))?$")
_RETURNS = {
    "nvonnxparser::IParserError": "ParserError",
    "detail::accessor<detail::accessor_policies::str_attr>": "IPluginRegistry",  # of get_plugin_registry, from 10.13 on
}
"""C++ names that leaked into docstrings, and the Python class that comes back."""


def describe(thing: Any, owner: str = "") -> dict[str, Any]:
    """A class with its members, a function with its signatures, a property with its type, or a value with its class."""
    if inspect.isclass(thing):
        members = {name: _member(thing, name) for name in dir(thing) if not name.startswith("_")}
        members["__init__"] = describe(thing.__init__)
        enumeration = hasattr(thing, "__members__")
        return {"kind": "class", "name": thing.__qualname__, "members": members, "enumeration": enumeration}
    if callable(thing):
        found = [match for line in (thing.__doc__ or "").split("\n") if (match := _SIGNATURE.match(line.strip()))]
        signatures = [
            {"parameters": _parameters(match[2]), "returns": _type(match[3])}
            for match in found
            if match[2] != "*args, **kwargs"
        ]
        return {"kind": "function", "signatures": signatures}
    return {"kind": "value", "type": type(thing).__qualname__}


def _member(owner: Any, name: str) -> dict[str, Any]:
    raw = inspect.getattr_static(owner, name)
    if isinstance(raw, property):
        text = (raw.fget.__doc__ if raw.fget else "") or ""
        match = re.search(r"-> (.+)", text)
        return {"kind": "property", "type": _type(match[1] if match else None), "settable": raw.fset is not None}
    return describe(getattr(owner, name))


def _parameters(text: str) -> list[dict[str, Any]]:
    """``a: T = 1, b: U`` → names and whether each has a default; ``self`` and pybind's ``arg0`` for it are left out."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text + ","):
        depth += (character in "[(<{") - (character in "])>}" and text[position - 1 : position] != "-")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parameters = [{"name": part.split(":")[0].strip(), "default": "=" in part} for part in parts if part]
    return [parameter for parameter in parameters if parameter["name"] != "self"]


def _type(text: str | None) -> str:
    return _RETURNS.get(text or "", re.sub(r"tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.", "", text or "?"))


@cache
def api_of(module: str, folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The public names of `module`, imported in another process; `folder` holds it where it is not installed."""
    environment = dict(os.environ)
    if folder is not None:
        environment |= {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder / "tensorrt_libs")}
    command = [sys.executable, __file__, module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{module} in {folder} does not import: {done.stderr[-500:]}")
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    bindings = importlib.import_module(sys.argv[1])
    json.dump(
        {name: describe(getattr(bindings, name)) for name in dir(bindings) if not name.startswith("_")}, sys.stdout
    )
