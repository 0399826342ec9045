"""The steps from a checkpoint to a verified bundle, in order."""

from __future__ import annotations

import functools
import itertools
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from build_engine.bundle_writer import bundle_directory, check_replaceable, failed_place, publish, write_manifest
from build_engine.export import check_parity, export_onnx, has_cam, save_model
from build_engine.golden import GOLDEN_IMAGES, GOLDEN_LIMIT, golden_entry, golden_tolerance, write_golden
from build_engine.guard_fit import fit_guard
from build_engine.images import (
    Calibration,
    ImageFolder,
    calibration_images,
    check_apart,
    check_enough,
    existing_folder,
    gate_images,
)
from build_engine.int8 import Int8Files, build_int8, calibrate_portable
from build_engine.lowered_files import Engines, Lowered
from build_engine.lowering_choice import apply_lowering, check_lowering
from build_engine.mixed_precision import Trial
from build_engine.precision import to_float16
from build_engine.thresholds import OWN, check_threshold_options, choose_thresholds
from build_engine.triton_repository import check_export
from build_engine.verify import Verified, say, verify
from build_engine.weights import choose_weights
from calibration.limits import Limits
from edge.backends.tensorrt import probe_platform
from edge.bundle import CALIBRATION, GOLDEN, PORTABLE_MODEL, load_bundle, model_file, sign_bundle
from edge.errors import BundleError, MachineError
from edge.gate import FAIL, NOT_ASSESSED
from edge.preprocess import Preprocess
from edge.signature import SIGNATURE, fingerprint, load_private_key
from mdconv.checkpoint import Checkpoint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NO_CALIBRATION = {
    "count": 0,
    **dict.fromkeys(("method", "digest", "images", "selection", "equalization", "bias_correction")),
}
"""The manifest's ``calibration`` where nothing is rounded to a measured range."""


@dataclass(frozen=True)
class BuildOptions:
    """The options of ``make.py``, under their own names."""

    precision: str
    checkpoint: Path | None
    network: str | None
    md_stages: str | None
    input_size: int | None
    batch: int
    calibration_data: Path | None
    calibration_method: str
    calibration_images: int | None
    calibration_seed: int
    equalization: bool
    bias_correction: bool
    mixed_precision: str
    backend: str
    lowering: str
    gate_data: Path | None
    limits: Limits
    gate: bool
    workspace_mb: int | None
    timing_cache: Path | None
    thresholds: str | None
    threshold_data: Path | None
    sign_key: Path | None
    output: Path | None
    regate: Path | None
    """A bundle whose gate is repeated; nothing is built then."""
    triton_repository: Path | None
    bundle: Path | None
    """A bundle that is written into the repository; nothing is built then."""


def build_bundle(options: BuildOptions) -> Path:
    """Build the bundle that `options` ask for and return its path.

    Progress goes to standard error. Raises `UsageError` for options that cannot work, `MachineError` where the machine
    lacks something, `BundleError` if the artefact is not the float32 network it was made from; the place of the bundle
    is then as it was before. A build that failed its gate is kept beside it (`failed_place`), and its manifest says so.
    """
    key = load_private_key(options.sign_key) if options.sign_key else None  # before the work: it may ask
    weights = choose_weights(options.checkpoint, options.network, options.md_stages)
    checkpoint = weights.checkpoint
    preprocess = Preprocess(options.input_size or checkpoint.input_size)
    backend = _choose_backend(options.backend)
    check_lowering(options.lowering, backend)
    check_threshold_options(options.thresholds, options.threshold_data, options.gate_data)
    if options.gate_data is not None:
        existing_folder(options.gate_data, "--gate-data")
    if backend == "tensorrt":
        probe_platform()  # what is missing is said now, not after the calibration
    name = f"{checkpoint.network}-{options.precision}-{backend}"
    output = options.output or Path("out") / name
    failed = failed_place(output)
    if options.triton_repository is not None:
        check_export(options.triton_repository, name, backend)
    if options.gate:
        check_replaceable(failed)
    say(f"{checkpoint.network}, {options.precision}, {preprocess.input_size} pixels, for {backend}")
    if checkpoint.notice:
        say(checkpoint.notice)

    with bundle_directory(output) as directory, tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        # Only ranges may not come from the images that judge them; golden inputs may.
        given = options.calibration_data or (None if options.precision == "int8" else options.gate_data)
        dataset, origin = calibration_images(
            given,
            on_phantoms=weights.on_phantoms,
            count=options.calibration_images,
            seed=options.calibration_seed,
            preprocess=preprocess,
            scratch=Path(scratch),
        )
        if options.precision == "int8":
            check_enough(dataset, options.calibration_images)
            others = {"--gate-data": options.gate_data if options.gate else None}
            others["--threshold-data"] = options.threshold_data
            check_apart(dataset, options.calibration_data, others, checkpoint.labels)
        golden = np.concatenate(list(itertools.islice(dataset, GOLDEN_IMAGES)))

        say("exporting to ONNX")
        export_onnx(checkpoint, directory / PORTABLE_MODEL, options.batch, preprocess.input_size)
        threshold_choice = OWN
        if options.thresholds is not None and options.threshold_data is not None:
            model, rule = directory / PORTABLE_MODEL, options.thresholds
            chosen, threshold_choice = choose_thresholds(model, rule, options.threshold_data, preprocess, checkpoint)
            checkpoint = replace(checkpoint, thresholds=chosen)
            export_onnx(checkpoint, model, options.batch, preprocess.input_size)  # thresholds are in its metadata, too
        parity = check_parity(checkpoint, directory / PORTABLE_MODEL, golden)
        say(f"ONNX Runtime against PyTorch: {parity}")
        write_golden(directory, golden)
        judges = None
        if options.gate and not weights.random:
            phantoms = weights.on_phantoms
            judges = gate_images(
                options.gate_data, on_phantoms=phantoms, size=preprocess.input_size, scratch=Path(scratch)
            )

        known: dict[str, Any] = {
            "name": name,
            "model": {
                **_describe_model(checkpoint, preprocess, options.batch),
                "threshold_choice": threshold_choice,
            },
            "preprocess": preprocess.to_manifest(),
            "precision": options.precision,
            "backend": backend,
            "golden": golden_entry(GOLDEN_LIMIT[options.precision]),
            "gate": {"verdict": NOT_ASSESSED, "reason": "the build is not finished"},
        }
        # The guard is not fitted on images that judge the build: they are to be strangers to all of it.
        fitted_on = None if given is not None and given == options.gate_data else Calibration(dataset, origin)
        attempt = functools.partial(_attempt, options, directory, backend, judges, fitted_on)
        if options.precision == "int8":
            trial = Trial(
                calibrate_portable(
                    directory / PORTABLE_MODEL,
                    dataset,
                    origin,
                    options.calibration_method,
                    equalization=options.equalization,
                    bias_correction=options.bias_correction,
                ),
                golden=np.split(golden, len(golden)),
                golden_limit=GOLDEN_LIMIT["int8"],
                gate=judges and judges.directory,
                preprocess=preprocess,
                labels=checkpoint.labels,
                thresholds=checkpoint.thresholds,
                limits=options.limits,
            )
            files = Int8Files(directory, dataset, origin)
            verified = build_int8(
                trial,
                options.mixed_precision,
                lambda plan: attempt({**known, **files.write(trial.calibrated, plan)}),
            )
        else:
            _write_float(options.precision, directory)
            verified = attempt({**known, "calibration": NO_CALIBRATION, "mixed_precision": None})
        if verified.gate["verdict"] == FAIL:
            publish(directory, failed)
            raise BundleError(
                f"the {options.precision} build failed its gate ({verified.gate['reason']}), so {output} is as it was, "
                f"and the build is kept in {failed}, marked as failed: calibrate on more images or by another "
                "--calibration-method, or build with --fp16"
            )
        _sign(directory, key, output)
    return output


