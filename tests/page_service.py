"""A stand-in for the daemon behind its web page: the studies are given, nothing is run."""

from __future__ import annotations

import secrets
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request

from edge.bundle import Bundle
from edge.results import timestamp
from edge.service import Picture
from edge.web.routes import data_routes, static_routes
from edge.web.status import Status


class PageService:
    """What the page asks of `edge.service.Service`, and calls by which a test lets something happen."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.runs: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, Picture] = {}
        self.live: Status = {
            "ready": True,
            "stopping": False,
            "uptime_seconds": 4000.0,
            "backend": "onnxruntime",
            "self_test": {"images": 5, "difference": {"max": 1e-6, "mean": 1e-7}, "tolerance": {"max": 1, "mean": 1}},
            "queue": {"waiting": 0, "running": 0, "limit": 1000},
            "counts": {"done": 0, "refused": 0},
            "latency_ms": [],
            "sinks": {},
            "pictures": True,
            "memory_mb": 512.5,
            "temperatures": {},
            "power": {},
        }

    def finish(self, probabilities: dict[str, float] | None = None, reason: str | None = None, **changes: Any) -> str:
        """One more finished study, done with these findings or refused for this reason; returns its id."""
        id = uuid.uuid4().hex
        chances = {**dict.fromkeys(self.bundle.labels, 0.02), **(probabilities or {})}
        findings = {
            label: {"probability": value, "positive": value >= self.bundle.thresholds[label]}
            for label, value in chances.items()
        }
        result = {
            "id": id,
            "source": None,
            "sha256": secrets.token_hex(32),
            "status": "refused" if reason else "done",
            "reason": reason,
            "findings": None if reason else findings,
            "guard": None,
            "timings_ms": {"infer": 20.0, "total": 41.5},
            "bundle": self.bundle.sha256,
            "gate": self.bundle.gate_verdict,
            "time": timestamp(),
            **changes,
        }
        if not reason:
            rng = np.random.default_rng(len(self.runs))
            pixels = rng.integers(0, 256, (64, 64), dtype=np.uint8)
            cam = rng.normal(size=(len(self.bundle.labels), 7, 7)).astype(np.float32)
            self.pictures[id] = Picture(pixels, cam, self.bundle.labels)
            self.live["latency_ms"].append((time.time(), 41.5, 20.0))
        self.live["counts"][result["status"]] += 1
        self.receive_only(id, state=result["status"], result=result)
        return id

    def receive_only(self, id: str, *, state: str, result: dict[str, Any] | None = None) -> None:
        run = {"id": id, "state": state, "received": timestamp(), "origin": "http", "result": result}
        self.runs = {id: run, **self.runs}

    def image(self, id: str) -> dict[str, Any] | None:
        return self.runs.get(id)

    def recent(self, limit: int) -> list[dict[str, Any]]:
        return list(self.runs.values())[:limit]

    def picture(self, id: str) -> Picture | None:
        return self.pictures.get(id)

    def status(self) -> Status:
        return self.live


def page_app(service: PageService, token: str | None = None) -> FastAPI:
    """The page alone; with a `token`, its data only for those who send it."""

    def check(request: Request) -> None:
        if token and request.headers.get("authorization") != f"Bearer {token}":
            raise HTTPException(401, "a token is needed", {"WWW-Authenticate": "Bearer"})

    app = FastAPI()
    app.include_router(static_routes())
    app.include_router(data_routes(service), dependencies=[Depends(check)])  # type: ignore[arg-type]
    return app


@contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve `app` on 127.0.0.1, on a free port if none is named; yields the page's address."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
