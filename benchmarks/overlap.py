"""Does the pipeline keep the cores at work? Its wall time against the CPU time that its stages take.

    python -m benchmarks.overlap BUNDLE [--backend openvino] [--images 200] [--repeats 5]

Phantoms as PNG of 1024 x 1024, and a quarter as many raw DICOM of 1841 x 1955, stream through the pipeline as
`edge-infer` runs it. Perfect overlap takes the CPU time of all threads divided by the cores; ``wall`` is what it took,
as a ratio to that. What other processes take of the cores lengthens the wall time and is not the pipeline's: a run
counts only if they left the machine alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipeline import Run, make_files, run_pipeline
from edge.backends import CHOICES
from edge.bundle import Bundle, load_bundle

QUIET = 0.02
"""Share of the core time that other processes may take of a run that counts."""


def measure(bundle: Bundle, backend: str, kind: str, files: Sequence[Path], repeats: int) -> dict[str, Any]:
    """`repeats` runs after one that is not counted: prints each, returns the medians of those on a quiet machine."""
    cores = len(os.sched_getaffinity(0))
    run_pipeline(bundle, backend, files)
    quiet: list[Run] = []
    for _ in range(repeats):
        run = run_pipeline(bundle, backend, files)
        core_time = run.wall * cores
        others, idle = run.others / core_time, max(0.0, 1 - (run.cpu + run.others) / core_time)
        quiet += [run] if others <= QUIET else []
        print(
            f"{bundle.precision}, {kind}: {len(files) / run.wall:.1f} images/s, "
            f"{run.cpu / len(files) * 1e3:.1f} ms CPU an image, wall {core_time / run.cpu:.3f} of CPU / {cores} cores; "
            f"other processes {others:.1%}, idle {idle:.1%}",
            flush=True,
        )
    if not quiet:
        print(f"{kind}: in no run did other processes take less than {QUIET:.0%}: stop them", flush=True)
        return {"precision": bundle.precision, "files": kind, "quiet_runs": 0}
    ratios = [run.wall * cores / run.cpu for run in quiet]
    return {
        "precision": bundle.precision,
        "files": kind,
        "quiet_runs": len(quiet),
        "images_per_s": round(statistics.median(len(files) / run.wall for run in quiet), 1),
        "cpu_ms_an_image": round(statistics.median(run.cpu / len(files) * 1e3 for run in quiet), 2),
        "wall_by_cpu": round(statistics.median(ratios), 3),
        "wall_by_cpu_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", choices=CHOICES, default="openvino")
    parser.add_argument("--images", type=int, default=200, help="PNG files; a quarter as many DICOM (default: 200)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind (default: 5)")
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle)
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        kinds = make_files(Path(scratch), options.images)
        rows = [measure(bundle, options.backend, kind, files, options.repeats) for kind, files in kinds.items()]
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
