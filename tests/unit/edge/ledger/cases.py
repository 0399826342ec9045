"""Runs, results and views of a ledger that its tests share."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from edge.ledger import LEDGER, Ledger, Waiting


def receive(ledger: Ledger, name: str, content: str | None = None, **more: Any) -> tuple[str, bool]:
    receipt = ledger.receive((content or name).encode(), origin="folder", key=f"key {name}", **more)
    return receipt.id, receipt.new


def result(id: str, status: str = "done") -> dict[str, Any]:
    return {"id": id, "status": status, "source": None, "time": "2026-01-01T00:00:00+00:00"}


def due(ledger: Ledger, sink: str) -> Waiting:
    waiting = ledger.outbox.next(sink)
    assert waiting is not None
    return waiting


def outbox_states(ledger: Ledger) -> dict[str, str]:
    with ledger.database.reading() as connection:
        return dict(connection.execute("SELECT sink, state FROM outbox").fetchall())


def stored(state: Path) -> str:
    """Everything in the ledger's files, as bytes that could be read by whoever gets hold of them."""
    with closing(sqlite3.connect(state / LEDGER)) as connection:
        return "\n".join(connection.iterdump())
