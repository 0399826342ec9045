"""Settings of a video source, and what its address says."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr

Kind = Literal["file", "camera", "url", "pipeline"]


class VideoConfig(BaseModel):
    """Where frames come from, and how many are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    address: SecretStr = Field(
        min_length=1,
        description="a file's path, a camera such as /dev/video0, a URL such as rtsp://user:password@camera/stream, or "
        "a GStreamer pipeline (known by its exclamation marks) that ends in appsink",
    )
    every_seconds: float = Field(
        1.0, ge=0, le=86400, description="least time between two frames that are taken; 0: as many as can be run"
    )


def kind_of(address: str) -> Kind:
    """What an address names."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", address):
        return "url"
    if address.startswith("/dev/"):
        return "camera"
    return "pipeline" if "!" in address else "file"


def describe(address: str) -> str:
    """What may be said of an address: no password, no path, no file's name."""
    match kind_of(address):
        case "camera":
            return address
        case "url":
            try:
                parts = urlsplit(address)
                return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
            except ValueError:
                return "a stream"
        case kind:
            return f"a {kind}"
