"""Images in, results out: the daemon's own interface."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from edge.passport import passport
from edge.sources.http.answers import Refusal, documented, json_answer
from edge.sources.http.bodies import whole_body
from edge.sources.http.context import Context, client_of, log_received

JSON_LINES = "application/jsonl"
NEXT_CURSOR = "X-Next-Cursor"
CURSOR_LIMIT = 2**63
"""Cursors are SQLite's 64-bit integers."""

_ID = re.compile(r"[0-9a-f]{32}")
_BINARY = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
_LOCATION = {"Location": {"description": "of the image's state", "required": True, "schema": {"type": "string"}}}
_IMAGE_BODY = {
    "requestBody": {
        "description": "One image file. Any content type is taken but multipart: the file itself says what it is.",
        "required": True,
        "content": dict.fromkeys(("application/octet-stream", "application/dicom", "image/png"), _BINARY),
    }
}


class Received(BaseModel):
    """The word given for an image that is safe on the disk."""

    id: str = Field(pattern="^[0-9a-f]{32}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    new: bool = Field(description="false where this content is known already: `id` is that run's")


class Image(BaseModel):
    """One image and what became of it."""

    id: str
    state: Literal["received", "running", "done", "refused"]
    received: str
    origin: str | None
    result: dict[str, Any] | None


def router(context: Context) -> APIRouter:
    """The routes under ``/v1`` that take images and give results."""
    routes = APIRouter(prefix="/v1", tags=["images"])
    service = context.service

    @routes.post(
        "/images",
        status_code=202,
        summary="Hand in one image",
        responses={202: {"model": Received, "headers": _LOCATION}, **documented(408, 413, 415, 422, 503, 507)},
        openapi_extra=_IMAGE_BODY,
    )
    async def send(
        request: Request,
        priority: Annotated[
            Literal["routine", "stat"], Header(alias="X-Priority", description="`stat` overtakes the others")
        ] = "routine",
    ) -> Response:
        """Answers once the file is on the disk for good; its result comes later, at `Location`."""
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise Refusal(415, "the body is multipart, expected one file as it is: send each file as a body of its own")
        async with whole_body(request, context.memory, service.max_bytes, context.config.body_seconds) as body:
            receipt = await context.service_threads.run(service.receive, body, origin="http", stat=priority == "stat")
        log_received(receipt, client_of(request))
        content = {"id": receipt.id, "sha256": receipt.sha256, "new": receipt.new}
        return json_answer(content, 202, {"Location": f"/v1/images/{receipt.id}"})

    @routes.get(
        "/images/{id}",
        summary="What became of one image",
        responses={200: {"model": Image}, **documented(404, 503)},
    )
    async def image(id: Annotated[str, Path(json_schema_extra={"pattern": f"^{_ID.pattern}$"})]) -> Response:
        found = await context.service_threads.run(service.image, id) if _ID.fullmatch(id) else None
        if found is None:
            raise Refusal(404, "no image has this id, or no longer: ids are the 32 digits that POST /v1/images gives")
        return json_answer(found)

    @routes.get(
        "/results",
        summary="Results in the order of finishing",
        response_class=Response,
        responses={
            200: {
                "description": f"One JSON object a line, each with its `cursor`. The header {NEXT_CURSOR} has the last "
                "one: give it as `after` the next time.",
                "content": {JSON_LINES: {"schema": {"type": "string"}}},
                "headers": {NEXT_CURSOR: {"schema": {"type": "integer"}, "required": True}},
            },
            **documented(422, 503),
        },
    )
    async def results(
        after: Annotated[int, Query(ge=0, lt=CURSOR_LIMIT, description="the last cursor that is known already")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000, description="number of results at most")] = 100,
    ) -> Response:
        found = await context.service_threads.run(service.results, after, limit)
        lines = [json.dumps({**result, "cursor": cursor}, separators=(",", ":")) + "\n" for cursor, result in found]
        last = found[-1][0] if found else after
        return Response("".join(lines), media_type=JSON_LINES, headers={NEXT_CURSOR: str(last)})

    @routes.get("/status", summary="The live state", responses={200: {"model": dict[str, Any]}, **documented(503)})
    async def status() -> Response:
        return json_answer(await context.service_threads.run(service.status))

    @routes.get(
        "/passport", summary="What the bundle is", responses={200: {"model": dict[str, Any]}, **documented(503)}
    )
    async def bundle_passport() -> Response:
        return json_answer(passport(service.bundle))

    return routes
