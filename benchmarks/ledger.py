"""What does the daemon's ledger cost once it holds years of results?

    python -m benchmarks.ledger BUNDLE [--runs 100000]

Fills ledgers with finished runs, a hundredth of the number and all of it, each result owed to two sinks, of which one
was down for the last half; then times what the daemon asks of it while images come in, side by side, and a report.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle import Bundle, load_bundle
from edge.ledger import Ledger, Retention
from edge.ledger.runs import report
from edge.results import Timings, findings, image_result
from edge.telemetry import machine_facts

TIMES = 20


def made_by(bundle: Bundle, id: str, sha256: str) -> dict[str, Any]:
    """A result as the daemon records it."""
    return image_result(
        id=id,
        source=None,
        sha256=sha256,
        timings=Timings(stages={"decode": 20.0, "preprocess": 5.0, "infer": 50.0, "postprocess": 1.0}),
        bundle=bundle.sha256,
        gate=bundle.gate_verdict,
        backend="onnxruntime",
        findings=findings(bundle.labels, bundle.thresholds, np.zeros(len(bundle.labels))),
    )


def fill(ledger: Ledger, bundle: Bundle, runs: int) -> None:
    """`runs` finished runs, one a minute until now, as a daemon that serves `bundle` leaves them."""
    first = datetime.now(timezone.utc) - timedelta(minutes=runs)
    facts = {"bundle_sha256": bundle.sha256, "manifest": bundle.manifest, "machine": machine_facts()}
    ledger.begin_session({**facts, "backend": "onnxruntime", "backend_facts": {}})
    with ledger.database.transaction() as connection:
        for number in range(runs):
            id, sha256 = uuid.uuid4().hex, uuid.uuid4().hex * 2
            received = (first + timedelta(minutes=number)).isoformat(timespec="milliseconds")
            owed = number >= runs // 2
            connection.execute(
                "INSERT INTO runs (id, sha256, origin, stat, state, bytes, received, attempts, result) "
                "VALUES (?, ?, 'http', 0, 'done', ?, ?, 1, ?)",
                (id, sha256, 8_000_000 if owed else 0, received, json.dumps(made_by(bundle, id, sha256))),
            )
            report(connection, id, ("mqtt", "pacs"))
            connection.execute("INSERT INTO seen VALUES (?, ?)", (sha256, id))
            connection.execute(
                "UPDATE outbox SET state = 'delivered' WHERE run = ? AND (sink = 'mqtt' OR NOT ?)", (id, owed)
            )


def calls(ledger: Ledger, bundle: Bundle, runs: int) -> dict[str, Callable[[], object]]:
    """What the daemon asks of its ledger; each one a wait for all of its threads."""

    def through() -> None:
        """One image, from reception to delivery."""
        receipt = ledger.receive(uuid.uuid4().bytes * 65536, origin="http")
        assert ledger.take() is not None
        ledger.finish(made_by(bundle, receipt.id, receipt.sha256), sinks=("mqtt",))
        waiting = ledger.outbox.next("mqtt")
        assert waiting is not None
        ledger.delivered(waiting, "mqtt")

    def next_for_pacs() -> None:
        assert ledger.outbox.next("pacs") is not None

    return {
        "one image of 1 MB through it": through,
        "the queue (each image)": ledger.waiting,
        "the next for a sink that was down": next_for_pacs,
        "states (page, metrics)": ledger.counts,
        "deliveries (page, metrics)": ledger.outbox.pending,
        "the last 50 (page)": lambda: ledger.recent(50),
        "100 results from the middle": lambda: ledger.results(runs // 2, 100),
        "retention, nothing due": Retention(ledger.database, days=10_000, max_bytes=None).apply,
    }


def milliseconds(call: Callable[[], object]) -> float:
    """The median of `TIMES` calls."""
    found = []
    for _ in range(TIMES):
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--runs", type=int, default=100_000)
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    sizes = (max(2, options.runs // 100), options.runs)
    with tempfile.TemporaryDirectory() as place:
        timed = {}
        for runs in sizes:
            with Ledger(Path(place, str(runs))) as ledger:
                fill(ledger, bundle, runs)
                timed[runs] = {name: milliseconds(call) for name, call in calls(ledger, bundle, runs).items()}
        small, large = timed[sizes[0]], timed[sizes[1]]
        print(f"{'ms':<36}{sizes[0]:>12,} runs{sizes[1]:>12,} runs{'ratio':>9}")
        for name in small:
            print(f"{name:<36}{small[name]:>17.3f}{large[name]:>17.3f}{large[name] / small[name]:>9.2f}")
        megabytes = sum(path.stat().st_size for path in Path(place, str(sizes[1])).glob("ledger.sqlite*")) / 1e6
        print(f"the file: {megabytes:.0f} MB")
        start = time.perf_counter()
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "edge",
            "report",
            "--state",
            Path(place, str(sizes[1])),
            "--report",
            place,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"its report: {seconds:.1f} s, {peak:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
