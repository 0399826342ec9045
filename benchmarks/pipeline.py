"""Images per second of the pipeline against the plain loop that a user would write, on the same files in one run.

    python benchmarks/pipeline.py BUNDLE...

The plain loop reads with pydicom or OpenCV, resizes, and runs the bundle's float32 ONNX in ONNX Runtime with its
default settings, one image after the other. The pipeline runs the bundle as `edge-infer` does. Both have their model
loaded before the clock starts; they take turns, so that a change of the machine's speed meets both.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnxruntime
import psutil  # type: ignore[import-untyped]
import pydicom
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from edge.backends import open_backend
from edge.bundle import PORTABLE_MODEL, Bundle, load_bundle
from edge.pipeline import Item, Outcome, Pipeline


def read_plainly(path: Path, size: int) -> NDArray[np.uint8]:
    """(1, 1, size, size) uint8 of a DICOM or PNG file, as in the usual example."""
    gray: NDArray[Any]
    if path.suffix == ".dcm":
        dataset = pydicom.dcmread(path)
        values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float32)
        values *= 255 / (2**dataset.BitsStored - 1)
        gray = (255 - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values).astype(np.uint8)
    else:
        gray = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    small = cv2.resize(gray, (size, size), interpolation=cv2.INTER_AREA)
    return small[np.newaxis, np.newaxis].astype(np.uint8, copy=False)


def time_plain_loop(session: Any, bundle: Bundle, files: Sequence[Path]) -> float:
    """Seconds to run `files` one after the other."""
    start = time.perf_counter()
    for path in files:
        session.run(None, {"image": read_plainly(path, bundle.input_size)})
    return time.perf_counter() - start


class Run(NamedTuple):
    """One stream of files, in seconds."""

    wall: float
    """From the first file submitted to the last result."""
    cpu: float
    """Of this process, all threads."""
    others: float
    """Of processors that did something else meanwhile."""


def run_pipeline(bundle: Bundle, backend: str, files: Sequence[Path]) -> Run:
    """Stream `files` through a pipeline whose backend is open. Raises `RuntimeError` unless all are done."""
    results = []

    def deliver(outcome: Outcome) -> None:
        results.append(outcome.result)

    # The demo's guard refuses a real radiograph, rightly; its time is measured on the phantoms.
    guard = files[0].suffix == ".png"
    with Pipeline(bundle, functools.partial(open_backend, bundle, backend), deliver, guard=guard) as pipeline:
        pipeline.wait_until_open()
        wall, cpu, busy = time.perf_counter(), time.process_time(), _busy_seconds()
        for number, path in enumerate(files):
            pipeline.submit(Item(str(number), path=path))
        pipeline.drain()
        wall, cpu, busy = time.perf_counter() - wall, time.process_time() - cpu, _busy_seconds() - busy
    reasons = {result["reason"] for result in results if result["status"] != "done"}
    if reasons or len(results) != len(files):
        raise RuntimeError(f"{len(results)} results of {len(files)} files; refused because {reasons}")
    return Run(wall, cpu, max(0.0, busy - cpu))


def _busy_seconds() -> float:
    """What all processors have worked since the machine was started, time stolen by other machines included."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def make_files(directory: Path, count: int) -> dict[str, list[Path]]:
    """`count` phantoms of 1024 x 1024 as PNG, and a quarter as many copies of a real radiograph as raw DICOM."""
    command = [sys.executable, "-m", "mdconv.data.phantom", "--output", str(directory), "--size", "1024"]
    subprocess.run([*command, "--count", str(count), "--seed", "4000000"], check=True, stdout=subprocess.DEVNULL)
    source = get_testdata_file("RG1_UNCR.dcm")
    assert isinstance(source, str)
    copies = [directory / f"{number}.dcm" for number in range(max(1, count // 4))]
    for copy in copies:
        shutil.copy(source, copy)
    return {"PNG 1024x1024": sorted(directory.rglob("*.png")), "DICOM 1841x1955 raw": copies}


def compare(bundle: Bundle, backend: str, kind: str, files: Sequence[Path], repeats: int) -> dict[str, Any]:
    """Let both take `repeats` turns, after one that is not counted; prints and returns the medians and their ratio."""
    session = onnxruntime.InferenceSession(bundle.directory / PORTABLE_MODEL, providers=["CPUExecutionProvider"])
    turns = [
        (time_plain_loop(session, bundle, files), run_pipeline(bundle, backend, files).wall) for _ in range(repeats + 1)
    ][1:]
    plain, pipeline = (len(files) / statistics.median(seconds) for seconds in zip(*turns))
    ratios = sorted(one / other for one, other in turns)
    ratio = statistics.median(ratios)
    print(
        f"{bundle.name} ({bundle.precision}), {kind}: plain loop {plain:.1f} images/s, pipeline {pipeline:.1f}, "
        f"ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )
    return {
        "bundle": bundle.name,
        "precision": bundle.precision,
        "files": kind,
        "plain_loop_images_per_s": round(plain, 2),
        "pipeline_images_per_s": round(pipeline, 2),
        "ratio": round(ratio, 3),
        "ratios": [round(value, 3) for value in ratios],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--images", type=int, default=32, help="PNG files; a quarter as many DICOM (default: 32)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (default: 5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        kinds = make_files(Path(scratch), options.images)
        rows = [
            compare(bundle, options.backend, kind, files, options.repeats)
            for bundle in map(load_bundle, options.bundles)
            for kind, files in kinds.items()
        ]
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
