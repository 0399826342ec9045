"""The command: what is missing is listed, scored on the cluster, and written, a part every few seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edge.archive.cluster import RETRIES, cluster, place, score
from edge.archive.scorer import Settings
from edge.archive.sources import ArchiveFile, archive_files
from edge.bundle import Bundle, sha256_of
from edge.errors import MachineError
from edge.progress import ProgressLine
from edge.results import Timings, image_result

PART_SECONDS = 10.0
"""How much work a kill can cost."""

ROUND = 100_000
"""Files that Ray is handed at once: it keeps their paths in memory."""


def archive(
    bundle: Bundle,
    source: Path,
    output: Path,
    *,
    backend: str,
    guard: bool,
    paths: bool,
    workers: int | None,
    address: str | None,
) -> int:
    """Score what `source` (a folder, or a list of files) has and `output` has not; 0, or 1 if some were refused.

    With `paths` the table of files names them. Raises `EdgeError`, `OSError`; what was written by then counts.
    """
    try:
        from edge.archive.output import Output, scores_schema
    except ImportError as error:
        raise MachineError(f"Arrow cannot be loaded ({error}): pip install 'mdconv-edge[cluster]'") from None
    files = archive_files(source)
    facts = {"bundle": bundle.sha256, "guard": guard, "paths": paths, "notice": bundle.notice}
    with Output(output, facts, scores_schema(bundle.labels, bundle.notice)) as written:
        missing = [file for file in files if not written.has(file)]
        tally = _Tally(len(files) - len(missing))
        if missing:
            settings = Settings(bundle.directory, bundle.sha256, backend, guard, threads=1)
            with ProgressLine("archive") as progress:
                progress("starting Ray", 0, len(missing))
                with cluster(address) as nodes:
                    placement = place(nodes, backend, workers)
                    due = time.monotonic() + PART_SECONDS
                    for start in range(0, len(missing), ROUND):
                        for file, result in score(missing[start : start + ROUND], settings, placement):
                            result = result or _hopeless(file, bundle)
                            tally.count(result, written.add(file, result))
                            if time.monotonic() >= due:
                                written.write()
                                due = time.monotonic() + PART_SECONDS
                            progress("scoring", tally.files, len(missing))
        written.write()
        print(f"{tally.line()}; {output} has {written.contents} images")
    return 1 if tally.refused else 0


class _Tally:
    """What this run did."""

    def __init__(self, known: int) -> None:
        self.files = self.refused = 0
        self._known = known
        self._new = 0
        self._began: float | None = None

    def count(self, result: dict[str, Any], new: bool) -> None:
        self._began = self._began or time.monotonic()
        self.files += 1
        self._new += new
        if result["status"] == "refused":
            self.refused += 1

    def line(self) -> str:
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        rate = f" ({self.files / seconds:.0f} a second from the first result on)" if seconds >= 1 else ""
        return (
            f"{self.files} files scored{rate}, {self._new} of them new images, {self.refused} refused; "
            f"{self._known} were done before"
        )


def _hopeless(file: ArchiveFile, bundle: Bundle) -> dict[str, Any]:
    """The result of a file over which every worker died."""
    reason = f"the worker died {RETRIES + 1} times while it worked on this image: look at it elsewhere"
    try:
        sha256 = sha256_of(file.path)
    except OSError as error:
        sha256, reason = None, f"{reason} ({error.strerror})"
    return image_result(
        id="",
        source=None,
        sha256=sha256,
        timings=Timings(),
        bundle=bundle.sha256,
        gate=bundle.gate_verdict,
        backend=None,
        reason=reason,
    )
