"""pynetdicom's server with the bounds that it lacks: who may connect, how long a PDU may take, how much is buffered.

pynetdicom 3.0 reads a PDU of whatever length the peer declares (up to 4 GiB) without a time limit, keeps a data set of
any size in memory, makes the TLS handshake in the thread that accepts connections (so that one silent client stops
all), and prints a traceback for a failed connection. Each is replaced here.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler

from edge.refusals import Refusals

log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_CONTROL_PDU = 1 << 20
"""Largest PDU before an association is established: 128 presentation contexts take far less than this."""
MAX_COMMAND = 1 << 16
"""Largest command set of a message."""
PDU_HEADER = 6
AWAITING_REQUEST = "Sta2"
"""The state of a connection that has not asked for an association yet (PS3.8 table 9-2)."""


class _OverLimitError(OSError):
    """The peer sent more than is taken. An `OSError`, since those end the connection in pynetdicom's reactor."""


@dataclass
class Limits:
    """What a server's connections may use; shared by all of them."""

    pdu: int
    """Bytes of a P-DATA PDU."""
    data_set: int
    """Bytes of one data set."""
    all_data_sets: int
    """Bytes of all data sets that are being received."""
    seconds: float
    """For one PDU, from its first byte to its last; and for each write."""
    connections: int
    """Open connections, with an association or without."""
    networks: tuple[Network, ...]
    """Addresses that may connect; all where it is empty."""
    _receiving: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admits(self, address: str) -> bool:
        """Whether a peer at IP `address` may connect."""
        if not self.networks:
            return True
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.networks)

    def count(self, key: int, size: int) -> int:
        """Note that connection `key` holds `size` bytes of a data set; returns what all hold together."""
        with self._lock:
            if size:
                self._receiving[key] = size
            else:
                self._receiving.pop(key, None)
            return sum(self._receiving.values())