def _sign(directory: Path, key: Ed25519PrivateKey | None, output: Path) -> None:
    """Sign the finished bundle; without a `key` say so, if the bundle that it replaces was signed."""
    if key is not None:
        sign_bundle(directory, key)
        say(f"signed with key {fingerprint(key.public_key())}")
    elif (output / SIGNATURE).exists():
        say(f"the bundle at {output} was signed; this one is not: sign it with `edge-infer sign` once it is reviewed")


def _attempt(
    options: BuildOptions,
    directory: Path,
    backend: str,
    judges: ImageFolder | None,
    fitted_on: Calibration | None,
    known: Mapping[str, Any],
) -> Verified:
    """Make a bundle of the models in `directory`: lower, build the engine, fit the guard, verify, write the manifest.

    `known` are the manifest's other entries. What an attempt before this one left is removed first.
    """
    models = {PORTABLE_MODEL, model_file(options.precision), CALIBRATION, GOLDEN}
    for file in directory.iterdir():
        if file.name not in models:
            file.unlink()

    def describe(lowered: Lowered) -> dict[str, Any]:
        return {**known, "lowering": lowered.entry, "platform": _describe_platform(backend, lowered.engine)}

    engines = Engines(backend, options.precision, options.batch, options.workspace_mb, options.timing_cache)
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        facts = describe(apply_lowering(options.lowering, directory, engines, describe, Path(scratch)))
    write_manifest(directory, facts)
    facts["guard"] = fit_guard(load_bundle(directory), fitted_on)
    write_manifest(directory, facts)
    verified = verify(load_bundle(directory), judges, options.limits)
    facts["gate"] = verified.gate
    facts["golden"] = golden_entry(golden_tolerance(options.precision, verified.golden_difference))
    write_manifest(directory, facts)
    return verified


def _write_float(precision: str, directory: Path) -> None:
    """Write the float model of `precision` beside the portable one, which is float32's."""
    if precision == "fp16":
        save_model(to_float16(onnx.load(directory / PORTABLE_MODEL)), directory / model_file("fp16"))


def _describe_model(checkpoint: Checkpoint, preprocess: Preprocess, batch: int) -> dict[str, Any]:
    return {
        "network": checkpoint.network,
        "config": checkpoint.config,
        "input_size": preprocess.input_size,
        "batch": batch,
        "labels": list(checkpoint.labels),
        "cam": has_cam(checkpoint),
        "thresholds": checkpoint.thresholds,
        "weights_sha256": checkpoint.sha256,
        "notice": checkpoint.notice,
        "card": checkpoint.card,
    }


def _choose_backend(wanted: str) -> str:
    """The backend to build for; ``auto`` is TensorRT where it can run, else ONNX Runtime, and says why."""
    if wanted != "auto":
        return wanted
    try:
        probe_platform()
    except MachineError as error:
        say(f"building for onnxruntime, since TensorRT cannot run here: {error}")
        return "onnxruntime"
    return "tensorrt"


def _describe_platform(backend: str, engine: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the artefact was made with: a loader compares it with the machine it finds itself on."""
    if engine is None:
        return {"onnxruntime": onnxruntime.__version__, "machine": platform.machine()}
    return {**(probe_platform() if backend == "tensorrt" else {}), **engine}
