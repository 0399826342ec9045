"""The application: every route, what it takes to use it, and the guard before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp

from edge import __version__
from edge.refusals import Refusals
from edge.sources.http import answers, images, kserve, stow
from edge.sources.http.answers import Refusal, documented
from edge.sources.http.context import Context
from edge.sources.http.guard import Guard
from edge.sources.http.tokens import Tokens
from edge.web.routes import data_routes, static_routes

TEXT_FORMAT = "text/plain; version=0.0.4"
"""Prometheus's text format, which every release reads."""


class Door:
    """Lets requests in that carry a good token. The tokens may be exchanged while it serves."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    async def let_in(
        self,
        request: Request,
        credentials: Annotated[
            HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False, scheme_name="token"))
        ],
    ) -> None:
        """The dependency of every route behind the door. Raises `Refusal` (401)."""
        client = self.tokens.client(credentials.credentials) if credentials else None
        if client is None:
            came = "no bearer token" if credentials is None else "a token that is not known"
            text = f"the request has {came}, expected `Authorization: Bearer TOKEN`: ask this daemon's keeper for one"
            raise Refusal(401, text, {"WWW-Authenticate": "Bearer"})
        request.state.client = client


def build_app(context: Context, registry: CollectorRegistry, door: Door | None, refusals: Refusals) -> ASGIApp:
    """The ASGI application; behind `door` lies all but health, description and the files of the page."""
    app = FastAPI(
        title="edge-infer",
        version=__version__,
        description="Chest X-ray findings: images in, results out. Not a medical device.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    answers.install(app)
    for router in (kserve.health_router(context), static_routes()):
        app.include_router(router)
    authorised: Sequence[Any] = [Depends(door.let_in)] if door else []
    responses = documented(401) if door else documented()
    interfaces = (images.router(context), stow.router(context), kserve.router(context), data_routes(context.service))
    for router in (*interfaces, _metrics(registry)):
        app.include_router(router, dependencies=authorised, responses=responses)
    return Guard(app, context.config, registry, refusals)


def _metrics(registry: CollectorRegistry) -> APIRouter:
    routes = APIRouter(tags=["metrics"])

    @routes.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **documented(),
        },
    )
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=TEXT_FORMAT)

    return routes
