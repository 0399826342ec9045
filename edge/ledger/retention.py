"""Retention: how long finished runs are kept, by age and by size."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import datetime, timedelta, timezone

from edge.ledger.database import Database

PLAUSIBLE = "2024-01-01"
"""A board without a battery for its clock starts in 1970: what was received before it was set has no known age."""

BATCH = 20
"""Runs that are removed in one transaction: others wait for it."""

APPLY_SECONDS = 5.0
"""How long runs are removed at a time, as after a change of the settings: the main loop waits for it."""


class Retention:
    """Removes finished runs, oldest first, once every sink has them."""

    def __init__(self, database: Database, *, days: float | None, max_bytes: int | None) -> None:
        """Keep runs for `days`, and the ledger's file below `max_bytes`; None keeps without a limit."""
        self._database = database
        self._days = days
        self._max_bytes = max_bytes

    def apply(self, present: Collection[str] | None = None) -> int:
        """Remove what is due, some of it where it is very much; returns how many runs that were.

        `present` are the keys of the files that still lie in the watched folders: they stay known, so that a file whose
        run is forgotten is not run again. None leaves all of them known.
        """
        removed, end = 0, time.monotonic() + APPLY_SECONDS
        while time.monotonic() < end and (count := self._remove_older() or self._remove_over()):
            removed += count
        if removed and present is not None:
            self._forget_files(present)
        return removed

    def _remove_older(self) -> int:
        if self._days is None:
            return 0
        limit = (datetime.now(timezone.utc) - timedelta(days=self._days)).isoformat(timespec="milliseconds")
        return self._remove(f"AND received >= '{PLAUSIBLE}' AND received < ?", limit)

    def _remove_over(self) -> int:
        if self._max_bytes is None or self._used() <= self._max_bytes:
            return 0
        return self._remove("AND ? IS NOT NULL", 1)

    def _remove(self, condition: str, value: object) -> int:
        with self._database.transaction() as connection:
            return connection.execute(
                "DELETE FROM runs WHERE id IN (SELECT id FROM runs INDEXED BY by_age "
                f"WHERE state IN ('done', 'refused') AND bytes = 0 "
                f"{condition} ORDER BY received LIMIT {BATCH})",
                (value,),
            ).rowcount

    def _used(self) -> int:
        """Bytes of the database's pages that hold something; those of removed runs are used again, not given back."""
        with self._database.reading() as connection:
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)

    def _forget_files(self, present: Collection[str]) -> None:
        with self._database.transaction() as connection:
            gone = connection.execute("SELECT key FROM seen WHERE run NOT IN (SELECT id FROM runs)").fetchall()
            connection.executemany("DELETE FROM seen WHERE key = ?", [row for row in gone if row[0] not in present])
