"""What the daemon's settings need of this machine, looked at before it is started. Makes and changes nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from edge.config import Config
from edge.doctor import Finding, library
from edge.errors import UsageError, describe_os_error

EARLIEST = 1_735_689_600
"""2025-01-01, in seconds since the epoch: before it, the clock was never set."""

CONNECT_SECONDS = 3.0
"""Time for a PACS or broker to take a connection."""

START = "edge-infer serve would not start: "


def examine_daemon(config: Config) -> Iterator[Finding]:
    """One finding for each thing that `config` names. No secret is in any of them."""
    runs = _runs(config.state)
    yield _clock(time.time())
    yield _state(config, runs)
    for number, folder in enumerate(config.watch, 1):
        good = folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
        detail = "can be read" if good else f"{folder} is no folder that can be read"
        yield Finding(f"watched folder {number}", good, detail, f"{START}make it, or let this user read it", True)
    for module, package in _libraries(config):
        yield library(module, package, f"{START}pip install {package}", needed=True)
    if config.http and config.http.certificate and config.http.key:
        yield _certificate("http TLS", config.http.certificate, config.http.key)
    if config.dicom and config.dicom.tls_certificate and config.dicom.tls_key:
        yield _certificate("dicom TLS", config.dicom.tls_certificate, config.dicom.tls_key)
    if config.http and config.http.tokens:
        yield _tokens(config.http.tokens)
    if config.http and not config.http.address.is_loopback and not config.http.certificate:
        advice = "set http.certificate and http.key, unless a proxy before it brings TLS"
        yield Finding("http in clear", False, f"{config.http.address} can be reached, and TLS is off", advice)
    for what, host, port in _peers(config):
        yield _reachable(what, host, port)
    if runs:
        return  # the ports are its own
    if config.http:
        yield _port("http port", str(config.http.address), config.http.port)
    if config.dicom:
        yield _port("dicom port", config.dicom.bind, config.dicom.port)


def _clock(now: float) -> Finding:
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    return Finding("clock", now >= EARLIEST, shown, "results would bear this date: set the clock, or run an NTP client")


def _runs(state: Path) -> bool:
    """Whether a daemon holds the state's lock. A shared lock is tried, and given back at once."""
    try:
        with (state / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _state(config: Config, runs: bool) -> Finding:
    place = config.state
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        detail = f"{place} is no directory that this user can write"
        return Finding("state", False, detail, f"{START}choose another `state`, or its owner", True)
    free, least = shutil.disk_usage(place).free // 1_000_000, config.queue.min_free_mb
    detail = f"{config.state}: {free} MB free" + ("; a daemon runs with it" if runs else "")
    return Finding("state", free > least, detail, f"queue.min_free_mb is {least}: images are refused; free some", True)


def _libraries(config: Config) -> Iterator[tuple[str, str]]:
    """Modules, and the packages that bring them, of the sources and sinks that are set."""
    if config.http:
        yield from (("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("python_multipart", "python-multipart"))
    if config.dicom or config.pacs:
        yield "pynetdicom", "pynetdicom"
    if config.pacs:
        yield from (("highdicom", "highdicom"), ("dicomweb_client", "dicomweb-client"))
    if config.mqtt:
        yield "paho.mqtt.client", "paho-mqtt"


def _certificate(what: str, certificate: Path, key: Path) -> Finding:
    """Whether they load, and belong together. An encrypted key counts as one that does not load."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = (isinstance(error, ssl.SSLError) and error.reason) or type(error).__name__
        detail = f"{certificate} and {key} do not load: {reason}"
        return Finding(what, False, detail, f"{START}give a PEM certificate and its unencrypted key", True)
    return Finding(what, True, "certificate and key load, and belong together")


def _tokens(path: Path) -> Finding:
    from edge.sources.http.tokens import Tokens

    try:
        return Finding("http tokens", True, f"{len(Tokens.load(path))} clients")
    except UsageError as error:
        return Finding("http tokens", False, str(error), f"{START}see above", True)


def _peers(config: Config) -> Iterator[tuple[str, str, int]]:
    """Names, hosts and ports of what results are sent to."""
    if config.pacs and config.pacs.host:
        yield "pacs", config.pacs.host, config.pacs.port
    elif config.pacs and config.pacs.url:
        parts = urlsplit(config.pacs.url)
        yield "pacs", parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if config.mqtt:
        yield "mqtt", config.mqtt.host, config.mqtt.port or (8883 if config.mqtt.tls else 1883)


def _reachable(what: str, host: str, port: int) -> Finding:
    """Whether a TCP connection opens; what is spoken there is not asked."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Finding(what, False, f"{host}:{port}: {reason}", "results wait in the ledger until it can be reached")
    return Finding(what, True, f"{host}:{port} takes connections")


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
