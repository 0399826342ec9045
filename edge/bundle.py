"""The bundle: the directory that is deployed, and its manifest (format 1).

A bundle is read-only once written, but for the gate's verdict in its manifest, which `calibration.regate` renews. Every
file but ``manifest.json`` is listed there with its SHA-256 and size; a loader trusts nothing else in the directory. A
signature of the manifest may lie beside it (`edge.signature`): then nothing changes any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import BundleError
from edge.gate import VERDICTS, gate_verdict, notice_of
from edge.signature import NO_SIGNATURE, SIGNATURE, Signature, check_signature, write_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = 1
PRECISIONS = ("fp32", "fp16", "int8")
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime")

MANIFEST = "manifest.json"
PORTABLE_MODEL = "model.onnx"
ENGINE = "model.engine"
GOLDEN = "golden.npz"
CALIBRATION = "calibration.json"
GUARD = "guard.npz"
"""What `edge.guard` measures an image's distance with; absent in bundles that were built without."""
MIXED_PRECISION = {"left", "of", "reason", "images", "layers"}
"""What the manifest says of the layers that an int8 bundle leaves in float16, at least."""
PLUGIN_LIBRARY = "libmdconv_plugin.so"

_REQUIRED: Mapping[str, type] = {
    "format": int,
    "name": str,
    "created": str,
    "model": dict,
    "preprocess": dict,
    "precision": str,
    "lowering": dict,
    "backend": str,
    "platform": dict,
    "calibration": dict,
    "gate": dict,
    "files": dict,
}


def model_file(precision: str) -> str:
    """The ONNX file that a bundle of this precision runs: ``model.onnx`` for fp32, else ``model.<precision>.onnx``."""
    return PORTABLE_MODEL if precision == "fp32" else f"model.{precision}.onnx"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as lower-case hexadecimal. Reads in pieces: a file may be larger than memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Made by `load_bundle` only."""

    directory: Path
    manifest: dict[str, Any]
    sha256: str
    """SHA-256 of ``manifest.json``, which holds all the others: the bundle's identity in results and reports."""
    signature: Signature = NO_SIGNATURE

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def precision(self) -> str:
        return str(self.manifest["precision"])

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.manifest["model"]["labels"])

    @property
    def thresholds(self) -> dict[str, float]:
        return dict(self.manifest["model"]["thresholds"])

    @property
    def input_size(self) -> int:
        """Height and width of the network's input, in pixels."""
        return int(self.manifest["model"]["input_size"])

    @property
    def notice(self) -> str:
        """What every reader of the bundle's output must be told, such as what it was trained on; may be empty."""
        return notice_of(self.manifest)

    @property
    def gate_verdict(self) -> str:
        return gate_verdict(self.manifest)

    @property
    def has_cam(self) -> bool:
        """Whether the network has class activation maps; older manifests, of networks that all had them, do not say."""
        return bool(self.manifest["model"].get("cam", True))

    @property
    def batch(self) -> int:
        """Largest number of images that one inference takes."""
        return int(self.manifest["model"]["batch"])

    @property
    def model_path(self) -> Path:
        """The ONNX model of the bundle's own precision: what a backend runs, or builds an engine from."""
        return self.directory / model_file(self.precision)

    def path(self, name: str) -> Path | None:
        """Path of the bundle's file `name`, or None if the manifest does not list it."""
        return self.directory / name if name in self.manifest["files"] else None


def read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    """Read and check ``manifest.json`` itself; returns it with its SHA-256. Raises `BundleError`."""
    return _parse_manifest(directory, _manifest_content(directory))


def _manifest_content(directory: Path) -> bytes:
    if not directory.is_dir():
        raise BundleError(f"no bundle at {directory}: make one with `python build_engine/make.py`, or check --bundle")
    try:
        return (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{directory} has no {MANIFEST}, so it is no bundle: check --bundle") from None


def _parse_manifest(directory: Path, content: bytes) -> tuple[dict[str, Any], str]:
    path = directory / MANIFEST
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}): copy the bundle again from where it was made") from None
    _check_manifest(manifest, path)
    return manifest, hashlib.sha256(content).hexdigest()


