"""The outbox: which results each sink still has to get, and when to try again."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from edge.ledger.database import Database

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0


@dataclass(frozen=True)
class Waiting:
    """One result that a sink is to get."""

    run: str
    cursor: int
    """The result's: a run that was refused may be run again meanwhile, and then has another result."""
    sha256: str | None
    result: dict[str, Any]
    attempt: int
    """1 at the first try."""


class Outbox:
    """Deliveries by sink. What is pending survives everything that the ledger survives."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next(self, sink: str) -> Waiting | None:
        """The delivery that `sink` is to try now, in the order of finishing; None if none is due."""
        now = time.time()
        with self._database.reading() as connection:
            # What is due later than the longest pause: the clock was set back. Two queries, so that the index serves
            # each: a sink may have been down for very many results.
            row = self._first(connection, sink, "due <= ?", now)
            row = row or self._first(connection, sink, "due > ?", now + LONGEST_PAUSE_SECONDS)
        if row is None:
            return None
        run, cursor, sha256, result, attempts = row
        with self._database.transaction(durable=False) as connection:
            connection.execute("UPDATE outbox SET attempts = ? WHERE run = ? AND sink = ?", (attempts + 1, run, sink))
        return Waiting(run, cursor, sha256, json.loads(result), attempts + 1)

    @staticmethod
    def _first(connection: sqlite3.Connection, sink: str, condition: str, moment: float) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = connection.execute(
            "SELECT outbox.run, cursor, sha256, result, outbox.attempts FROM outbox JOIN runs ON id = outbox.run "
            f"JOIN finished ON finished.run = outbox.run WHERE sink = ? AND outbox.state = 'pending' AND {condition} "
            "ORDER BY due LIMIT 1",
            (sink, moment),
        ).fetchone()
        return row

    def postpone(self, waiting: Waiting, sink: str) -> float:
        """Try again later, after a pause that doubles with each attempt; returns its seconds."""
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(waiting.attempt - 1, 20), LONGEST_PAUSE_SECONDS)
        with self._database.transaction() as connection:
            self._set(connection, "due", time.time() + pause, waiting, sink)
        return pause

    def settle(self, connection: sqlite3.Connection, waiting: Waiting, sink: str, state: str) -> None:
        self._set(connection, "state", state, waiting, sink)

    @staticmethod
    def _set(connection: sqlite3.Connection, column: str, value: object, waiting: Waiting, sink: str) -> None:
        connection.execute(
            f"UPDATE outbox SET {column} = ? WHERE run = ? AND sink = ? "
            "AND EXISTS (SELECT 1 FROM finished WHERE cursor = ? AND run = outbox.run)",
            (value, waiting.run, sink, waiting.cursor),
        )

    def forget_sinks_but(self, sinks: set[str]) -> int:
        """Give up what is pending for sinks that are no longer configured; returns how many deliveries that were."""
        marks = ", ".join("?" * len(sinks))
        with self._database.transaction() as connection:
            return connection.execute(
                f"UPDATE outbox SET state = 'given up' WHERE state = 'pending' AND sink NOT IN ({marks})", tuple(sinks)
            ).rowcount

    def pending(self) -> dict[str, int]:
        """For each sink that still has to get any, how many."""
        with self._database.reading() as connection:
            return dict(
                connection.execute("SELECT sink, count(*) FROM outbox WHERE state = 'pending' GROUP BY sink").fetchall()
            )
