"""Tells systemd how the daemon is (sd_notify(3)); says nothing where nobody asked."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

SOCKET_VARIABLE, WATCHDOG_VARIABLE = "NOTIFY_SOCKET", "WATCHDOG_USEC"


def notify(*lines: str) -> None:
    """Send assignments such as ``READY=1`` to the service manager, if there is one."""
    address = os.environ.get(SOCKET_VARIABLE, "")
    if not address:
        return
    if address.startswith("@"):  # an abstract address
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto("\n".join(lines).encode(), address)


def notify_reloading() -> None:
    """Say that a reload began; ``READY=1`` ends it. (``Type=notify-reload`` needs the time.)"""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def watchdog_seconds() -> float | None:
    """How often the service manager wants to hear ``WATCHDOG=1`` at least; None if it does not watch."""
    with suppress(ValueError):
        return int(os.environ[WATCHDOG_VARIABLE]) / 1e6 if WATCHDOG_VARIABLE in os.environ else None
    return None
