"""Killed with -9 at random moments, or left without disk space, while images come in every way."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak.senders import Places, Sender, identity
from tests.system.daemon import Daemon, free_port, json_lines, wait_for


@dataclass(frozen=True)
class Tally:
    """What became of the images."""

    sent: int
    acknowledged: int
    results: int
    """Finished runs in the ledger."""
    lines: int
    """Lines of the results file, a sink."""
    missing: int
    """Acknowledged images without a result."""
    doubled: int
    """Images with more than one result, in the ledger or in the file."""
    refused: int
    kills: int

    @property
    def sound(self) -> bool:
        return self.missing == self.doubled == 0 and self.sent == self.acknowledged == self.results == self.lines


def prepared(place: Path, bundle: Path, more: str = "") -> tuple[Daemon, Places]:
    """A daemon with every kind of source, not started yet. Its guard is off: the images are no radiographs."""
    (place / "inbox").mkdir(parents=True, exist_ok=True)
    places = Places(place / "inbox", free_port(), free_port())
    settings = f"""
bundle = "{bundle}"
guard = false
watch = ["{places.inbox}"]
[http]
port = {places.http_port}
requests_per_second = 10000
burst = 10000
[dicom]
port = {places.dicom_port}
[jsonl]
path = "{place / "results.jsonl"}"
{more}"""
    return Daemon(place, settings), places


def run_kills(place: Path, bundle: Path, *, images: int, kills: int, seed: int = 1, rate: float = 20.0) -> Tally:
    """Send `images` over all sources while the daemon is killed `kills` times."""
    daemon, places = prepared(place, bundle)
    moments = random.Random(seed)
    sender = Sender(range(images), places, rate)
    try:
        for _ in range(kills):
            daemon.start()
            time.sleep(moments.uniform(0.0, 1.5))
            daemon.kill()
        daemon.start()
        wait_for(lambda: sender.finished, 600)
        _wait_until_done(daemon, place, images)
        assert daemon.stop() == 0
    finally:
        daemon.close()
    return tally(place, sender, images, kills)


def run_full_disk(place: Path, bundle: Path, *, images: int, megabytes: int = 48, rate: float = 20.0) -> Tally:
    """Send `images`; half-way the state's disk is filled to the last byte, and freed again. Needs root, for a tmpfs."""
    state = place / "state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", state], check=True)
    try:
        daemon, places = prepared(place, bundle, "[queue]\nmin_free_mb = 4\n")
        try:
            daemon.start()
            sender = Sender(range(images), places, rate)
            wait_for(lambda: len(sender.acknowledged) >= images // 2, 600)
            with (state / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
                while True:
                    ballast.write(bytes(4096))
            time.sleep(5)
            (state / "ballast").unlink()
            wait_for(lambda: sender.finished, 600)
            _wait_until_done(daemon, place, images)
            assert daemon.stop() == 0
        finally:
            daemon.close()
        return tally(place, sender, images, 0)
    finally:
        subprocess.run(["umount", state], check=True)


def _wait_until_done(daemon: Daemon, place: Path, images: int) -> None:
    wait_for(
        lambda: len(daemon.results()) >= images and len(json_lines(place / "results.jsonl")) >= images,
        600,
    )


def tally(place: Path, sender: Sender, sent: int, kills: int) -> Tally:
    """Count, from the ledger itself and from the results file."""
    with closing(sqlite3.connect(place / "state" / "ledger.sqlite")) as ledger:
        rows = ledger.execute("SELECT sha256, instance, state, result IS NOT NULL FROM runs").fetchall()
    known = Counter(key for sha256, instance, _, finished in rows if finished for key in (sha256, instance) if key)
    lines = json_lines(place / "results.jsonl")
    ids = Counter(line["id"] for line in lines)
    return Tally(
        sent=sent,
        acknowledged=len(sender.acknowledged),
        results=sum(finished for *_, finished in rows),
        lines=len(lines),
        missing=sum(identity(number, way) not in known for number, way in sender.acknowledged.items()),
        doubled=sum(count > 1 for count in [*known.values(), *ids.values()]),
        refused=sum(state == "refused" for _, _, state, _ in rows),
        kills=kills,
    )


def may_mount() -> bool:
    return os.geteuid() == 0
