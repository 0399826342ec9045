"""The ledger: what the daemon received, what is under way, and every result, in one SQLite file that survives a kill.

A run goes ``received`` -> ``running`` -> ``done`` or ``refused``. A run that was under way when the process died is
simply taken again. Content is done once: a second file with the same SHA-256 belongs to the first one's run.

The ledger is private to its user, and keeps no more of a patient than it must: a file's path is held only until its run
is finished, a finished file is recognised by a digest of its path, size and times, and a result carries the file's name
only where the user asked for names.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from edge.errors import MachineError
from edge.results import timestamp

LEDGER = "ledger.sqlite"
VERSION = 1

_SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    sha256 TEXT UNIQUE,          -- of the content; NULL where it could not be read
    state TEXT NOT NULL CHECK (state IN ('received', 'running', 'done', 'refused')),
    path BLOB,                   -- as the system spells it, in bytes; NULL once finished
    source TEXT,                 -- the name to report; NULL unless names are kept
    received TEXT NOT NULL,      -- ISO 8601, UTC
    attempts INTEGER NOT NULL DEFAULT 0,
    result TEXT                  -- JSON, once finished
) STRICT;
CREATE INDEX unfinished ON runs (attempts, received) WHERE state = 'received';
CREATE TABLE seen (              -- files that need no second look
    key TEXT PRIMARY KEY,
    run TEXT NOT NULL REFERENCES runs (id)
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (          -- one row each time that the daemon ran
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,
    stopped TEXT,
    facts TEXT NOT NULL          -- JSON: bundle, manifest, backend, machine
) STRICT;
"""


@dataclass(frozen=True)
class Run:
    """An unfinished run, as a worker needs it."""

    id: str
    sha256: str
    path: Path
    source: str | None


