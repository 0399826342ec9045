"""``edge-infer classify``: the files named on the command line, one line each, in the order of their naming."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends import open_backend
from edge.bundle import Bundle
from edge.errors import BundleError
from edge.gate import FAIL
from edge.pipeline import Item, Outcome, Pipeline

NO_CAM = "no class activation maps: this network's head is not linear after the mean over positions, so --cam has none"


class Printer:
    """Prints each outcome once all that were named before it are printed; counts the refused ones."""

    def __init__(self, bundle: Bundle, as_json: bool, cam_directory: Path | None) -> None:
        self.refused = 0
        self._bundle = bundle
        self._as_json = as_json
        self._cam_directory = cam_directory
        self._next = 0
        self._early: dict[int, dict[str, Any]] = {}

    def deliver(self, outcome: Outcome) -> None:
        """Write the heat map, if wanted, and print whatever is next in line. Raises `OSError` and `BundleError`."""
        result = outcome.result
        if self._cam_directory is not None and outcome.pixels is not None:
            result["cam"] = self._write_heatmap(self._cam_directory, outcome, outcome.pixels)
        self._early[int(result["id"])] = result
        while (ready := self._early.pop(self._next, None)) is not None:
            self._print(ready)
            self._next += 1

    def _write_heatmap(self, directory: Path, outcome: Outcome, pixels: NDArray[np.uint8]) -> dict[str, str]:
        from edge.heatmap import write_heatmap  # draws with OpenCV, which the plain answer does without

        if outcome.cam is None:
            raise BundleError(
                f"{self._bundle.name} gave no class activation maps, though its manifest says that it has them"
            )
        return write_heatmap(
            directory,
            f"{Path(outcome.result['source']).stem}-{outcome.result['sha256'][:8]}",
            pixels=pixels,
            cam=outcome.cam,
            labels=self._bundle.labels,
            result=outcome.result,
            notice=self._bundle.notice,
        )

    def _print(self, result: dict[str, Any]) -> None:
        if result["status"] == "refused":
            self.refused += 1
            print(f"edge-infer: {result['source']}: refused: {result['reason']}", file=sys.stderr)
        if self._as_json:
            print(json.dumps(result), flush=True)
        elif result["status"] == "done":
            print(readable(result), flush=True)


def readable(result: dict[str, Any]) -> str:
    """One line for a person: the positive findings, or the likeliest one if none is positive."""
    chances = sorted(((entry["probability"], label) for label, entry in result["findings"].items()), reverse=True)
    positive = [f"{label} {p:.2f}" for p, label in chances if result["findings"][label]["positive"]]
    said = ", ".join(positive) or f"no finding (highest: {chances[0][1]} {chances[0][0]:.2f})"
    cam = f"  [{result['cam']['overlay']}]" if result["cam"] else ""
    failed = "  [this bundle failed its accuracy gate]" if result["gate"] == FAIL else ""
    unguarded = "  [the guard is off]" if (result["guard"] or {}).get("off") else ""
    return f"{result['source']}: {said}{cam}{failed}{unguarded}"


def classify(
    bundle: Bundle,
    files: list[Path],
    *,
    backend: str,
    as_json: bool = False,
    cam_directory: Path | None = None,
    guard: bool = True,
) -> int:
    """Run `files` and print their results; the exit status: 0, or 1 if some were refused. Raises `EdgeError`.

    Without `guard`, images that the network was not made for are answered too, and each line says so. Where the network
    has no class activation maps none are written, which is said on standard error.
    """
    if cam_directory is not None and not bundle.has_cam:
        cam_directory = None
        print(f"edge-infer: {NO_CAM}", file=sys.stderr)
    if cam_directory is not None:
        cam_directory.mkdir(parents=True, exist_ok=True)
    printer = Printer(bundle, as_json, cam_directory)
    decoders = min(len(files), len(os.sched_getaffinity(0)))
    opener = functools.partial(open_backend, bundle, backend)
    with Pipeline(bundle, opener, printer.deliver, decoders=decoders, guard=guard) as pipeline:
        for number, path in enumerate(files):
            pipeline.submit(Item(str(number), source=str(path), path=path))
    return 1 if printer.refused else 0