class _BoundedSocket(AssociationSocket):
    """A connection whose reads are bounded in size and time, and that always gives its descriptor back."""

    def __init__(self, made: AssociationSocket, limits: Limits, refusals: Refusals) -> None:
        vars(self).update(vars(made))  # not by its constructor, which would announce the connection a second time
        self._limits = limits
        self.refusals = refusals

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, fewer where the connection ends. Raises `OSError` over a limit, which ends it."""
        if nr_bytes != PDU_HEADER:
            self._check(nr_bytes)
        connection = self.socket
        if connection is None:
            raise _OverLimitError("the connection is closed")
        received, end = bytearray(nr_bytes), 0
        deadline = time.monotonic() + self._limits.seconds
        with memoryview(received) as view:
            while end < nr_bytes:
                connection.settimeout(max(deadline - time.monotonic(), 1e-3))
                count = self._read(connection, view[end:])
                if not count:
                    break
                end += count
        connection.settimeout(self._limits.seconds)  # for what is sent
        del received[end:]
        return received

    def _read(self, connection: socket.socket, view: memoryview) -> int:
        """Read what is there; the first time, the TLS handshake comes before it."""
        try:
            return connection.recv_into(view)
        except ssl.SSLEOFError:
            raise  # it went away; who only looks whether a port is open does so
        except ssl.SSLError as error:
            facts = self.assoc.requestor.address, error.reason or "malformed"
            self.refusals.tell("tls", "dicom: connection from %s refused: TLS failed (%s)", *facts)
            raise

    def _check(self, length: int) -> None:
        """Refuse a PDU of `length` bytes that would take the connection, or all of them, over a limit."""
        association = self.assoc
        if length > (self._limits.pdu if association.is_established else MAX_CONTROL_PDU):
            self._refuse(f"a PDU of {length:,} bytes")
        message = association.dimse.message
        size = message.data_set.tell() if message is not None and message.data_set is not None else 0
        together = self._limits.count(id(association), size)
        if size + length > self._limits.data_set + self._limits.pdu:
            self._refuse(f"a data set of more than {self._limits.data_set:,} bytes")
        if size and together > self._limits.all_data_sets:
            self._refuse(f"more than {self._limits.all_data_sets:,} bytes in data sets of all associations together")
        if message is not None and message.encoded_command_set.tell() > MAX_COMMAND:
            self._refuse("a command of many bytes")
        if size and association.dimse.msg_queue.qsize():
            self._refuse("a second image before the first was answered")

    def _refuse(self, what: str) -> None:
        facts = self.assoc.requestor.address, what
        self.refusals.tell("limit", "dicom: association from %s aborted: the peer sent %s", *facts)
        abort = A_ABORT_RQ()
        abort.source, abort.reason_diagnostic = 2, 0  # the service provider, which gives no reason
        self.send(abort.encode())  # at once: the reactor sends nothing more once the connection counts as closed
        raise _OverLimitError(what)

    def _shutdown_socket(self) -> None:
        self._limits.count(id(self.assoc), 0)
        if self.assoc.dul.state_machine.current_state == AWAITING_REQUEST:
            # Else its thread waits for the request until `acse_timeout`; it takes None for that.
            self.assoc.dul.to_user_queue.put(None)
        if self.socket is not None:
            close_socket(self.socket)


class _Handler(RequestHandler):
    server: BoundedServer

    def _create_association(self) -> Association:
        association = super()._create_association()
        made = association.dul.socket
        if made is None:
            raise OSError("the connection is closed")
        association.dul.socket = bounded = _BoundedSocket(made, self.server.limits, self.server.refusals)
        for thread in (association, association.dul):
            thread.run = functools.partial(_run_reactor, thread.run, bounded)  # type: ignore[method-assign]
        return association


def _run_reactor(run: Callable[[], None], connection: _BoundedSocket) -> None:
    """One of a connection's two threads, which raises where the peer sends what does not fit the connection's state."""
    try:
        run()
    except Exception as error:
        facts = connection.assoc.requestor.address, type(error).__name__
        connection.refusals.tell("protocol", "dicom: association from %s ended: it broke the protocol (%s)", *facts)
        log.debug("dicom", exc_info=True)
        connection._shutdown_socket()


class BoundedServer(AssociationServer):
    """Accepts associations within `limits`."""

    request_queue_size = 64

    def __init__(
        self,
        entity: AE,
        address: tuple[str, int],
        handlers: list[Any],
        *,
        tls: ssl.SSLContext | None,
        limits: Limits,
        refusals: Refusals,
    ) -> None:
        """Listen on `address`. Raises `OSError` if it is taken, or none of this machine's."""
        self.limits = limits
        self.refusals = refusals
        super().__init__(
            *(entity, address, entity.ae_title, entity.supported_contexts, tls),
            evt_handlers=[*handlers, (evt.EVT_DIMSE_RECV, self._received)],
            request_handler=_Handler,
        )
        # Where its own `shutdown` takes it from.
        entity._servers.append(self)  # type: ignore[arg-type]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = self.socket.accept()  # type: ignore[union-attr]
        try:
            connection.settimeout(self.limits.seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # answers are small and awaited
            context: ssl.SSLContext | None = self.ssl_context
            if context is not None and self.limits.admits(address[0]):
                # The handshake is made at the first read, in the connection's own thread.
                connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except BaseException:
            connection.close()
            raise
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Turn a connection away before anything is read from it."""
        if not self.limits.admits(client_address[0]):
            message = "dicom: connection from %s refused: it is not in `addresses`"
            self.refusals.tell("address", message, client_address[0])
        elif len(self.active_associations) >= self.limits.connections:
            message = "dicom: connection from %s refused: too many are open"
            self.refusals.tell("connections", message, client_address[0])
        else:
            return True
        return False

    def _received(self, event: evt.Event) -> None:
        """A message is complete: its data set is no longer being received."""
        self.limits.count(id(event.assoc), 0)

    def end_associations(self, seconds: float) -> None:
        """End what is open; waits `seconds` for each at most."""
        ending = self.active_associations
        for association in ending:
            association.abort(block=False)
            made = association.dul.socket
            if association.dul.state_machine.current_state == AWAITING_REQUEST and made and made.socket:
                with suppress(OSError):
                    made.socket.shutdown(socket.SHUT_RDWR)
        for association in ending:
            association.join(seconds)

    def shutdown_request(self, request: Any) -> None:
        close_socket(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.refusals.tell("failure", "dicom: a connection could not be served")
        log.debug("dicom", exc_info=True)


def close_socket(connection: socket.socket) -> None:
    """Close for certain: `shutdown` fails where the peer is gone already."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
