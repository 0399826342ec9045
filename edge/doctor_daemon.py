"""What the daemon's settings need of this machine, looked at before it is started. Makes and changes nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from edge.config import Config
from edge.doctor import Finding, library
from edge.doctor_network import START, examine_network
from edge.errors import EdgeError, MachineError
from edge.ledger import LEDGER, check_version
from edge.telemetry import machine_facts

EARLIEST = 1_735_689_600
"""2025-01-01, in seconds since the epoch: before it, the clock was never set."""

UNIT = "edge-infer"
"""The service's name in systemd."""


def examine_daemon(config: Config) -> Iterator[Finding]:
    """One finding for each thing that `config` names. No secret is in any of them."""
    runs = _runs(config.state)
    yield _clock(time.time())
    yield _state(config, runs)
    yield _memory(config.memory.limit_mb, machine_facts()["memory_mb"])
    for number, folder in enumerate(config.watch, 1):
        good = folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
        detail = "can be read" if good else f"{folder} is no folder that can be read"
        yield Finding(f"watched folder {number}", good, detail, f"{START}make it, or let this user read it", True)
    for module, package in _libraries(config):
        yield library(module, package, f"{START}pip install {package}", needed=True)
    if config.shadow.fraction > 0:
        advice = f"{START}shadow mode runs in it: pip install 'mdconv-edge[onnxruntime]'"
        yield library("onnxruntime", "onnxruntime", advice, needed=True)
    for number, video in enumerate(config.video, 1):
        yield _video(f"video {number}", video.address.get_secret_value())
    yield from examine_network(config, runs=runs)
    yield _supervisor()


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
    try:
        if (config.state / LEDGER).exists():
            check_version(config.state)
    except MachineError as error:
        return Finding("state", False, str(error), f"{START}see above", True)
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


def _memory(limit: int | None, total: int | str) -> Finding:
    detail = "no limit is set" if limit is None else f"it ends, to be started again, above {limit} MB"
    if limit is None or isinstance(total, str):
        return Finding("memory limit", True, detail)
    advice = "the system would end it first: set memory.limit_mb below that"
    return Finding("memory limit", limit < total, f"{detail}; the machine has {total} MB", advice)


def _video(what: str, address: str) -> Finding:
    """Whether OpenCV can open such an address, and a file or camera is there. The address is not shown."""
    from edge.sources.video_config import describe, kind_of
    from edge.sources.video_frames import require

    try:
        require(address)
    except EdgeError as error:
        return Finding(what, False, str(error), f"{START}see above", True)
    if kind_of(address) == "camera" and not os.access(address, os.R_OK | os.W_OK):
        advice = "frames come once it is there, and this user may use it: add it to the group video"
        return Finding(what, False, f"{address} cannot be opened", advice)
    return Finding(what, True, f"OpenCV can open {describe(address)}")


def _supervisor() -> Finding:
    """Whether systemd starts the daemon with the machine, and again when it ended."""
    what, advice = "service", "edge-infer unit prints a systemd unit: docs/service.md"
    if not Path("/run/systemd/system").is_dir():
        return Finding(what, False, "systemd does not run here", "let another supervisor start it again when it ends")
    asked = subprocess.run(["systemctl", "is-enabled", UNIT], capture_output=True, text=True, timeout=10)
    state = asked.stdout.strip() or "not installed"
    return Finding(what, state == "enabled", f"{UNIT}.service is {state}", advice)
