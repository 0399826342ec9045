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
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT outbox.run, sha256, result, outbox.attempts FROM outbox JOIN runs ON id = outbox.run "
                "JOIN finished ON finished.run = outbox.run "
                "WHERE sink = ?1 AND outbox.state = 'pending' AND (due <= ?2 OR due > ?2 + ?3) "
                "ORDER BY due, cursor LIMIT 1",
                (sink, time.time(), LONGEST_PAUSE_SECONDS),  # what is due later than that: the clock was set back
            ).fetchone()
        if row is None:
            return None
        run, sha256, result, attempts = row
        with self._database.transaction(durable=False) as connection:
            connection.execute("UPDATE outbox SET attempts = ? WHERE run = ? AND sink = ?", (attempts + 1, run, sink))
        return Waiting(run, sha256, json.loads(result), attempts + 1)

    def postpone(self, run: str, sink: str, attempt: int) -> float:
        """Try again later, after a pause that doubles with each attempt; returns its seconds."""
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 20), LONGEST_PAUSE_SECONDS)
        with self._database.transaction() as connection:
            connection.execute("UPDATE outbox SET due = ? WHERE run = ? AND sink = ?", (time.time() + pause, run, sink))
        return pause

    @staticmethod
    def settle(connection: sqlite3.Connection, run: str, sink: str, state: str) -> None:
        connection.execute("UPDATE outbox SET state = ? WHERE run = ? AND sink = ?", (state, run, sink))

    def forget_sinks_but(self, sinks: set[str]) -> int:
        """Give up what is pending for sinks that are no longer configured; returns how many deliveries that were."""
        marks = ", ".join("?" * len(sinks))
        with self._database.transaction() as connection:
            return connection.execute(
                f"UPDATE outbox SET state = 'given up' WHERE state = 'pending' AND sink NOT IN ({marks})", tuple(sinks)
            ).rowcount

    def counts(self) -> dict[str, dict[str, int]]:
        """For each sink, the number of deliveries by state."""
        found: dict[str, dict[str, int]] = {}
        with self._database.reading() as connection:
            for sink, state, count in connection.execute("SELECT sink, state, count(*) FROM outbox GROUP BY 1, 2"):
                found.setdefault(sink, {})[state] = count
        return found