class Ledger:
    """The daemon's own, only writer of a state directory. Every method raises `MachineError` if the disk fails it."""

    def __init__(self, state: Path) -> None:
        """Open or create the ledger in directory `state`, and put back what an earlier process left unfinished.

        Raises `MachineError` if another daemon uses `state`, or if what is there is no ledger of this version.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = state / LEDGER
        self._lock = threading.Lock()  # one connection, used by the folder's thread and the results' thread
        with ExitStack() as resources:
            resources.enter_context(_lock(state))
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # private before anything is in it
            with self._translated_errors():
                self._connection = resources.enter_context(
                    closing(sqlite3.connect(self.path, isolation_level=None, check_same_thread=False))
                )
            self._prepare()
            self._resources = resources.pop_all()

    def _prepare(self) -> None:
        with self._translated_errors():
            self._connection.execute("PRAGMA journal_mode = WAL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise MachineError(
                    f"{self.path} is of version {version}, this program reads {VERSION}: choose another --state"
                )
            self._connection.execute("UPDATE runs SET state = 'received' WHERE state = 'running'")

    def knows(self, key: str) -> bool:
        """Whether the file with this `file_key` has been received."""
        with self._lock, self._translated_errors():
            return self._connection.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None

    def receive(self, *, sha256: str, path: Path, key: str, source: str | None) -> tuple[str, bool]:
        """Record a complete file; returns its run's id, and whether the run is to be made (content is done once).

        Refused content that is handed over again is tried again: its file may have changed under the reader then, or
        this machine has learnt to decode it since.
        """
        with self._transaction() as connection:
            row = connection.execute("SELECT id, state FROM runs WHERE sha256 = ?", (sha256,)).fetchone()
            run, state = row if row else (uuid.uuid4().hex, None)
            if state is None:
                connection.execute(
                    "INSERT INTO runs (id, sha256, state, path, source, received) VALUES (?, ?, 'received', ?, ?, ?)",
                    (run, sha256, os.fsencode(path), source, timestamp()),
                )
            elif state == "refused":
                connection.execute(
                    "UPDATE runs SET state = 'received', path = ?, source = ?, received = ?, result = NULL "
                    "WHERE id = ?",
                    (os.fsencode(path), source, timestamp(), run),
                )
            connection.execute("INSERT OR REPLACE INTO seen (key, run) VALUES (?, ?)", (key, run))
            return run, state in (None, "refused")

    def refuse_unread(self, *, key: str, result: Mapping[str, Any]) -> None:
        """Record a file whose content could not even be read, with its refused `result`."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO runs (id, state, source, received, result) VALUES (?, 'refused', ?, ?, ?)",
                (result["id"], result["source"], timestamp(), json.dumps(result)),
            )
            connection.execute("INSERT OR REPLACE INTO seen (key, run) VALUES (?, ?)", (key, result["id"]))

    def take(self) -> Run | None:
        """The next received run, now ``running``; None if there is none. What has been tried the least comes first."""
        with self._transaction(durable=False) as connection:  # forgotten in a power cut, it is taken again
            row = connection.execute(
                "UPDATE runs SET state = 'running', attempts = attempts + 1 WHERE id = (SELECT id FROM runs "
                "WHERE state = 'received' ORDER BY attempts, received LIMIT 1) RETURNING id, sha256, path, source"
            ).fetchone()
            return Run(row[0], row[1], Path(os.fsdecode(row[2])), row[3]) if row else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Record a run's result for good; once this returns it survives a power cut.

        Raises `MachineError` if the run is not under way: a result is recorded once.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE runs SET state = ?, result = ?, path = NULL WHERE id = ? AND state = 'running'",
                (result["status"], json.dumps(result), result["id"]),
            ).rowcount
            if changed != 1:
                raise MachineError(f"{self.path}: run {result['id']} is not under way: was the ledger edited?")

    def counts(self) -> dict[str, int]:
        """Number of runs in each state that has any."""
        with self._lock, self._translated_errors():
            return dict(self._connection.execute("SELECT state, count(*) FROM runs GROUP BY state").fetchall())

    def begin_session(self, facts: Mapping[str, Any]) -> int:
        """Record that the daemon serves; `facts` say with what bundle, backend and machine."""
        with self._transaction() as connection:
            row = connection.execute(
                "INSERT INTO sessions (started, facts) VALUES (?, ?) RETURNING id", (timestamp(), json.dumps(facts))
            ).fetchone()
            return int(row[0])

    def end_session(self, session: int) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE sessions SET stopped = ? WHERE id = ?", (timestamp(), session))

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction. A `durable` one is on the disk when the block ends; no other is lost by a mere kill."""
        with self._lock, self._translated_errors():
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise MachineError(f"the ledger {self.path}: {error}: {_advice(error)}") from None


def file_key(path: Path, status: os.stat_result) -> str:
    """A digest by which an unchanged file is recognised; it does not give the path away at sight."""
    facts = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
    return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class LedgerView:
    """What a report needs of a ledger."""

    results: list[dict[str, Any]]
    """Every finished run's result, oldest first."""
    sessions: list[dict[str, Any]]
    """The sessions, oldest first: ``started``, ``stopped`` (None if killed or still serving) and their facts."""


def read_ledger(state: Path) -> LedgerView:
    """Read the ledger in `state`, also while a daemon writes to it. Raises `MachineError` if there is none."""
    path = state / LEDGER
    if not path.is_file():
        raise MachineError(f"no ledger at {path}: check --state, or run `edge-infer serve` first")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != VERSION:
                raise MachineError(f"{path} is of version {version}, this program reads {VERSION}: check --state")
            results = connection.execute(
                "SELECT result FROM runs WHERE result IS NOT NULL ORDER BY received"
            ).fetchall()
            sessions = connection.execute("SELECT started, stopped, facts FROM sessions ORDER BY id").fetchall()
    except sqlite3.Error as error:
        raise MachineError(f"the ledger {path}: {error}: {_advice(error)}") from None
    return LedgerView(
        [json.loads(row[0]) for row in results],
        [{"started": started, "stopped": stopped, **json.loads(facts)} for started, stopped, facts in sessions],
    )


def _lock(state: Path) -> BinaryIO:
    file = (state / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise MachineError(f"another edge-infer serve uses {state}: stop it, or choose another --state") from None
    return file


def _advice(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")  # since Python 3.11
    text = f"{name} {error}".lower()
    if "full" in text:
        return "free space on its disk, then start again: nothing that was recorded is lost"
    if "readonly" in text or "cantopen" in text or "unable to open" in text:
        return "grant write permission there, or choose another --state"
    if "notadb" in text or "not a database" in text or "corrupt" in text or "malformed" in text:
        return "move it away, or choose another --state"
    return "check its disk, then start again"
