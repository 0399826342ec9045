"""What the daemon stands, measured on this machine; ends with status 1 if it does not stand it.

    python -m benchmarks.soak BUNDLE [kills] [disk] [overload] [fuzz] [steady] [--minutes 20] [--seed 1]

Without names, all of them, which takes about three quarters of an hour. Sends only to the loopback address. The daemon
runs on the first core, the clients on the others. `disk` needs root, to mount a small file system.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.soak.kills import may_mount, run_full_disk, run_kills
from benchmarks.soak.load import run_overload, run_steady

IMAGES, KILLS = 500, 20
OVERLOAD_SECONDS = 60.0

Check = tuple[str, bool]


def kills(place: Path, bundle: Path, options: argparse.Namespace) -> Iterator[Check]:
    tally = run_kills(place, bundle, images=IMAGES, kills=KILLS, seed=options.seed)
    show(tally)
    yield f"{IMAGES} images, {KILLS} kills: each has one result", tally.sound


def disk(place: Path, bundle: Path, options: argparse.Namespace) -> Iterator[Check]:
    if not may_mount():
        print("disk: left out, mounting a small file system needs root")
        return
    tally = run_full_disk(place, bundle, images=IMAGES)
    show(tally)
    yield f"{IMAGES} images, the disk full half-way: each has one result", tally.sound


def overload(place: Path, bundle: Path, options: argparse.Namespace) -> Iterator[Check]:
    found = run_overload(place, bundle, seconds=OVERLOAD_SECONDS)
    show(found)
    low, high = found.rss_mb
    yield "every refusal is explicit", set(found.answers) <= {202, 429}
    yield "memory is flat, within 5 %", high <= 1.05 * low
    yield "accepted images wait no longer than the queue", found.slowest_seconds <= found.bound_seconds
    yield "throughput is 90 % of the best", found.overloaded_per_second >= 0.9 * found.best_per_second


def fuzz(place: Path, bundle: Path, options: argparse.Namespace) -> Iterator[Check]:
    for name, more in {
        "fuzz_files": ["--count", "5000"],
        "fuzz_http": ["--count", "1000", "--bundle", str(bundle)],
        "fuzz_dicom": ["--count", "1000", "--bundle", str(bundle)],
    }.items():
        command = [sys.executable, "-m", f"tests.system.{name}", "--seed", str(options.seed), *more]
        yield f"{name} {' '.join(more[:2])}", subprocess.run(command).returncode == 0


def steady(place: Path, bundle: Path, options: argparse.Namespace) -> Iterator[Check]:
    found = run_steady(place, bundle, seconds=60 * options.minutes)
    show(found)
    low, high = found.rss_mb
    yield "it serves 3 s after its start", found.start_seconds <= 3
    yield "idle, it takes less than 1 % of a core", found.idle_cpu < 0.01
    yield "p99 is at most 3 times p50", found.p99_ms <= 3 * found.p50_ms
    yield "memory is flat, within 5 %", high <= 1.05 * low
    yield "descriptors are flat", found.descriptors[1] - found.descriptors[0] <= 10


SCENARIOS: dict[str, Callable[[Path, Path, argparse.Namespace], Iterator[Check]]] = {
    "kills": kills,
    "disk": disk,
    "overload": overload,
    "fuzz": fuzz,
    "steady": steady,
}


def show(figures: Any) -> None:
    """Print a scenario's figures as one line of JSON."""
    print(json.dumps(dataclasses.asdict(figures), default=str), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--minutes", type=float, default=20.0, help="of the steady load; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(SCENARIOS)}")
    failed = 0
    for name in options.scenarios or SCENARIOS:
        print(f"-- {name}", flush=True)
        with tempfile.TemporaryDirectory() as place:
            for what, held in SCENARIOS[name](Path(place), options.bundle.resolve(), options):
                failed += not held
                print(f"{'ok' if held else 'NOT SO'}: {what}", flush=True)
    print(f"soak: {failed} of the daemon's promises did not hold" if failed else "soak: all held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
