"""The report of what the daemon did, from its ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from edge.errors import MachineError
from edge.ledger import LedgerView
from edge.report.build import build_report


def report_from_ledger(view: LedgerView) -> dict[str, Any]:
    """Report on the bundle that the daemon served last; what it did with other bundles is left out, and said so.

    Throughput counts the time in which there was work: in each session, from the first image's arrival to the last
    image's result. The ledger keeps no samples of clocks, power and temperature. Raises `MachineError` if the daemon
    never served.
    """
    if not view.sessions:
        raise MachineError("the ledger holds no session: let `edge-infer serve` run on this --state first")
    last = view.sessions[-1]
    sha256 = last["bundle_sha256"]
    sessions = [session for session in view.sessions if session["bundle_sha256"] == sha256]
    results = [result for result in view.results if result["bundle"] == sha256]
    notes = [
        "total begins when the daemon took the image up; the time that its file lay in the folder before is not in it",
        "throughput counts, in each of the daemon's sessions, from the first image's arrival to the last one's result",
    ]
    if len(results) < len(view.results):
        notes.append(f"{len(view.results) - len(results)} results of other bundles in this ledger are left out")
    return build_report(
        results,
        kind="ledger",
        scenario="service",
        wall_seconds=_worked_seconds(results, sessions),
        bundle_manifest=last["manifest"],
        bundle_sha256=sha256,
        backend_facts={"name": last["backend"], **last["backend_facts"]},
        machine_facts=last["machine"],
        settings={"sessions": len(sessions), "first_session": sessions[0]["started"]},
        notes=notes,
    )


def _worked_seconds(results: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]) -> float:
    """Seconds from the first arrival to the last result, summed over the sessions."""
    ends = [(datetime.fromisoformat(r["time"]).timestamp(), r["timings_ms"]["total"] / 1e3) for r in results]
    starts = [datetime.fromisoformat(session["started"]).timestamp() for session in sessions]
    worked = 0.0
    for start, following in zip(starts, [*starts[1:], float("inf")]):
        own = [(end, total) for end, total in ends if start <= end < following]
        if own:
            worked += max(end for end, _ in own) - min(end - total for end, total in own)
    return worked
