"""The page's addresses: its own files, which hold nothing of a patient, and the data that it shows."""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any

import cv2
from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

from edge import __version__
from edge.errors import BundleError
from edge.heatmap import overlay
from edge.passport import passport, sections
from edge.report.style import STYLE
from edge.service import Service

STUDIES = 20
"""How many of the last studies the page shows."""
OVERLAYS = 32
"""How many drawn pictures are kept: every viewer of the page asks for those of the newest study."""

FILE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
NOT_STORED = {**HEADERS, "Cache-Control": "no-store"}
"""For what is of patients: no browser or proxy may keep it."""


def static_routes() -> APIRouter:
    """The page's files: ``/``, and ``/page/NAME`` for what it loads. They need no authentication."""
    router = APIRouter(include_in_schema=False)
    files = {"base.css": STYLE.encode()}
    files |= {entry.name: entry.read_bytes() for entry in resources.files("edge.web").joinpath("static").iterdir()}

    index = files.pop("index.html")

    def answer(name: str, content: bytes) -> Response:
        kind = FILE_TYPES[name[name.rindex(".") :]]
        return Response(content, media_type=kind, headers={**HEADERS, "Cache-Control": "no-cache"})

    @router.get("/")
    def page() -> Response:
        return answer("index.html", index)

    @router.get("/page/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "the page has no such file")
        return answer(name, files[name])

    return router


def data_routes(service: Service) -> APIRouter:
    """What the page shows. To be included behind the authentication of the API, if it has one."""
    router = APIRouter()
    draw = functools.lru_cache(OVERLAYS)(functools.partial(_drawn, service))

    def png(id: str, finding: str | None) -> Response:
        run = service.image(id) if _ID.fullmatch(id) else None  # asked each time: no picture outlives its run
        if run is None:
            raise HTTPException(404, "no image has this id, or no longer")
        if run["state"] != "done":
            raise HTTPException(409, f"the image is {run['state']}, expected done: a picture comes with the result")
        return Response(draw(id, finding), media_type="image/png", headers=NOT_STORED)

    @router.get("/v1/page", include_in_schema=False)
    def state() -> Response:
        studies = [_study(run) for run in service.recent(STUDIES)]
        content = {
            "version": __version__,
            "bundle": _bundle(service),
            "status": service.status(),
            "studies": studies,
        }
        return _json(content)

    @router.get("/v1/page/passport", include_in_schema=False)
    def bundle_passport() -> Response:
        bundle = service.bundle
        try:
            found = sections(passport(bundle))
        except BundleError as error:
            found = [("Unreadable", [str(error)])]
        content = {
            "sha256": bundle.sha256,
            "sections": [{"heading": heading, "lines": lines} for heading, lines in found],
        }
        return _json(content)

    @router.get("/v1/images/{id}/picture.png", response_class=Response, responses=_PNG)
    def picture(id: str) -> Response:
        """What the network saw of a done image: gray, as large as the network's input."""
        return png(id, None)

    @router.get("/v1/images/{id}/overlay.png", response_class=Response, responses=_PNG)
    def heat_map(id: str, finding: str) -> Response:
        """The same picture with the class activation map of one finding laid over it in colour."""
        return png(id, finding)

    return router


def _json(content: dict[str, Any]) -> Response:
    body = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII: whatever a name holds, it can be sent
    return Response(body, media_type="application/json", headers=NOT_STORED)


_ID = re.compile("[0-9a-f]{32}")
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    404: {"description": "No image has this id."},
    409: {"description": "There is no such picture: the image is not done, or pictures or maps are not kept."},
    422: {"description": "The finding is missing, or none of the image's."},
}


def _drawn(service: Service, id: str, finding: str | None) -> bytes:
    """The PNG file of one done image, with the map of `finding` if one is named. Raises `HTTPException`."""
    found = service.picture(id)
    if found is None:
        raise HTTPException(409, "no picture of this image is kept: set `pictures` in [retention]")
    pixels = found.pixels
    if finding is not None:
        if found.cam is None:
            raise HTTPException(409, "the network that ran this image has no class activation maps")
        if finding not in found.labels:
            raise HTTPException(422, f"finding: there is no such one, expected one of {', '.join(found.labels)}")
        pixels = overlay(found.pixels, found.cam[found.labels.index(finding)])
    return bytes(cv2.imencode(".png", pixels)[1])


def _bundle(service: Service) -> dict[str, Any]:
    bundle = service.bundle
    return {
        "name": bundle.name,
        "precision": bundle.precision,
        "sha256": bundle.sha256,
        "gate": bundle.gate_verdict,
        "signature": str(bundle.signature),
        "notice": bundle.notice,
        "input_size": bundle.input_size,
        "maps": bundle.has_cam,
        "thresholds": bundle.thresholds,
    }


def _study(run: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a run, and no more of it."""
    result = run["result"] or {}
    shown = {key: result.get(key) for key in ("source", "reason", "findings", "guard", "time", "bundle", "gate")}
    total = (result.get("timings_ms") or {}).get("total")
    return {**{key: run[key] for key in ("id", "state", "received", "origin")}, **shown, "total_ms": total}
