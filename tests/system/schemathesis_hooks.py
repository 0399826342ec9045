"""What schemathesis must be told to get past the first check: the network's name, and how parts are put together."""

from __future__ import annotations

import os
from typing import Any

import schemathesis


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Half of the networks that are asked for are the one that is served."""
    if path_parameters and len(str(path_parameters.get("name", ""))) % 2:
        return {**path_parameters, "name": os.environ["NETWORK"]}
    return path_parameters


@schemathesis.serializer("multipart/related")
def multipart_related(context: Any, value: Any) -> bytes:
    """`value` as the one part of a body."""
    content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return b"--parted\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--parted--\r\n"


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    if case.media_type == "multipart/related" and case.headers is not None:
        case.headers["Content-Type"] = 'multipart/related; type="application/dicom"; boundary=parted'
