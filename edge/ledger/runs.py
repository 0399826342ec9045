"""Runs: from what was received to its result, each step one transaction."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge.errors import MachineError
from edge.ledger.database import Database
from edge.ledger.outbox import Outbox, Waiting
from edge.ledger.spool import Spool
from edge.results import timestamp
from edge.service import Picture, Receipt


@dataclass(frozen=True)
class Run:
    """An unfinished run, as a worker needs it."""

    id: str
    sha256: str
    path: Path
    """Its content, in the spool."""
    source: str | None
    stat: bool
    attempts: int
    """1 at the first try."""


class Ledger:
    """The daemon's own, only writer of a state directory. Every method raises `MachineError` if the disk fails it."""

    def __init__(
        self, state: Path, *, reserve: int = 0, keep_pictures: bool = False, lend_pictures: bool = False
    ) -> None:
        """Open or create the ledger in directory `state`, and put back what an earlier process left unfinished.

        No image is taken that would leave less than `reserve` bytes free on the disk. With `keep_pictures`, what the
        network saw and its maps are kept with each result; with `lend_pictures`, until the result is delivered.

        Raises `MachineError` if another daemon uses `state`, or if what is there is no ledger of this version.
        """
        self._database = Database(state)
        self.path = self._database.path
        self.spool = Spool(state, reserve)
        self.outbox = Outbox(self._database)
        self._keep_pictures = keep_pictures
        self._lend_pictures = lend_pictures
        with self._database.transaction() as connection:
            connection.execute("UPDATE runs SET state = 'received' WHERE state = 'running'")
            wanted = connection.execute("SELECT sha256 FROM runs WHERE bytes > 0").fetchall()
        self.spool.sweep({row[0] for row in wanted})

    def knows(self, key: str) -> bool:
        """Whether the file with this `file_key` has been received."""
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None

    def receive(
        self,
        content: bytes,
        *,
        origin: str,
        stat: bool = False,
        key: str | None = None,
        source: str | None = None,
        instance: str | None = None,
    ) -> Receipt:
        """Take one complete file; once this returns it survives a power cut.

        `key` is a watched file's `file_key`, `instance` a SOP Instance UID. Content is done once. Refused content that
        is handed over again is tried again: this machine may have learnt to decode it since.

        Raises `StorageFullError`.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        instance = None if instance is None else hashlib.sha256(instance.encode()).hexdigest()
        with self._database.reading() as connection:
            known = _find(connection, sha256, instance)
        if known is None or known[1] == "refused":
            self.spool.write(sha256, content)  # outside of the transaction, which others wait for
        with self._database.alone():
            with self._database.transaction() as connection:
                run, state = _find(connection, sha256, instance) or (uuid.uuid4().hex, None)
                new = state in (None, "refused")
                if new:
                    if not self.spool.holds(sha256):  # what was refused before was cleared away meanwhile
                        self.spool.write(sha256, content)
                    connection.execute("DELETE FROM runs WHERE id = ?", (run,))
                    connection.execute(
                        "INSERT INTO runs (id, sha256, instance, origin, stat, state, bytes, source, received) "
                        "VALUES (?, ?, ?, ?, ?, 'received', ?, ?, ?)",
                        (run, sha256, instance, origin, int(stat), len(content), source, timestamp()),
                    )
                if key is not None:
                    connection.execute("INSERT OR REPLACE INTO seen (key, run) VALUES (?, ?)", (key, run))
                wanted = connection.execute("SELECT 1 FROM runs WHERE sha256 = ? AND bytes > 0", (sha256,)).fetchone()
            if wanted is None:  # another sender of the same image came first, and its run is finished already
                self.spool.remove(sha256)
        return Receipt(run, sha256, new)

    def refuse_unread(self, *, key: str, origin: str, result: Mapping[str, Any], sinks: Iterable[str] = ()) -> None:
        """Record a file whose content could not even be read, with its refused `result`."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO runs (id, origin, stat, state, bytes, source, received, result) "
                "VALUES (?, ?, 0, 'refused', 0, ?, ?, ?)",
                (result["id"], origin, result["source"], timestamp(), json.dumps(result)),
            )
            connection.execute("INSERT OR REPLACE INTO seen (key, run) VALUES (?, ?)", (key, result["id"]))
            report(connection, result["id"], sinks)

    def take(self) -> Run | None:
        """The next received run, now ``running``; None if there is none.

        What is `stat` comes first, then what has been tried the least.
        """
        if self.waiting()[0] == 0:
            return None  # asked each second of an idle day: nothing is written for it
        with self._database.transaction(durable=False) as connection:  # forgotten in a power cut, it is taken again
            row = connection.execute(
                "UPDATE runs SET state = 'running', attempts = attempts + 1 WHERE id = (SELECT id FROM runs "
                "WHERE state = 'received' ORDER BY stat DESC, attempts, received LIMIT 1) "
                "RETURNING id, sha256, source, stat, attempts"
            ).fetchone()
        return self._run(row) if row else None

    def take_hopeless(self, attempts: int) -> list[Run]:
        """The received runs that were under way `attempts` times or more when the process ended; now ``running``."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                "UPDATE runs SET state = 'running' WHERE state = 'received' AND attempts >= ? "
                "RETURNING id, sha256, source, stat, attempts",
                (attempts,),
            ).fetchall()
        return [self._run(row) for row in rows]

    def _run(self, row: tuple[Any, ...]) -> Run:
        id, sha256, source, stat, attempts = row
        return Run(id, sha256, self.spool.path(sha256), source, bool(stat), attempts)

    def finish(self, result: Mapping[str, Any], picture: Picture | None = None, sinks: Iterable[str] = ()) -> int:
        """Record a run's result for good, and that each of `sinks` is to have it; once this returns it survives a power
        cut. Returns the result's cursor.

        Raises `MachineError` if the run is not under way: a result is recorded once. Raises `StorageFullError`.
        """
        sinks = tuple(sinks)
        with self._database.alone():
            with self._database.transaction() as connection:
                row = connection.execute(
                    "UPDATE runs SET state = ?, result = ?, bytes = iif(?, bytes, 0) "
                    "WHERE id = ? AND state = 'running' RETURNING sha256",
                    (result["status"], json.dumps(result), bool(sinks), result["id"]),
                ).fetchone()
                if row is None:
                    raise MachineError(f"{self.path}: run {result['id']} is not under way: was the ledger edited?")
                if picture is not None and (self._keep_pictures or (self._lend_pictures and sinks)):
                    connection.execute("INSERT INTO pictures VALUES (?, ?, ?, ?)", (result["id"], *_packed(picture)))
                cursor = report(connection, result["id"], sinks)
            if not sinks:
                # After the transaction: a kill between the two must leave a file too many, never one too few. Alone:
                # the same content may be handed over again as soon as it ends.
                self.spool.remove(row[0])
        return cursor

    def delivered(self, waiting: Waiting, sink: str, state: str = "delivered") -> None:
        """Record that `sink` has a result, or that it is given up; the last one lets go of the image's content."""
        with self._database.alone():
            with self._database.transaction() as connection:
                self.outbox.settle(connection, waiting, sink, state)
                row = connection.execute(
                    "UPDATE runs SET bytes = 0 WHERE id = ?1 AND state IN ('done', 'refused') AND NOT EXISTS "
                    "(SELECT 1 FROM outbox WHERE run = ?1 AND state = 'pending') RETURNING sha256",
                    (waiting.run,),
                ).fetchone()
                if row is not None and not self._keep_pictures:
                    connection.execute("DELETE FROM pictures WHERE run = ?", (waiting.run,))
            if row is not None and row[0] is not None:
                self.spool.remove(row[0])  # after the transaction, and alone, as in `finish`

    def counts(self) -> dict[str, int]:
        """Number of runs in each state that has any."""
        with self._database.reading() as connection:
            return dict(connection.execute("SELECT state, count(*) FROM runs GROUP BY state").fetchall())

    def waiting(self) -> tuple[int, int]:
        """Number and bytes of the runs that are received and not under way yet."""
        with self._database.reading() as connection:
            count, size = connection.execute(
                "SELECT count(*), coalesce(sum(bytes), 0) FROM runs WHERE state = 'received'"
            ).fetchone()
        return int(count), int(size)

    def image(self, id: str) -> dict[str, Any] | None:
        """One run: ``{"id", "state", "received", "origin", "result"}``; None if there is none."""
        with self._database.reading() as connection:
            row = connection.execute(f"SELECT {_IMAGE} FROM runs WHERE id = ?", (id,)).fetchone()
        return _image(row) if row else None

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The last runs received, newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_IMAGE} FROM runs ORDER BY received DESC, rowid DESC LIMIT ?", (limit,)
            ).fetchall()
        return [_image(row) for row in rows]

    def results(self, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Results in the order of finishing, from the first cursor above `after`."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT cursor, result FROM finished JOIN runs ON id = run WHERE cursor > ? ORDER BY cursor LIMIT ?",
                (after, limit),
            ).fetchall()
        return [(cursor, json.loads(result)) for cursor, result in rows]

    def picture(self, id: str) -> Picture | None:
        """What a person can look at of a run; None if nothing is kept."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT labels, pixels, cam FROM pictures WHERE run = ?", (id,)).fetchone()
        return _unpacked(*row) if row else None

    def begin_session(self, facts: Mapping[str, Any]) -> int:
        """Record that the daemon serves; `facts` say with what bundle, backend and machine."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "INSERT INTO sessions (started, facts) VALUES (?, ?) RETURNING id", (timestamp(), json.dumps(facts))
            ).fetchone()
            return int(row[0])

    def end_session(self, session: int) -> None:
        with self._database.transaction() as connection:
            connection.execute("UPDATE sessions SET stopped = ? WHERE id = ?", (timestamp(), session))

    @property
    def database(self) -> Database:
        return self._database

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_IMAGE = "id, state, received, origin, result"


