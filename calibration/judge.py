"""Puts a bundle, as its backend runs it on this machine, before the accuracy gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import from_folder, pixel_digest
from calibration.gate import LABELS_FILE, assess, read_labels
from calibration.limits import Limits
from edge.backends import Backend
from edge.backends.onnxruntime import open_session
from edge.bundle import CALIBRATION, PORTABLE_MODEL, Bundle
from edge.errors import BundleError, InputRefusedError, UsageError
from edge.preprocess import Preprocess, load_image
from edge.progress import ProgressLine
from edge.results import timestamp
from edge.telemetry import machine_facts

UNLABELLED_IMAGES = 200
"""Most images of an unlabelled folder on which the agreement with float32 is measured."""

NO_IMAGE: Mapping[str, str] = MappingProxyType({})
RTX_NOTE = "the engine needs an RTX GPU and was not run: the figures are of its ONNX model in ONNX Runtime"


class Float32Outputs(NamedTuple):
    """What the portable model returns for N images."""

    logits: NDArray[np.float32]
    """(N, L)."""
    cam: NDArray[np.float32] | None
    """(N, L, h, w); None where the network has no class activation maps."""


def portable_runner(model: Path) -> Callable[[NDArray[np.uint8]], Float32Outputs]:
    """The float32 reference: runs (N, 1, S, S) uint8 images through the portable `model`, one at a time.

    Raises `BundleError` for a model that ONNX Runtime cannot load.
    """
    session = open_session(model, threads=0)
    names = [output.name for output in session.get_outputs()]

    def run(images: NDArray[np.uint8]) -> Float32Outputs:
        outputs = [session.run(names, {"image": images[i : i + 1]}) for i in range(len(images))]
        found = {name: np.concatenate(parts) for name, parts in zip(names, zip(*outputs))}
        return Float32Outputs(found["logits"], found.get("cam"))

    return run


def judge(
    bundle: Bundle, backend: Backend, directory: Path, origin: str, limits: Limits, say: Callable[[str], None]
) -> dict[str, Any]:
    """Compare `bundle`, run by `backend`, with its own float32 model on the images in `directory`.

    Returns the manifest's gate entry: `assess` with ``data`` (the images' `origin`), ``ran_on``, ``backend``,
    ``machine`` and ``time``. Raises `UsageError` for images or labels that cannot be used, and for an image that the
    bundle was calibrated on.
    """
    preprocess = Preprocess.from_manifest(bundle.manifest["preprocess"])
    paths, truth, patients = images_of(directory, bundle.labels, preprocess)
    calibrated_on = _calibration_pixels(bundle, say)
    say(f"gate: comparing with float32 on {len(paths)} images ({origin})")
    reference = portable_runner(bundle.directory / PORTABLE_MODEL)
    with ProgressLine("gate") as progress:
        gate = assess(
            lambda batch: reference(batch).logits,
            lambda batch: backend.infer(batch).logits,
            load_images(paths, preprocess, progress, "--gate-data", calibrated_on),
            bundle.labels,
            bundle.thresholds,
            truth,
            limits,
            patients,
        )
    machine = machine_facts()
    gate |= {
        "data": origin,
        "ran_on": backend.name,
        "backend": _without_places(backend.facts),
        "machine": {key: machine[key] for key in ("architecture", "cpu", "jetson")},
        "time": timestamp(),
    }
    if bundle.manifest["backend"] == "tensorrt-rtx":
        gate["note"] = RTX_NOTE
    return gate


def _without_places(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A backend's facts, less its layers and what errors said, which names folders of this machine."""
    kept = {key: value for key, value in facts.items() if key != "layers"}
    for key, end in (("chosen_because", " ("), ("fallback", ": ")):
        if key in kept:
            kept[key] = kept[key].partition(end)[0]
    return kept


class Judges(NamedTuple):
    """Images to judge a bundle by, and what is known of them: `Labelled`, or no more than where they are."""

    paths: tuple[Path, ...]
    truth: NDArray[np.bool_] | None
    patients: tuple[str, ...] | None


def images_of(directory: Path, labels: Sequence[str], preprocess: Preprocess) -> Judges:
    """Those that ``labels.csv`` in `directory` lists; where there is none, at most `UNLABELLED_IMAGES` of the folder's.

    Raises `UsageError` as `read_labels` and `from_folder` do.
    """
    if (directory / LABELS_FILE).is_file():
        return Judges(*read_labels(directory, labels))
    return Judges(from_folder(directory, UNLABELLED_IMAGES, preprocess).paths, None, None)


def _calibration_pixels(bundle: Bundle, say: Callable[[str], None]) -> dict[str, str]:
    """The pixel digests that ``calibration.json`` has, and what an image of theirs is. Raises `BundleError`."""
    if not bundle.manifest["calibration"].get("method"):
        return {}
    path = bundle.path(CALIBRATION)
    try:
        pixels = json.loads(path.read_text(encoding="utf-8")).get("pixels") if path else None
        known = dict.fromkeys(pixels or (), f"one of those that the bundle was calibrated on ({CALIBRATION})")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise BundleError(f"{path} cannot be read ({error}): build the bundle anew") from None
    if pixels is None:
        say("gate: the bundle does not say what images it was calibrated on, so some of them may judge it now")
        return {}
    return known


def load_images(
    paths: Sequence[Path],
    preprocess: Preprocess,
    progress: ProgressLine,
    option: str,
    calibrated_on: Mapping[str, str] = NO_IMAGE,
) -> Iterator[NDArray[np.uint8]]:
    """Each image as (1, 1, S, S) uint8.

    Raises `UsageError` naming the first that is no usable image of `option`, or whose `pixel_digest` is in
    `calibrated_on`, which says what it is: ranges fit the images that they were measured on best.
    """
    for number, path in enumerate(paths):
        progress("images", number, len(paths))
        try:
            image = load_image(path, preprocess)
        except InputRefusedError as error:
            raise UsageError(f"image {path}: {error}: mend the file or take it out of {option}") from None
        if (what := calibrated_on.get(pixel_digest(image))) is not None:
            raise UsageError(f"image {path} of {option} is {what}: take it out of one of them")
        yield image[None, None]
