"""What every request passes before the application sees it, and every answer on its way out."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import OrderedDict
from urllib.parse import urlsplit

import anyio
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.refusals import Refusals
from edge.sources.http.answers import error_answer, retry_after
from edge.sources.http.config import HttpConfig
from edge.sources.http.connection import LINGER_SECONDS, Address, plain_address

log = logging.getLogger(__name__)

ADDRESSES = 10_000
"""Addresses whose rate is remembered: the longest silent ones are forgotten first."""
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

TOLD = frozenset((400, 401, 403, 404, 405, 409, 413, 421))
"""Refusals that the log tells of: who tries doors gets one of these. A 404 only where nothing is at the path."""


class RateLimit:
    """A token bucket for each client: `burst` requests at once, `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str, now: float) -> float:
        """Seconds until this client may send a request; 0 if it may now, and then this one counts."""
        left, since = self._buckets.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + (now - since) * self._rate)
        allowed = left >= 1.0
        self._buckets[client] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate


class Guard:
    """Wraps the application: address, rate, host name and origin on the way in; headers and metrics on the way out."""

    def __init__(self, app: ASGIApp, config: HttpConfig, registry: CollectorRegistry, refusals: Refusals) -> None:
        self._app = app
        self._config = config
        self._refusals = refusals
        self._rate = RateLimit(config.requests_per_second, config.burst)
        self._requests = Counter(
            "edge_infer_http_requests",
            "HTTP requests by route and status",
            ("route", "method", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "edge_infer_http_request_seconds", "Time until a request is answered", ("route",), registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # there is no other: web sockets and lifespan are switched off
            raise RuntimeError(f"an ASGI scope of type {scope['type']}")
        start = time.monotonic()
        exchange = _Exchange(scope, receive, send)
        try:
            answer = self._refuse(scope)
            await (answer or self._app)(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception as error:
            # Only its type: its text may quote what came in.
            log.error("http: an answer failed with %s; --verbose shows where", type(error).__name__)
            log.debug("http: the failure", exc_info=True)
            if exchange.status is None:
                await error_answer(500, "the server failed: see its log")(scope, exchange.receive, exchange.send)
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._requests.labels(route, method, str(exchange.status or "gone")).inc()
        self._seconds.labels(route).observe(time.monotonic() - start)
        if exchange.status in TOLD and not (exchange.status == 404 and route != "none"):
            facts = exchange.status, method, route, client_address(scope)
            self._refusals.tell(exchange.status, "http: refused with %d: method %s, route %s, from %s", *facts)

    def _refuse(self, scope: Scope) -> Response | None:
        address = client_address(scope)
        headers = Headers(scope=scope)
        if self._config.allow and not any(address in network for network in self._config.allow):
            return error_answer(403, "this address is not among those that may connect: see `allow` in [http]")
        wait = self._rate.wait(rate_key(address), time.monotonic())
        if wait > 0:
            return error_answer(429, "too many requests from this address: send fewer a second", retry_after(wait))
        if not self._host_is_ours(headers.get("host", "")):
            return error_answer(
                421, "the header Host has a name that this server does not go by: add it to `hosts` in [http]"
            )
        if scope["method"] not in ("GET", "HEAD") and not _is_own_page(headers):
            return error_answer(403, "the request comes from a page of another site: use the daemon's own page")
        return None

    def _host_is_ours(self, host: str) -> bool:
        """Whether a browser that was told a lie by its name server could not have sent this `Host`.

        A web page whose name is made to point here ("DNS rebinding") is refused by its name. With tokens there is
        nothing to gain for such a page, and any name is good unless `hosts` says which.
        """
        if self._config.tokens is not None and not self._config.hosts:
            return True
        name = _host_name(host)
        return name == "localhost" or _is_address(name) or name in {known.lower() for known in self._config.hosts}


class _Exchange:
    """One request and its answer, with what the answer needs added."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._read = False
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Cache-Control", "no-store")
            headers.setdefault("Referrer-Policy", "no-referrer")
            if not self._read and self._has_body():
                headers["Connection"] = "close"
        elif not message.get("more_body", False) and not self._read and self._has_body():
            # A socket that is closed with unread bytes is reset, and the client may lose the answer: so the whole
            # answer is sent, what still comes is thrown away for a while, and only then the connection is closed.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _has_body(self) -> bool:
        headers = Headers(scope=self._scope)
        return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

    async def _linger(self) -> None:
        if "expect" in Headers(scope=self._scope):  # this client waits for leave to send its body, and got none
            return
        with anyio.move_on_after(LINGER_SECONDS):
            while not self._read:
                await self.receive()


def client_address(scope: Scope) -> Address:
    """The other end of the connection."""
    return plain_address(scope["client"][0])


def rate_key(address: Address) -> str:
    """What counts as one client: an IPv4 address, or the /64 network from which one may choose IPv6 addresses."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _is_own_page(headers: Headers) -> bool:
    """Whether the request comes from no web page at all, or from one of this server."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    host = headers.get("host", "").lower()
    return all(_authority(origin) == host for origin in headers.getlist("origin"))


def _authority(origin: str) -> str | None:
    """Host name and port of a page's origin; None where it has none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """The name or address in a `Host` header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
