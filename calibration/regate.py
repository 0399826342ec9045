"""Repeat a bundle's accuracy gate on this machine: `python -m calibration.regate BUNDLE --gate-data DIR`.

It needs neither torch nor onnx, so that it runs on the device itself, with the engine there. The new verdict takes the
place of the old one in the manifest, and so the bundle has a new identity.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration.judge import judge
from calibration.limits import Limits, add_limit_options, limits_of
from edge.backends import CHOICES, open_backend
from edge.bundle import MANIFEST, Bundle, load_bundle, sha256_of
from edge.errors import BundleError, EdgeError, MachineError, UsageError, describe_os_error
from edge.gate import FAIL, NOT_ASSESSED
from edge.signature import require_unsigned


def regate(
    directory: Path,
    images: Path,
    origin: str,
    limits: Limits,
    backend: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Judge the bundle in `directory` by `images`, run by `backend` as `open_backend` has it; returns the new gate.

    The manifest then holds it, the verdict that it takes the place of under ``replaces``. Raises `UsageError` where
    images without labels would lift a failed gate, `MachineError` if the bundle cannot be written, `BundleError` if its
    manifest was changed meanwhile, or if the bundle is signed: its signature is of the verdict that it has.
    """
    require_unsigned(directory)
    bundle = load_bundle(directory)
    if not os.access(bundle.directory, os.W_OK):  # said now, not after the work
        raise MachineError(f"{directory} cannot be written, where the verdict goes: grant permission, or copy it")
    with open_backend(bundle, backend) as opened:
        say(f"gate: {bundle.name} in {opened.name}: {opened.facts['chosen_because']}")
        gate = judge(bundle, opened, images, origin, limits, say)
    before = bundle.manifest["gate"]
    if gate["verdict"] == NOT_ASSESSED and bundle.gate_verdict == FAIL:
        raise UsageError(
            f"{directory} failed its gate, and images without labels cannot lift that ({gate['reason']}): name "
            "labelled images, with and without findings"
        )
    gate["replaces"] = {key: before[key] for key in ("verdict", "reason", "ran_on", "time") if key in before}
    _replace_manifest(bundle, {**bundle.manifest, "gate": gate})
    say(f"gate: {gate['verdict']}: {gate['reason']}")
    return gate


def _replace_manifest(bundle: Bundle, manifest: Mapping[str, Any]) -> None:
    """Put `manifest` in the place of the bundle's by one rename: a power cut leaves the one or the other."""
    place = bundle.directory / MANIFEST
    descriptor, name = tempfile.mkstemp(prefix=f".{MANIFEST}.", suffix=".partial", dir=bundle.directory)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(manifest, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(place.stat().st_mode & 0o777)  # mkstemp makes it private
        require_unsigned(bundle.directory)  # again: it may have been signed while the gate ran
        if sha256_of(place) != bundle.sha256:
            raise BundleError(f"{place} was changed while the gate ran, so its verdict was not written: run it again")
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(bundle.directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="calibration.regate",
        description="Repeat a bundle's accuracy gate on this machine, with the backend that works here, and write the "
        "verdict into its manifest.",
        epilog="Exit status: 0 passed or not assessed, 2 wrong use, 3 the gate failed or the machine does not fit.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle to judge")
    parser.add_argument(
        "--gate-data",
        type=Path,
        required=True,
        metavar="DIR",
        help="images to judge it by, with labels.csv; without that only the agreement with float32 is measured",
    )
    add_limit_options(parser)
    parser.add_argument("--backend", choices=CHOICES, default="auto", help="default: auto, the first that works here")
    options = parser.parse_args(arguments)
    try:
        if not options.gate_data.is_dir():
            raise UsageError(f"--gate-data {options.gate_data} is no folder: name one that holds radiographs")
        gate = regate(options.bundle, options.gate_data, "user's images", limits_of(options), options.backend, _say)
    except EdgeError as error:
        print(f"calibration.regate: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"calibration.regate: {describe_os_error(error)}", file=sys.stderr)
        return BundleError.exit_status
    except KeyboardInterrupt:
        print("calibration.regate: interrupted; the bundle is as it was", file=sys.stderr)
        return 130
    print(options.bundle)
    return BundleError.exit_status if gate["verdict"] == FAIL else 0


def _say(text: str) -> None:
    print(f"calibration.regate: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