def _image(row: tuple[Any, ...]) -> dict[str, Any]:
    id, state, received, origin, result = row
    return {
        "id": id,
        "state": state,
        "received": received,
        "origin": origin,
        "result": None if result is None else json.loads(result),
    }


def _find(connection: sqlite3.Connection, sha256: str, instance: str | None) -> tuple[str, str] | None:
    """Id and state of the run of this content, else of this DICOM instance (it may come again, coded otherwise)."""
    for column, value in (("sha256", sha256), ("instance", instance)):
        row: tuple[str, str] | None = connection.execute(
            f"SELECT id, state FROM runs WHERE {column} = ?", (value,)
        ).fetchone()
        if row is not None:
            return row
    return None


def report(connection: sqlite3.Connection, run: str, sinks: Iterable[str]) -> int:
    """Give a finished run its place in the order, and each sink its copy to deliver."""
    cursor = int(connection.execute("INSERT INTO finished (run) VALUES (?) RETURNING cursor", (run,)).fetchone()[0])
    due = cursor * 1e-6  # long past, and in the order of finishing
    connection.executemany(
        "INSERT INTO outbox (run, sink, state, due) VALUES (?, ?, 'pending', ?)", [(run, sink, due) for sink in sinks]
    )
    return cursor


def _packed(picture: Picture) -> tuple[str, bytes, bytes | None]:
    import cv2

    _, png = cv2.imencode(".png", picture.pixels)
    cam = None
    if picture.cam is not None:
        buffer = io.BytesIO()
        np.save(buffer, picture.cam, allow_pickle=False)
        cam = buffer.getvalue()
    return json.dumps(picture.labels), png.tobytes(), cam


def _unpacked(labels: str, png: bytes, cam: bytes | None) -> Picture:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    maps = None if cam is None else np.load(io.BytesIO(cam), allow_pickle=False)
    return Picture(np.asarray(pixels, np.uint8), maps, tuple(json.loads(labels)))


def file_key(path: Path, status: os.stat_result) -> str:
    """A digest by which an unchanged file is recognised; it does not give the path away at sight."""
    facts = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
    return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()
