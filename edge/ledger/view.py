"""What a report reads of a ledger, also while a daemon writes to it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import MachineError
from edge.ledger.database import LEDGER, VERSION, translated


@dataclass(frozen=True)
class LedgerView:
    """What a report needs of a ledger."""

    results: list[dict[str, Any]]
    """Every finished run's result, or what was asked for of it, oldest first."""
    sessions: list[dict[str, Any]]
    """The sessions, oldest first: ``started``, ``stopped`` (None if killed or still serving) and their facts."""


def check_version(state: Path) -> None:
    """Raises `MachineError` if the ledger in `state` cannot be read, or is not of this version."""
    path = state / LEDGER
    try:
        with closing(_opened(path)) as connection:
            _check_version(path, connection)
    except sqlite3.Error as error:
        raise translated(path, error) from None


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _check_version(path: Path, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise MachineError(f"{path} is of version {version}, this program reads {VERSION}: check --state")


def read_ledger(state: Path, keys: Collection[str] | None = None) -> LedgerView:
    """Read the ledger in `state`, also while a daemon writes to it. Raises `MachineError` if there is none.

    Of each result `keys` are kept (None: all): whole, those of 100,000 images would take the memory of a small board.
    """
    path = state / LEDGER
    if not path.is_file():
        raise MachineError(f"no ledger at {path}: check --state, or run `edge-infer serve` first")
    try:
        with closing(_opened(path)) as connection:
            _check_version(path, connection)
            rows = connection.execute("SELECT result FROM runs WHERE result IS NOT NULL ORDER BY received")
            found = (json.loads(row[0]) for row in rows)
            results = list(found) if keys is None else [{key: result[key] for key in keys} for result in found]
            sessions = connection.execute("SELECT started, stopped, facts FROM sessions ORDER BY id").fetchall()
    except sqlite3.Error as error:
        raise translated(path, error) from None
    return LedgerView(
        results,
        [{"started": started, "stopped": stopped, **json.loads(facts)} for started, stopped, facts in sessions],
    )
