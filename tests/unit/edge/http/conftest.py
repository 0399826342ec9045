"""The HTTP server before a daemon of a few lines, on a free port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from edge.bundle import Bundle
from edge.sources.http.config import HttpConfig
from edge.sources.http.server import HttpServer
from tests.unit.edge.http.service import FakeService

Serve = Callable[..., httpx.Client]


@pytest.fixture
def service(tiny_bundle: Bundle) -> FakeService:
    return FakeService(tiny_bundle)


@pytest.fixture(scope="session")
def stopping() -> Iterator[ThreadPoolExecutor]:
    """Stops servers beside the next tests: each takes 0.2 s for it."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def start(service: FakeService, stopping: ThreadPoolExecutor) -> Iterator[Callable[..., HttpServer]]:
    """Starts a server of `service`: ``start(<entry of HttpConfig>=...)``; all are stopped at the end."""
    running: list[HttpServer] = []

    def start(**settings: Any) -> HttpServer:
        server = HttpServer(service, HttpConfig(**{"port": 0, **settings}), CollectorRegistry())
        server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        stopping.submit(server.stop, 1)


@pytest.fixture
def serve(start: Callable[..., HttpServer]) -> Iterator[Serve]:
    """Starts a server, and gives a client of it: ``serve(<entry of HttpConfig>=...)``."""
    clients: list[httpx.Client] = []

    def serve(**settings: Any) -> httpx.Client:
        clients.append(httpx.Client(base_url=f"http://127.0.0.1:{start(**settings).port}", timeout=20))
        return clients[-1]

    yield serve
    for client in clients:
        client.close()
