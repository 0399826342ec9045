"""The self-test: a backend must give, on the golden inputs, what the float32 reference gave at the build."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backends import Backend
from edge.bundle import GOLDEN, Bundle
from edge.errors import BundleError
from edge.results import probabilities

log = logging.getLogger(__name__)

KINDS = ("max", "mean")
"""What is bounded: the largest difference of a probability finds one wrong finding, the mean a network gone astray."""


def golden_inputs(bundle: Bundle) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The bundle's golden inputs (n, 1, S, S) uint8 and their float32 reference logits (n, L). Raises `BundleError`."""
    path = bundle.directory / GOLDEN
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, logits = archive["images"], archive["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} cannot be read ({error}): build the bundle anew") from None
    shape = (len(images), 1, bundle.input_size, bundle.input_size)
    if len(images) == 0 or images.shape != shape or images.dtype != np.uint8:
        raise BundleError(
            f"{path}: images are {images.dtype} {images.shape}, expected uint8 {shape}: build the bundle anew"
        )
    if logits.shape != (len(images), len(bundle.labels)):
        raise BundleError(
            f"{path}: logits are {logits.shape}, expected {(len(images), len(bundle.labels))}: build the bundle anew"
        )
    return images, logits


def self_test(bundle: Bundle, backend: Backend) -> dict[str, Any]:
    """Run the golden inputs through `backend`; returns the figures. Raises as `compare`."""
    images, _ = golden_inputs(bundle)
    batches = [backend.infer(images[i : i + bundle.batch]).logits for i in range(0, len(images), bundle.batch)]
    return compare(bundle, np.concatenate(batches), backend.name)


def compare(bundle: Bundle, logits: NDArray[np.float32], backend: str) -> dict[str, Any]:
    """The figures of a self-test, of what `backend` made of the golden inputs: `logits` (n, L).

    Probabilities are compared, not logits: they are what a user acts on. Raises `BundleError` if one of them, or their
    mean, is further from the reference than the bundle's tolerance, or is no number.
    """
    _, reference = golden_inputs(bundle)
    try:
        tolerance = {kind: float(bundle.manifest["golden"][f"{kind}_probability_difference"]) for kind in KINDS}
    except (KeyError, TypeError, ValueError):
        raise BundleError(f"{bundle.name} has no tolerance for its golden inputs: build the bundle anew") from None
    if not np.isfinite(logits).all():
        raise BundleError(
            f"the self-test failed: backend {backend} gives values that are no numbers: rebuild the bundle"
        )
    differences = np.abs(probabilities(logits) - probabilities(reference))
    found = {"max": float(differences.max()), "mean": float(differences.mean())}
    for kind in KINDS:
        if found[kind] > tolerance[kind]:
            raise BundleError(
                f"the self-test failed: backend {backend} is {found[kind]:.3g} off the reference probabilities of "
                f"{bundle.name} ({kind}), allowed are {tolerance[kind]:.3g}: rebuild the bundle for this machine, or "
                "try another --backend"
            )
    return {"images": len(reference), "difference": found, "tolerance": tolerance}


def open_tested(
    bundle: Bundle,
    open_backend: Callable[[], Backend],
    note: Callable[[dict[str, Any] | None], None] = lambda figures: None,
) -> Backend:
    """Open a backend and self-test it; a backend that fails is closed. Raises what either raises.

    `note` is told the figures, or None of a test that failed.
    """
    backend = open_backend()
    try:
        figures = self_test(bundle, backend)
    except BaseException:
        note(None)
        backend.close()
        raise
    note(figures)
    log.info("backend %s: %s", backend.name, describe(figures))
    return backend


def describe(figures: Mapping[str, Any]) -> str:
    """One line on a self-test that passed."""
    found, allowed = figures["difference"], figures["tolerance"]
    return f"self-test passed on {figures['images']} golden inputs, probabilities off the reference by " + " and ".join(
        f"{found[kind]:.2g} ({kind}, {allowed[kind]:.2g} allowed)" for kind in KINDS
    )
