"""What the daemon's settings need of the network: certificates, secrets, free ports, and whether a sink is let in."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from edge.config import Config
from edge.doctor import Finding
from edge.errors import EdgeError, UsageError, describe_os_error

if TYPE_CHECKING:
    from edge.sinks.mqtt_config import MqttConfig
    from edge.sinks.pacs_config import PacsConfig

CONNECT_SECONDS = 3.0
"""Time for a PACS or broker to answer."""

EXPIRY_DAYS = 30
"""A certificate that ends sooner is told."""

START = "edge-infer serve would not start: "
LATER = "results wait in the ledger until it takes them"


def examine_network(config: Config, *, runs: bool) -> Iterator[Finding]:
    """One finding for each part; where the daemon `runs`, its ports are left alone. No secret is in any of them."""
    http, dicom = config.http, config.dicom
    if http and http.certificate and http.key:
        yield _certificate("http TLS", http.certificate, http.key)
    if dicom and dicom.tls_certificate and dicom.tls_key:
        yield _certificate("dicom TLS", dicom.tls_certificate, dicom.tls_key)
    if dicom and dicom.tls_client_ca:
        yield _authorities("dicom client CA", dicom.tls_client_ca)
    if http and http.tokens:
        yield _tokens(http.tokens)
    if http and not http.address.is_loopback and not http.certificate:
        advice = "set http.certificate and http.key, unless a proxy before it brings TLS"
        yield Finding("http in clear", False, f"{http.address} can be reached, and TLS is off", advice)
    for what, sink in (("pacs", config.pacs), ("mqtt", config.mqtt)):
        if sink and sink.certificate and sink.key:
            yield _certificate(f"{what} TLS", sink.certificate, sink.key)
    if config.pacs:
        yield _pacs(config.pacs)
    if config.mqtt:
        yield _mqtt(config.mqtt)
    if runs:
        return
    if http:
        yield _port("http port", str(http.address), http.port)
    if dicom:
        yield _port("dicom port", dicom.bind, dicom.port)


def _certificate(what: str, certificate: Path, key: Path) -> Finding:
    """Whether they load, belong together and are valid. An encrypted key counts as one that does not load."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = (isinstance(error, ssl.SSLError) and error.reason) or type(error).__name__
        detail = f"{certificate} and {key} do not load: {reason}"
        return Finding(what, False, detail, f"{START}give a PEM certificate and its unencrypted key", True)
    detail = "certificate and key load, and belong together"
    try:
        from cryptography import x509
    except ImportError:
        return Finding(what, True, f"{detail}; its dates are not looked at without the library cryptography")
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    first, last = loaded.not_valid_before_utc, loaded.not_valid_after_utc
    now = datetime.now(timezone.utc)
    detail += f"; valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    good = first <= now and last > now + timedelta(days=EXPIRY_DAYS)
    return Finding(what, good, detail, "peers refuse it outside these dates: have a new one made")


def _authorities(what: str, path: Path) -> Finding:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except OSError as error:
        reason = (isinstance(error, ssl.SSLError) and error.reason) or type(error).__name__
        return Finding(what, False, f"{path} does not load: {reason}", f"{START}give PEM certificates", True)
    return Finding(what, True, "loads")


def _tokens(path: Path) -> Finding:
    from edge.sources.http.tokens import Tokens

    try:
        return Finding("http tokens", True, f"{len(Tokens.load(path))} clients")
    except UsageError as error:
        return Finding("http tokens", False, str(error), f"{START}see above", True)


def _pacs(config: PacsConfig) -> Finding:
    """Whether its files can be used, and it answers us: C-ECHO, or a GET where it is a web server."""
    try:
        from edge.sinks.dicom import PacsSink

        sink = PacsSink(config.model_copy(update={"timeout": min(config.timeout, CONNECT_SECONDS)}))
    except ImportError as error:
        return Finding("pacs", False, f"cannot be asked: {error}", "see above")
    except UsageError as error:
        return Finding("pacs", False, str(error), f"{START}see above", True)
    start = time.monotonic()
    try:
        said = sink.verify()
    except EdgeError as error:
        return Finding("pacs", False, str(error), LATER)
    finally:
        sink.close()
    return Finding("pacs", True, f"{said} in {(time.monotonic() - start) * 1e3:.0f} ms")


def _mqtt(config: MqttConfig) -> Finding:
    """Whether its files can be used, and the broker takes a connection. A session would end the daemon's own."""
    from edge.sinks.credentials import client_tls, read_secret

    host, port = config.host, config.port or (8883 if config.tls else 1883)
    try:
        tls = client_tls(config.ca, config.certificate, config.key) if config.tls else None
        if config.password_file:
            read_secret(config.password_file)
    except UsageError as error:
        return Finding("mqtt", False, str(error), f"{START}see above", True)
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
            if tls is not None:
                tls.wrap_socket(connection, server_hostname=host).close()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Finding("mqtt", False, f"{host}:{port}: {reason}", LATER)
    return Finding("mqtt", True, f"{host}:{port} takes {'TLS ' if tls else ''}connections")


def _port(what: str, address: str, port: int) -> Finding:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            probe.bind(place)
    except OSError as error:
        taken = "another program listens there" if error.errno == errno.EADDRINUSE else describe_os_error(error)
        return Finding(what, False, f"{address}:{port}: {taken}", f"{START}choose another port or address", True)
    return Finding(what, True, f"{address}:{port} is free" if port else "any free one")
