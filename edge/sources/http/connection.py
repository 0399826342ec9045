"""One client's connection: what uvicorn's own protocol lacks against clients that send nothing, slowly, or nonsense."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import ssl
import weakref
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.refusals import Refusals

LINGER_SECONDS = 2.0
"""How long what a client still sends is read, once it has been turned away."""
SPARE_SOCKETS = 32
"""Accepted sockets beyond the connections: those in a TLS handshake, and those that are being told no."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_peer: ContextVar[str] = ContextVar("peer")
"""Whose connection is served: asyncio serves each one in a copy of the context in which it was accepted."""


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, with a limit on connections, a time limit for a request's head, and answers in JSON."""

    connection_limit: int
    head_seconds: float
    _head_timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connection_limit:
            text = f"the server has {self.connection_limit} connections, which is all that it takes: try again later"
            self._refuse(503, text, "Retry-After: 5\r\n")
            return
        self._time_head()

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._time_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends nothing more. Whether the connection is kept: for the answer to a whole request it is."""
        if self.scheme == "https" or self._refused or self.transport.is_closing():
            return False  # in TLS the end of one direction is that of both
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return True
        cut_short = self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])
        if cut_short and not (answering and self.cycle.response_started):
            self._refuse(400, "the connection ended within a request: send the whole")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self.transport.close()  # also after a reset, where uvicorn leaves it to the garbage collector

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP. Also called amid a request whose body turns out malformed, perhaps answered."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
        else:
            self._refuse(400, "what came is no HTTP/1.1 request: send one")

    def _time_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        self._refuse(408, f"the request's head had not come after {self.head_seconds:g} s: send it faster")

    def _refuse(self, status: int, text: str, more_headers: str = "") -> None:
        """Answer past h11, whose state may allow no answer, and close.

        A socket that is closed with unread bytes is reset, and the client may lose the answer: so it is closed on one
        side first, and what still comes is thrown away for a while.
        """
        self._refused = True
        self._stop_timer()
        if self.cycle is not None and not self.cycle.response_complete:  # the application sees a client that is gone
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps({"error": text})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{more_headers}\r\n"
        )
        self.transport.write((head + body).encode("ascii"))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:  # TLS
            self.transport.close()


class Listener(socket.socket):
    """A listening socket that accepts no more than `limit` connections at one time, whatever state they are in.

    uvicorn knows a connection only once its TLS handshake is over. Those that never finish it would otherwise take the
    file descriptors that the daemon needs for images and its ledger.
    """

    limit: int
    _accepted: weakref.WeakSet[socket.socket]

    def accept(self) -> tuple[socket.socket, Any]:
        """As `socket.accept`. One too many is closed at once, and `BlockingIOError` says that there is none."""
        accepted, address = super().accept()
        open_sockets = sum(known.fileno() != -1 for known in self._accepted)
        if open_sockets >= self.limit:
            accepted.close()
            raise BlockingIOError
        self._accepted.add(accepted)
        _peer.set(address[0])
        return accepted, address

    @classmethod
    def bind_to(cls, address: str, port: int, limit: int, seconds: float) -> Listener:
        """Bound to `address`; a client that takes no bytes for `seconds` is dropped. Raises `OSError`."""
        # The protocol is named because asyncio sets TCP_NODELAY only where it is.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = cls(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.limit = limit + SPARE_SOCKETS
        listener._accepted = weakref.WeakSet()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
            listener.setblocking(False)
            listener.bind((address, port))
            listener.listen(limit)
        except OSError:
            listener.close()
            raise
        return listener


def plain_address(host: str) -> Address:
    """The address in `host`, without a zone; an IPv4 address in IPv6 form as what it is."""
    address = ipaddress.ip_address(host.split("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def tell_of_handshakes(context: ssl.SSLContext, refusals: Refusals) -> None:
    """Have the log tell of each TLS handshake of `context` that fails, which asyncio does not."""

    class TellingObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except ssl.SSLWantReadError:
                raise  # it goes on once more has come
            except ssl.SSLError as error:
                facts = error.reason or "malformed", plain_address(_peer.get())
                refusals.tell("tls", "http: refused: TLS handshake failed (%s), from %s", *facts)
                raise

    context.sslobject_class = TellingObject
