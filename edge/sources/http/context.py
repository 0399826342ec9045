"""What the routes share."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from fastapi import Request

from edge.service import Receipt, Service
from edge.sources.http.bodies import Memory
from edge.sources.http.config import HttpConfig

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SERVICE_THREADS = 8
"""Threads that call the daemon; each call is short, but for the disk."""
INFER_THREADS = 16
"""Threads that wait for inference requests: their images share batches."""
MB = 1_000_000


class Threads:
    """Runs calls that block beside the event loop, a bounded number at a time; the others wait their turn."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(call, *args, **kwargs))

    def close(self) -> None:
        """Take no more calls; those under way go on, and nobody waits for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def client_of(request: Request) -> str:
    """The name of the token that the request came with, for the log."""
    return str(getattr(request.state, "client", "somebody without a token"))


def log_received(receipt: Receipt, client: str) -> None:
    again = "" if receipt.new else ": known already, not run twice"
    log.info("received %s (sha256 %s...) from %s%s", receipt.id, receipt.sha256[:12], client, again)


@dataclass(frozen=True)
class Context:
    """The daemon, the settings, and the bounds that all requests together keep."""

    service: Service
    config: HttpConfig
    memory: Memory
    service_threads: Threads
    infer_threads: Threads

    @classmethod
    def make(cls, service: Service, config: HttpConfig) -> Context:
        memory = Memory(config.max_memory_mb * MB)
        return cls(service, config, memory, Threads(SERVICE_THREADS, "http"), Threads(INFER_THREADS, "http-infer"))

    def close(self) -> None:
        self.service_threads.close()
        self.infer_threads.close()
