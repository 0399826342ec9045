"""The options of ``edge-infer archive``; what they need is loaded when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.bundle import Bundle

Load = Callable[[argparse.Namespace], Bundle]


def add_archive_command(command: Callable[..., argparse.ArgumentParser], parents: Sequence[Any], load: Load) -> None:
    """Add the command, whose bundle `load` opens as the options of `parents` say."""

    def run(options: argparse.Namespace) -> int:
        bundle = load(options)
        from edge.archive.command import archive

        return archive(
            bundle,
            options.source,
            options.output,
            backend=options.backend,
            guard=options.guard,
            paths=options.with_paths,
            workers=options.workers,
            address=options.address,
        )

    sub = command("archive", run, "score an archive on all cores, or on a Ray cluster: each image once", parents)
    sub.add_argument(
        "--source", type=Path, required=True, metavar="PATH", help="a folder, or a list of files: a path a line"
    )
    sub.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder of Parquet files to make, or to go on with: what it has is not scored again",
    )
    sub.add_argument(
        "--with-paths", action="store_true", help="name the files in the output (they may hold patients' names)"
    )
    sub.add_argument("--workers", type=_positive, metavar="N", help="default: one a GPU, or without GPUs one a core")
    sub.add_argument(
        "--address", metavar="HOST:PORT", help="the Ray cluster to use; default: one of this machine alone"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
