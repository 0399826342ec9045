"""``make.py --regate``: the gate of a bundle that is there, repeated; of the demo's also on phantoms."""

from __future__ import annotations

import tempfile
from pathlib import Path

from build_engine.images import gate_images
from build_engine.verify import say
from calibration.limits import Limits
from calibration.regate import regate
from edge.bundle import read_manifest
from edge.errors import UsageError
from edge.preprocess import Preprocess
from mdconv.checkpoint import load_checkpoint
from mdconv.weights import DEMO_CHECKPOINT


def regate_bundle(directory: Path, gate_data: Path | None, limits: Limits, backend: str) -> str:
    """Repeat the gate of the bundle in `directory` and write the verdict into its manifest; returns the verdict.

    Without `gate_data` the demo checkpoint's bundle is judged by phantoms, as at its build; for any other `UsageError`
    is raised, and what `calibration.regate.regate` raises.
    """
    manifest, _ = read_manifest(directory)
    on_phantoms = manifest["model"].get("weights_sha256") == load_checkpoint(DEMO_CHECKPOINT).sha256
    size = Preprocess.from_manifest(manifest["preprocess"]).input_size
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        images = gate_images(gate_data, on_phantoms=on_phantoms, size=size, scratch=Path(scratch))
        if images is None:
            raise UsageError("no --gate-data: name a folder of radiographs, with labels.csv, to judge the bundle by")
        gate = regate(directory, images.directory, images.origin, limits, backend, say)
    return str(gate["verdict"])