def _check_manifest(manifest: Any, path: Path) -> None:
    again = "copy the bundle again from where it was made"
    if not isinstance(manifest, dict):
        raise BundleError(f"{path} holds {type(manifest).__name__}, expected an object: {again}")
    for key, kind in _REQUIRED.items():
        if not isinstance(manifest.get(key), kind) or isinstance(manifest.get(key), bool):
            raise BundleError(f"{path}: {key!r} is {manifest.get(key)!r}, expected {kind.__name__}: {again}")
    if manifest["format"] != FORMAT:
        raise BundleError(f"{path} has format {manifest['format']}, this version reads {FORMAT}: build the bundle anew")
    if manifest["precision"] not in PRECISIONS:
        raise BundleError(f"{path}: precision {manifest['precision']!r} is none of {', '.join(PRECISIONS)}: {again}")
    if gate_verdict(manifest) not in VERDICTS:
        raise BundleError(
            f"{path}: gate's verdict {gate_verdict(manifest)!r} is none of {', '.join(VERDICTS)}: {again}"
        )
    model = manifest["model"]
    for key in ("network", "input_size", "batch", "labels", "thresholds"):
        if key not in model:
            raise BundleError(f"{path}: model has no {key!r}: {again}")
    for key, kind in (("labels", list), ("thresholds", dict)):
        if not isinstance(model[key], kind):
            raise BundleError(f"{path}: model's {key!r} is {model[key]!r}, expected {kind.__name__}: {again}")
    if sorted(map(repr, model["labels"])) != sorted(map(repr, model["thresholds"])):
        raise BundleError(f"{path}: thresholds and labels name different findings: {again}")
    for label, threshold in model["thresholds"].items():
        if type(threshold) not in (int, float):
            raise BundleError(f"{path}: the threshold of {label!r} is {threshold!r}, expected a number: {again}")
    plan = manifest.get("mixed_precision")
    if plan is not None and not (isinstance(plan, dict) and plan.keys() >= MIXED_PRECISION):
        raise BundleError(f"{path}: mixed_precision has not all of {', '.join(sorted(MIXED_PRECISION))}: {again}")
    if not isinstance(guard := manifest.get("guard"), (dict, type(None))):
        raise BundleError(f"{path}: guard is {guard!r}, expected an object: {again}")
    for name in (PORTABLE_MODEL, model_file(manifest["precision"]), GOLDEN):
        if name not in manifest["files"]:
            raise BundleError(f"{path} lists no {name}: {again}")
    for name, facts in manifest["files"].items():
        if Path(name).name != name or name in (MANIFEST, SIGNATURE):
            raise BundleError(f"{path} lists {name!r}, which is not a plain file name: refuse this bundle")
        if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str) or "size" not in facts:
            raise BundleError(f"{path}: file {name!r} has no sha256 and size: {again}")


def load_bundle(directory: Path, public_key: Path | None = None) -> Bundle:
    """Read a bundle and check every file that its manifest lists against its size and SHA-256.

    With a `public_key` (Ed25519, a PEM file) the manifest must be signed by it, which is checked before its content is
    looked at. Raises `BundleError` if the directory is no bundle, if a file is missing or differs in a single byte, or
    if the signature does not hold; what `check_signature` raises for a key that cannot be used.
    """
    directory = directory.resolve()
    content = _manifest_content(directory)
    signature = check_signature(directory, content, public_key)
    manifest, sha256 = _parse_manifest(directory, content)
    for name, facts in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise BundleError(f"{path} is missing though the manifest lists it: copy the bundle again")
        size = path.stat().st_size
        if size != facts["size"]:
            raise BundleError(f"{path} has {size} bytes, the manifest says {facts['size']}: copy the bundle again")
        found = sha256_of(path)
        if found != facts["sha256"]:
            raise BundleError(
                f"{path} was altered: its SHA-256 is {found[:16]}..., the manifest says {facts['sha256'][:16]}...: "
                "copy the bundle again from where it was made"
            )
    return Bundle(directory, manifest, sha256, signature)


def sign_bundle(directory: Path, key: Ed25519PrivateKey) -> Bundle:
    """Sign the bundle in `directory`, once every file is as its manifest says; returns it. Raises as `load_bundle`."""
    bundle = load_bundle(directory)
    content = _manifest_content(bundle.directory)
    if hashlib.sha256(content).hexdigest() != bundle.sha256:
        raise BundleError(f"{bundle.directory / MANIFEST} changed while it was read: sign it when nobody writes to it")
    write_signature(bundle.directory, content, key)
    return bundle
