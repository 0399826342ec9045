"""What Ray Data costs: `edge-infer archive` beside two plain processes of `edge-infer classify`, on the same images.

python -m benchmarks.archive BUNDLE [--phantoms 2000] [--size 448]

Takes turns: plain, archive, archive with one worker killed (SIGKILL) half-way. A rate is that of the results' own
times, from the first to the last; what comes before the first is the start-up. Memory is a worker's (RSS) half-way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]
from pyarrow import parquet

from mdconv.data.phantom.folder import write_phantoms

SEED = 8_000_000
EDGE_INFER = (sys.executable, "-m", "edge")
WORKER = "ray::MapWorker"
"""What the title of a worker's process begins with."""

BAR = re.compile(r"\[(#*)(\.*)\] scoring")
"""What `edge.progress` draws on a terminal: what is done, and what is left."""


class Run(NamedTuple):
    """One way, once."""

    rate: float
    """Images a second, from the first result to the last."""
    start_up: float
    """Seconds from the command to the first result."""
    results: int
    distinct: int
    """Contents among them."""
    megabytes: float = 0.0
    """Of the largest worker."""


def plain(bundle: Path, files: Sequence[Path], processes: int, scratch: Path) -> Run:
    """As many processes of `edge-infer classify`, each with its share of the files."""
    start = time.time()
    outputs = [scratch / f"{number}.jsonl" for number in range(processes)]
    running = []
    for number, output in enumerate(outputs):
        with output.open("w") as stream:
            command: list[str | Path] = [
                *EDGE_INFER,
                "classify",
                *files[number::processes],
                "--bundle",
                bundle,
                "--json",
            ]
            running.append(subprocess.Popen(command, stdout=stream, stderr=subprocess.DEVNULL))
    if not {process.wait() for process in running} <= {0, 1}:
        sys.exit("archive: edge-infer classify failed")
    results = [json.loads(line) for output in outputs for line in output.read_text().splitlines()]
    return _run(start, [(result["sha256"], result["time"]) for result in results])


def archive(bundle: Path, folder: Path, workers: int, count: int, output: Path, kill: bool) -> Run:
    """`edge-infer archive`; with `kill` one of its workers is killed once half of the images are scored."""
    start, megabytes, killed = time.time(), 0.0, 0.0
    command: list[str | Path] = [*EDGE_INFER, "archive", "--bundle", bundle, "--source", folder, "--output", output]
    command += ["--workers", str(workers)]
    terminal, its_side = pty.openpty()  # where the command tells ten times a second how far it is
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its_side)
    os.close(its_side)
    for shown in _shown(terminal):
        if megabytes == 0.0 and any(len(done) >= len(left) for done, left in BAR.findall(shown)):
            below = psutil.Process(process.pid).children(recursive=True)
            of_workers = [child for child in below if "".join(child.cmdline()[:1]).startswith(WORKER)]
            megabytes = max(child.memory_info().rss for child in of_workers) / 1e6
            if kill:
                os.kill(of_workers[0].pid, signal.SIGKILL)
                killed = time.time()
    if process.wait() not in (0, 1) or megabytes == 0.0:
        sys.exit("archive: edge-infer archive failed, or was too fast to be seen half-way: take more --phantoms")
    table = parquet.read_table(output / "scores", columns=["sha256", "time"])
    results = list(zip(table["sha256"].to_pylist(), table["time"].to_pylist()))
    if kill:
        before = sum(datetime.fromisoformat(time).timestamp() < killed for _, time in results)
        print(f"killed one of {workers} workers after {before} of {count} images")
    return _run(start, results)._replace(megabytes=megabytes)


def _shown(terminal: int) -> Iterator[str]:
    """What is written to a terminal, until its other side is closed."""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as stream:
        while shown := stream.read(4096):
            yield shown.decode()


def _run(start: float, results: Sequence[tuple[str, str]]) -> Run:
    times = sorted(datetime.fromisoformat(time).timestamp() for _, time in results)
    rate = (len(times) - 1) / (times[-1] - times[0])
    return Run(rate, times[0] - start, len(results), len({sha256 for sha256, _ in results}))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--phantoms", type=int, default=2000, metavar="N", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=448, metavar="PIXELS", help="of a phantom; default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="and plain processes; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    options = parser.parse_args(arguments)
    found: dict[str, list[Run]] = {"plain": [], "archive": [], "archive, a worker killed": []}
    with tempfile.TemporaryDirectory(prefix="archive-") as scratch:
        place, folder = Path(scratch), Path(scratch, "phantoms")
        write_phantoms(folder, range(SEED, SEED + options.phantoms), options.size)
        (folder / "labels.csv").unlink()
        files = sorted(folder.iterdir())
        for turn in range(options.rounds):
            ways = (options.bundle, folder, options.workers, len(files))
            found["plain"].append(plain(options.bundle, files, options.workers, place))
            found["archive"].append(archive(*ways, place / f"{turn}", kill=False))
            found["archive, a worker killed"].append(archive(*ways, place / f"{turn}-killed", kill=True))
            for way, runs in found.items():
                run = runs[-1]
                print(
                    f"{way:25} {run.rate:6.1f} images/s after {run.start_up:4.1f} s; {run.results} results of "
                    f"{run.distinct} contents" + (f"; {run.megabytes:.0f} MB a worker" if run.megabytes else ""),
                    flush=True,
                )
    for way, runs in found.items():
        ratios = [run.rate / beside.rate for run, beside in zip(runs, found["plain"])]
        print(
            f"{way:25} ratio to plain: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
