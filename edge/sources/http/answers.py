"""Answers that are no success: each an explicit status and ``{"error": what came, what was expected, what to do}``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edge.errors import EdgeError, InputRefusedError
from edge.service import BusyError, StorageFullError


class Error(BaseModel):
    """Why a request was turned away."""

    error: str = Field(description="what came, what was expected, what to do")


DESCRIPTIONS: Mapping[int, str] = {
    400: "The request is malformed.",
    401: "No bearer token, or not a good one.",
    403: "The address may not connect, or the request comes from a page of another site.",
    404: "There is no such thing.",
    406: "The answer has none of the types that are accepted.",
    408: "The body took too long to arrive.",
    409: "None of the instances was taken.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken.",
    421: "The server does not answer to this host name.",
    422: "A value is of the wrong form, or the file was refused.",
    429: "Too many requests, or the queue is full: see Retry-After.",
    503: "The daemon is not ready, or short of memory: see Retry-After where there is one.",
    507: "The disk is full.",
}
ALWAYS = (403, 421, 429)
"""What any request may get, before it is looked at."""

RETRY_AFTER: Mapping[str, Any] = {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}


class Refusal(Exception):  # noqa: N818 -- an answer, no error of ours
    """The request is answered with `status` and `text`."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The entries of an OpenAPI operation for these statuses, and for those that any request may get."""
    return {
        status: {
            "model": Error,
            "description": DESCRIPTIONS[status],
            **({"headers": {"Retry-After": RETRY_AFTER}} if status in (429, 503) else {}),
        }
        for status in sorted({*statuses, *ALWAYS})
    }


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as JSON in ASCII, so that no text that came in can make the answer impossible to encode."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
    return Response(body, status, headers, media_type="application/json")


def error_answer(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return json_answer({"error": text}, status, headers)


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come again: whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def refused_by_service(error: EdgeError) -> Response:
    """The answer for an error of the daemon's."""
    if isinstance(error, BusyError):
        return error_answer(429, str(error), retry_after(error.retry_after))
    if isinstance(error, StorageFullError):
        return error_answer(507, str(error))
    if isinstance(error, InputRefusedError):
        return error_answer(422, str(error))
    return error_answer(503, str(error))


def install(app: FastAPI) -> None:
    """Give `app` an answer for each kind of exception that is meant for the client."""

    @app.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> Response:
        return error_answer(error.status, error.text, error.headers)

    @app.exception_handler(EdgeError)
    async def service_error(request: Request, error: EdgeError) -> Response:
        return refused_by_service(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{' '.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
        return error_answer(422, f"{wrong}: see /openapi.json for what is expected")

    @app.exception_handler(HTTPException)
    async def protocol(request: Request, error: HTTPException) -> Response:
        text = {
            "Not Found": "nothing is at this path: see /openapi.json for what is",
            "Method Not Allowed": "this path does not take this method: see the header Allow for those that it takes",
        }.get(error.detail, error.detail)
        return error_answer(error.status_code, text, error.headers)
