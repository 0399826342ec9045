"""The HTTP server: a socket, TLS, and uvicorn in a thread of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
import threading
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from edge.errors import MachineError, UsageError, describe_os_error
from edge.refusals import Refusals
from edge.service import Service
from edge.sources.http.app import Door, build_app
from edge.sources.http.config import HttpConfig
from edge.sources.http.connection import Connection, Listener, tell_of_handshakes
from edge.sources.http.context import Context
from edge.sources.http.tokens import Tokens
from edge.sources.priority import step_back

log = logging.getLogger(__name__)

START_SECONDS = 30.0
STOP_SECONDS = 5.0
"""Beyond the grace: how long the thread may take to close what is left."""
HEAD_BYTES = 65536


class HttpServer:
    """Serves `service` over HTTP until it is stopped."""

    def __init__(self, service: Service, config: HttpConfig, registry: CollectorRegistry) -> None:
        """Read the tokens and the certificate, and register the metrics. Raises `UsageError` for a bad file."""
        self._config = config
        self._door = Door(Tokens.load(config.tokens)) if config.tokens else None
        self._tls = _tls_context(config)
        refusals = Refusals(log)
        if self._tls:
            tell_of_handshakes(self._tls, refusals)
        self._context = Context.make(service, config)
        self._app = build_app(self._context, registry, self._door, refusals)
        self._listener: Listener | None = None

    @property
    def port(self) -> int:
        """The port it listens on, also where the configuration says 0."""
        assert self._listener is not None, "start() comes first"
        return self._port

    def start(self) -> None:
        """Bind the socket and serve. Raises `MachineError` if the port is taken, or is not to be had."""
        config = self._config
        try:
            self._listener = Listener.bind_to(str(config.address), config.port, config.connections, config.body_seconds)
        except OSError as error:
            raise MachineError(_bind_error(config, error)) from None
        self._port: int = self._listener.getsockname()[1]
        self._server = self._make_server()
        self._thread = threading.Thread(target=self._run, name="http-server", daemon=True)
        self._thread.start()
        if not self._wait_until_started():
            raise MachineError("the HTTP server did not start: run with --verbose to see why")
        where = f"[{config.address}]" if config.address.version == 6 else str(config.address)
        log.info("http: listening on %s://%s:%d", "https" if self._tls else "http", where, self._port)
        if self._door and not self._tls and not config.address.is_loopback:
            log.warning("http: tokens and images cross the network in the clear: set certificate and key")
        if not self._door and not config.address.is_loopback:
            log.warning("http: allow_anonymous: anybody who reaches this address may send images and read results")

    def reload(self) -> None:
        """Read tokens and certificate anew; open connections go on. Changes nothing if it raises `UsageError`."""
        tokens = Tokens.load(self._config.tokens) if self._config.tokens else None
        _tls_context(self._config)  # tried on another context first
        if tokens and self._door:
            self._door.tokens = tokens
        if self._tls:
            _load_certificate(self._tls, self._config)

    def check(self) -> None:
        """Raises `MachineError` if it has stopped by itself."""
        if not self._thread.is_alive():
            raise MachineError("the HTTP server stopped by itself: run with --verbose to see why, and restart")

    def stop(self, grace: float) -> None:
        """Take no more connections, let the requests under way finish for `grace` seconds, then end them."""
        self._server.config.timeout_graceful_shutdown = max(1, round(grace))
        self._server.should_exit = True
        self._thread.join(grace + STOP_SECONDS)
        self._context.close()

    def _make_server(self) -> uvicorn.Server:
        protocol = type(
            "BoundedConnection",
            (Connection,),
            {"connection_limit": self._config.connections, "head_seconds": self._config.head_seconds},
        )
        config = uvicorn.Config(
            self._app,
            http=protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            interface="asgi3",
            log_config=None,
            log_level=logging.CRITICAL,  # it logs requests' faults, with tracebacks: `guard` says what there is to say
            access_log=False,
            proxy_headers=False,  # anybody on this machine could choose the address that the limits go by
            server_header=False,
            timeout_keep_alive=self._config.idle_seconds,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        config.load()
        config.ssl = self._tls
        return uvicorn.Server(config)

    def _run(self) -> None:
        step_back()
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # check() tells the daemon
            log.error("http: the server failed with %s; --verbose shows where", type(error).__name__)
            log.debug("http: the failure", exc_info=True)

    async def _serve(self) -> None:
        assert self._listener is not None
        asyncio.get_running_loop().set_exception_handler(_log_loop_error)
        await self._server.serve(sockets=[self._listener])

    def _wait_until_started(self) -> bool:
        pause = threading.Event()
        for _ in range(int(START_SECONDS / 0.01)):
            if self._server.started or not self._thread.is_alive():
                break
            pause.wait(0.01)
        return self._server.started


def _log_loop_error(loop: asyncio.AbstractEventLoop, facts: dict[str, Any]) -> None:
    """One line without what came in: most are clients that broke off a handshake."""
    log.debug("http: %s", facts.get("message"), exc_info=facts.get("exception"))


def _bind_error(config: HttpConfig, error: OSError) -> str:
    advice = {
        errno.EADDRINUSE: "another program listens there: stop it, or choose another port",
        errno.EACCES: "ports below 1024 are for the administrator: choose another port, or grant CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine has no such address: choose one that it has",
    }.get(error.errno or 0, "choose another address or port")
    return f"http: cannot listen on {config.address} port {config.port}: {error.strerror}: {advice}"


def _tls_context(config: HttpConfig) -> ssl.SSLContext | None:
    if config.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, config)
    return context


def _load_certificate(context: ssl.SSLContext, config: HttpConfig) -> None:
    assert config.certificate is not None and config.key is not None
    for path in (config.certificate, config.key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageError(f"http: {describe_os_error(error)}") from None
    try:
        # The password is asked for on the terminal otherwise; a daemon has none.
        context.load_cert_chain(config.certificate, config.key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "unreadable"
        raise UsageError(
            f"http: {config.certificate} and {config.key} are no PEM certificate and its key without a password "
            f"({reason}): check certificate and key"
        ) from None
