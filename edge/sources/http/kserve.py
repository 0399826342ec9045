"""The KServe v2 inference protocol: the network itself, past preprocessing and past the ledger."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from edge import __version__
from edge.bundle import Bundle
from edge.pipeline import Outcome
from edge.results import probabilities
from edge.sources.http import tensors
from edge.sources.http.answers import Error, Refusal, documented, json_answer
from edge.sources.http.bodies import whole_body
from edge.sources.http.context import Context

_BINARY = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
_INFER_BODY = {
    "requestBody": {
        "required": True,
        "description": "JSON, or JSON followed by binary tensors (Triton's extension), its length then in the header "
        f"{tensors.HEADER_LENGTH}.",
        "content": {
            "application/json": {"schema": tensors.REQUEST_SCHEMA},
            "application/octet-stream": _BINARY,
        },
    }
}


class Tensor(BaseModel):
    """What is said of an input or output."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 where any size is taken")


class ModelMetadata(BaseModel):
    """What is said of the network."""

    name: str
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: dict[str, Any] = Field(description="the findings in the order of the outputs, and the bundle's SHA-256")


class ServerMetadata(BaseModel):
    """What is said of the server."""

    name: str
    version: str
    extensions: list[str]


class OutputTensor(BaseModel):
    """One output of an answer; its values follow the JSON where it has parameters instead of data."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | None = None
    parameters: dict[str, int] | None = None


class InferenceAnswer(BaseModel):
    """The outputs for the images that were sent."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    id: str | None = None
    outputs: list[OutputTensor]


def health_router(context: Context) -> APIRouter:
    """Whether the process lives, and whether it takes work: open to everybody, for load balancers and watchdogs."""
    routes = APIRouter(prefix="/v2/health", tags=["inference"])

    @routes.get(
        "/live", summary="Whether the server lives", responses={200: {"model": dict[str, bool]}, **documented()}
    )
    async def live() -> Response:
        return json_answer({"live": True})

    @routes.get(
        "/ready", summary="Whether images are run", responses={200: {"model": dict[str, bool]}, **documented(503)}
    )
    async def ready() -> Response:
        require_ready(context)
        return json_answer({"ready": True})

    return routes


def router(context: Context) -> APIRouter:
    """The routes under ``/v2`` but for the health ones."""
    routes = APIRouter(prefix="/v2", tags=["inference"])
    service = context.service

    @routes.get("", summary="What the server is", responses={200: {"model": ServerMetadata}, **documented()})
    async def server_metadata() -> Response:
        return json_answer({"name": "edge-infer", "version": __version__, "extensions": ["binary_tensor_data"]})

    @routes.get(
        "/models/{name}", summary="What the network is", responses={200: {"model": ModelMetadata}, **documented(404)}
    )
    async def model_metadata(name: str) -> Response:
        return json_answer(_metadata(named(service.bundle, name)))

    @routes.get(
        "/models/{name}/ready",
        summary="Whether the network runs",
        responses={200: {"model": dict[str, Any]}, **documented(404, 503)},
    )
    async def model_ready(name: str) -> Response:
        named(service.bundle, name)
        require_ready(context)
        return json_answer({"name": name, "ready": True})

    @routes.post(
        "/models/{name}/infer",
        summary="Run ready images",
        responses={
            200: {"model": InferenceAnswer, "content": {"application/octet-stream": _BINARY}},
            400: {"model": Error, "description": "The request does not fit the protocol or the network."},
            **documented(404, 408, 413, 415, 422, 503),
        },
        openapi_extra=_INFER_BODY,
    )
    async def infer(name: str, request: Request) -> Response:
        """The input `image` is UINT8 [N, 1, S, S]; nothing is kept of it."""
        bundle = named(service.bundle, name)
        require_ready(context)
        limit = tensors.body_limit(bundle.batch, bundle.input_size)
        async with whole_body(request, context.memory, limit, context.config.body_seconds) as body:
            return await context.infer_threads.run(
                _infer, context, bundle, body, request.headers.get(tensors.HEADER_LENGTH)
            )

    return routes


def named(bundle: Bundle, name: str) -> Bundle:
    """The bundle, if that is its name."""
    if name != bundle.name:
        raise Refusal(404, f"no network has this name: the one that is served is {bundle.name}")
    return bundle


def require_ready(context: Context) -> None:
    if not context.service.ready():
        raise Refusal(
            503, "the daemon is starting, stopping or changing its bundle: try again later", {"Retry-After": "5"}
        )


def _infer(context: Context, bundle: Bundle, body: bytes, header_length: str | None) -> Response:
    asked = tensors.parse(body, header_length, bundle.batch, bundle.input_size, _outputs(bundle))
    outcomes = context.service.infer(asked.images, context.config.infer_seconds)
    for number, outcome in enumerate(outcomes):
        if outcome.logits is None:  # tensors have no place for a refusal, and the other rows must not move up
            raise Refusal(422, f"image {number} of {len(outcomes)}, counted from 0: {outcome.result['reason']}")
    facts: dict[str, Any] = {"model_name": bundle.name}
    if asked.id is not None:
        facts["id"] = asked.id
    content, header = tensors.render(asked.outputs, _tensors(outcomes, asked.outputs), facts)
    if header is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={tensors.HEADER_LENGTH: str(header)})


def _tensors(outcomes: list[Outcome], wanted: tuple[tuple[str, bool], ...]) -> dict[str, NDArray[np.float32]]:
    logits = np.stack([outcome.logits for outcome in outcomes if outcome.logits is not None])
    found = {"logits": logits, "probabilities": probabilities(logits).astype(np.float32)}
    if ("cam", True) in wanted or ("cam", False) in wanted:
        found["cam"] = np.stack([outcome.cam for outcome in outcomes if outcome.cam is not None])
    return found


def _outputs(bundle: Bundle) -> tuple[str, ...]:
    return ("logits", "probabilities", *(("cam",) if bundle.has_cam else ()))


def _metadata(bundle: Bundle) -> dict[str, Any]:
    size, labels = bundle.input_size, len(bundle.labels)
    shapes = {"logits": [-1, labels], "probabilities": [-1, labels], "cam": [-1, labels, -1, -1]}
    return {
        "name": bundle.name,
        "platform": f"edge-infer_{bundle.precision}",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, size, size]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": shapes[name]} for name in _outputs(bundle)],
        "parameters": {"labels": list(bundle.labels), "max_batch_size": bundle.batch, "bundle": bundle.sha256},
    }
