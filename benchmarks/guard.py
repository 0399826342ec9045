"""What does a bundle's guard refuse? Fresh phantoms, which it should not, and foreign images, which it should.

    python -m benchmarks.guard out/mobilenet_v2-int8-onnxruntime
    python -m benchmarks.guard out/mobilenet_v2-int8-onnxruntime --phantoms 4000 --foreign photographs/ lateral_views/

For each kind of foreign image: how many the limits of a gray image refuse, how many the distance does, how many either
does, and the area under the ROC curve of the distance against the fresh phantoms. Their seeds are none that training,
calibration, gate or thresholds use. DICOM tags are not looked at: this is about what is left when they say nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.foreign_images import (
    Gray,
    no_radiographs,
    of_folder,
    other_modalities,
    real_radiographs,
    strange_phantoms,
)
from edge.backends import Backend
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import load_bundle
from edge.errors import InputRefusedError, UsageError
from edge.guard import Guard
from edge.preprocess import Preprocess, resize
from edge.progress import ProgressLine
from edge.statistics import roc_auc
from mdconv.data.phantom import DEMO_SEEDS, render

FIRST_SEED = DEMO_SEEDS.start + 100_000
STRANGE = 100
"""How many of the phantoms are made strange in each way."""


class Judged(NamedTuple):
    """What the guard says of N images of one kind."""

    by_limits: NDArray[np.bool_]
    """(N,) Refused for their gray levels or shape."""
    scores: NDArray[np.float64]
    """(N,) Distances."""
    milliseconds: float
    """Processor time of one distance, on average."""


def judge(guard: Guard, backend: Backend, images: Iterable[Gray], preprocess: Preprocess) -> Judged:
    """Put `images` (H, W) before the guard."""
    by_limits, scores, seconds = [], [], 0.0
    for image in images:
        try:
            guard.check_image(image)
            by_limits.append(False)
        except InputRefusedError:
            by_limits.append(True)
        pixels = resize(image, preprocess)
        outputs = backend.infer(pixels[None, None])
        start = time.thread_time()
        verdict = guard.check(pixels, outputs.logits[0], None if outputs.cam is None else outputs.cam[0])
        seconds += time.thread_time() - start
        if verdict is None:
            raise UsageError("the bundle has no distance: build it with calibration images")
        scores.append(verdict["score"])
    return Judged(np.array(by_limits), np.array(scores), seconds / max(len(scores), 1) * 1e3)


def row(kind: str, found: Judged, phantoms: Judged, threshold: float) -> str:
    """A row of the Markdown table."""
    by_score = ~(found.scores <= threshold)
    labels = np.repeat([False, True], [len(phantoms.scores), len(found.scores)])
    area = roc_auc(labels, np.concatenate([phantoms.scores, found.scores]))
    shares = " | ".join(f"{share.mean():.0%}" for share in (found.by_limits, by_score, found.by_limits | by_score))
    low, high = found.scores.min(), found.scores.max()
    return f"| {kind} | {len(found.scores)} | {area:.3f} | {shares} | {low:.1f} to {high:.1f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--phantoms", type=int, default=2000, metavar="N", help="fresh ones (default: %(default)s)")
    parser.add_argument("--foreign", type=Path, nargs="*", default=[], metavar="DIR", help="images of other kinds")
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.bundle)
    guard, preprocess = Guard.from_bundle(bundle), Preprocess.from_manifest(bundle.manifest["preprocess"])
    if guard.threshold is None:
        raise SystemExit("the bundle's guard has no threshold: build it with more calibration images")
    size = bundle.input_size
    seeds = range(FIRST_SEED, FIRST_SEED + options.phantoms)
    with ProcessPoolExecutor() as workers, ProgressLine("guard") as progress:
        fresh = []
        for number, image in enumerate(workers.map(partial(_phantom, size=size), seeds, chunksize=8)):
            progress("phantoms", number, options.phantoms)
            fresh.append(image)
    kinds = [
        *strange_phantoms(fresh[:STRANGE]),
        *real_radiographs(),
        *other_modalities(),
        *no_radiographs(size),
        *map(of_folder, options.foreign),
    ]
    with OnnxRuntimeBackend(bundle) as backend:
        phantoms = judge(guard, backend, fresh, preprocess)
        refused = ~(phantoms.scores <= guard.threshold)
        print(
            f"{bundle.name}: threshold {guard.threshold:.2f}. Of {len(fresh)} fresh phantoms {refused.sum()} are "
            f"refused by their distance ({refused.mean():.2%}) and {phantoms.by_limits.sum()} by the limits of a gray "
            f"image; distances {phantoms.scores.min():.2f} to {phantoms.scores.max():.2f}, median "
            f"{np.median(phantoms.scores):.2f}; a distance takes {phantoms.milliseconds:.1f} ms\n"
        )
        print("| foreign images | number | area under the curve | by limits | by distance | by either | distances |")
        print("|---|---|---|---|---|---|---|")
        for kind, images in kinds:
            print(row(kind, judge(guard, backend, images, preprocess), phantoms, guard.threshold), flush=True)
    return 0


def _phantom(seed: int, size: int) -> Gray:
    return render(seed, size).image


if __name__ == "__main__":
    sys.exit(main())
