"""Run a bundle's images through the TensorRT backend: ``python run_backend.py BUNDLE IMAGES.npy OUTPUT.npz``.

Takes 1, 2, ... images at a time up to the bundle's batch. Writes the results that came, the facts, and the error that
ended it, if any; results are kept until the end, as a pipeline's are.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np

from edge.backends.tensorrt import open_tensorrt
from edge.bundle import load_bundle
from edge.errors import EdgeError


def main(directory: Path, images_path: Path, output: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bundle = load_bundle(directory)
    images = np.load(images_path)
    results = []
    facts: object = None
    error = ""
    try:
        with open_tensorrt(bundle) as backend:
            facts = backend.facts
            start, step = 0, 1
            while start < len(images):
                results.append(backend.infer(images[start : start + step]))
                start, step = start + step, step % bundle.batch + 1
    except EdgeError as refused:
        error = str(refused)
    np.savez(
        output,
        logits=np.concatenate([result.logits for result in results] or [np.empty((0, len(bundle.labels)), np.float32)]),
        cam=np.concatenate([result.cam for result in results]) if results else np.empty(0),
        gpu_ms=np.array([result.gpu_ms for result in results]),
        facts=json.dumps(facts),
        error=error,
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
