"""The latency report of what the daemon did, from its ledger."""

from __future__ import annotations

from datetime import datetime
from itertools import zip_longest
from typing import Any

from edge.errors import MachineError
from edge.ledger import LedgerView
from edge.report import build_report

NEEDED = ("status", "bundle", "time", "timings_ms")
"""What a report needs of each result."""


def report_from_ledger(ledger: LedgerView) -> dict[str, Any]:
    """The report of every run with the bundle that was served last; runs with other bundles are counted in a note.

    The ledger's results hold `NEEDED` at least. The wall time is the sum of that bundle's sessions. Raises
    `MachineError` if nothing was served yet.
    """
    if not ledger.sessions:
        raise MachineError("the ledger holds no session: run `edge-infer serve` first")
    last = ledger.sessions[-1]
    sessions = [session for session in ledger.sessions if session["bundle_sha256"] == last["bundle_sha256"]]
    results = [result for result in ledger.results if result["bundle"] == last["bundle_sha256"]]
    others = len(ledger.results) - len(results)
    notes = ["the wall time, and so the throughput, includes waiting for images to come"]
    if others:
        notes.append(f"{others} images were run with another bundle and are left out")
    if unended := sum(session["stopped"] is None for session in sessions):
        notes.append(f"{unended} of {len(sessions)} sessions did not end in an orderly way, or still serve")
    return build_report(
        results,
        kind="ledger",
        scenario="the daemon's work, images as they came",
        wall_seconds=_served_seconds(ledger.sessions, results, last["bundle_sha256"]),
        bundle_manifest=last["manifest"],
        bundle_sha256=last["bundle_sha256"],
        backend_facts={"name": last["backend"], **last["backend_facts"]},
        machine_facts=last["machine"],
        samples=None,
        settings={"sessions": len(sessions)},
        notes=notes,
    )


def _served_seconds(sessions: list[dict[str, Any]], results: list[dict[str, Any]], bundle: str) -> float:
    """How long `bundle` was served. A session that never said when it stopped counts up to its last result."""
    ends = sorted(_time(result["time"]) for result in results)
    total = 0.0
    for session, following in zip_longest(sessions, sessions[1:]):
        if session["bundle_sha256"] != bundle:
            continue
        start = _time(session["started"])
        limit = _time(following["started"]) if following else float("inf")
        known = [_time(session["stopped"])] if session["stopped"] else [end for end in ends if start < end < limit]
        total += known[-1] - start if known else 0.0
    return total


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
