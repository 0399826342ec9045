"""The ledger's SQLite file: its schema, one connection for all threads, and its errors in a user's words."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from edge.errors import MachineError, StorageFullError

LEDGER = "ledger.sqlite"
VERSION = 2

_SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    sha256 TEXT UNIQUE,          -- of the content, which is the spool's file of that name; NULL where it was unreadable
    instance TEXT UNIQUE,        -- SHA-256 of the SOP Instance UID; NULL where there is none
    origin TEXT NOT NULL,        -- kind of source
    stat INTEGER NOT NULL,       -- 1: overtakes the others
    state TEXT NOT NULL CHECK (state IN ('received', 'running', 'done', 'refused')),
    bytes INTEGER NOT NULL,      -- of the content; 0 once the spool holds it no longer
    source TEXT,                 -- the name to report; NULL unless names are kept
    received TEXT NOT NULL,      -- ISO 8601, UTC
    attempts INTEGER NOT NULL DEFAULT 0,
    result TEXT                  -- JSON, once finished
) STRICT;
CREATE INDEX unfinished ON runs (stat DESC, attempts, received) WHERE state = 'received';
CREATE INDEX by_age ON runs (received);
CREATE INDEX by_state ON runs (state);
CREATE TABLE finished (          -- the order of finishing, never used twice
    cursor INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL UNIQUE REFERENCES runs (id) ON DELETE CASCADE
) STRICT;
CREATE TABLE outbox (
    run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    sink TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'given up')),
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL,           -- when to try next, seconds since the epoch
    PRIMARY KEY (run, sink)
) STRICT, WITHOUT ROWID;
CREATE INDEX pending ON outbox (sink, due) WHERE state = 'pending';
CREATE TABLE pictures (
    run TEXT PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    labels TEXT NOT NULL,        -- JSON list, in the order of the maps
    pixels BLOB NOT NULL,        -- PNG, what the network saw
    cam BLOB                     -- NumPy file, float32 (L, h, w)
) STRICT;
CREATE TABLE seen (              -- files that need no second look; kept longer than their runs
    key TEXT PRIMARY KEY,
    run TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (          -- one row each time that the daemon ran, or took another bundle
    id INTEGER PRIMARY KEY,
    started TEXT NOT NULL,
    stopped TEXT,
    facts TEXT NOT NULL          -- JSON: bundle, manifest, backend, machine
) STRICT;
"""


class Database:
    """The only writer of a state directory's ledger. Every method raises `MachineError` if the disk fails it."""

    def __init__(self, state: Path) -> None:
        """Open or create the ledger in directory `state`.

        Raises `MachineError` if another daemon uses `state`, or if what is there is no ledger of this version.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = state / LEDGER
        self._lock = threading.RLock()  # one connection, used by every thread
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
            self._connection.execute("PRAGMA foreign_keys = ON")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise MachineError(
                    f"{self.path} is of version {version}, this program reads {VERSION}: choose another --state"
                )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries."""
        with self._lock, self._translated_errors():
            yield self._connection

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other thread out, from a transaction to what must follow it."""
        with self._lock:
            yield

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
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

    def close(self) -> None:
        self._resources.close()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise translated(self.path, error) from None


def translated(path: Path, error: sqlite3.Error) -> MachineError:
    """What SQLite said of the ledger at `path`, as an error that says what to do."""
    name = getattr(error, "sqlite_errorname", "")  # since Python 3.11
    text = f"{name} {error}".lower()
    kind, advice = MachineError, "check its disk, then start again"
    if "full" in text or "sqlite_ioerr_write" in text:
        kind, advice = StorageFullError, "free space on its disk, then start again: nothing that was recorded is lost"
    elif "readonly" in text or "cantopen" in text or "unable to open" in text:
        advice = "grant write permission there, or choose another --state"
    elif "notadb" in text or "not a database" in text or "corrupt" in text or "malformed" in text:
        advice = "move it away, or choose another --state"
    return kind(f"the ledger {path}: {error}: {advice}")


def _lock(state: Path) -> BinaryIO:
    file = (state / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise MachineError(f"another edge-infer serve uses {state}: stop it, or choose another --state") from None
    return file
