"""The signature of a bundle: Ed25519 (RFC 8032) over the exact bytes of its manifest, in a file beside it.

The manifest holds the SHA-256 of every other file, so its signature covers the bundle. The file is the plain 64 bytes,
which ``openssl pkeyutl -verify -rawin`` reads too. `cryptography` is imported where a key is used and nowhere else: a
device without a key needs no such library.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edge.errors import BundleError, MachineError, UsageError, describe_os_error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.json.sig"
SIGNATURE_BYTES = 64

PUBLIC_KEY_VARIABLE = "EDGE_INFER_PUBLIC_KEY"
"""Environment variable: the public key's file, where ``--public-key`` is not given."""
PASSPHRASE_VARIABLE = "EDGE_INFER_SIGN_PASSPHRASE"
"""Environment variable: the passphrase of an encrypted private key. Without it a terminal is asked."""

VERIFIED, NOT_VERIFIED, UNSIGNED = "verified", "not verified", "unsigned"


class Signature(NamedTuple):
    """What is known of a bundle's signature."""

    state: str
    """`VERIFIED`; `NOT_VERIFIED`, a signature is there and no key to check it with; `UNSIGNED`."""
    key: str | None = None
    """Fingerprint of the key that verified it. A signature alone does not tell its key."""

    def __str__(self) -> str:
        return {
            VERIFIED: f"verified: signed with key {self.key}",
            NOT_VERIFIED: "signed, not verified: no key configured",
            UNSIGNED: "unsigned",
        }[self.state]


NO_SIGNATURE = Signature(UNSIGNED)


def configured_key(option: Path | None) -> Path | None:
    """The public key that a bundle must be signed with: `option`, else the environment's; None if neither names one.

    Raises `UsageError` if the variable is set to nothing: an empty setting must not switch the check off.
    """
    if option is not None:
        return option
    named = os.environ.get(PUBLIC_KEY_VARIABLE)
    if named == "":
        raise UsageError(f"{PUBLIC_KEY_VARIABLE} is set but empty: name the public key's file, or unset it")
    return None if named is None else Path(named)


def check_signature(directory: Path, manifest: bytes, public_key: Path | None) -> Signature:
    """Check the signature beside `manifest`, the content of the manifest in `directory`.

    Without a key nothing is required and nothing trusted. Raises `BundleError` if there is a key and no signature that
    it made of these bytes, `UsageError` for a key that cannot be used, `MachineError` without `cryptography`.
    """
    path = directory / SIGNATURE
    if public_key is None:
        return Signature(NOT_VERIFIED if os.path.lexists(path) else UNSIGNED)
    key = load_public_key(public_key)
    name = fingerprint(key)
    try:
        with path.open("rb") as file:
            signature = file.read(SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(
            f"{directory} is not signed (no {SIGNATURE}), expected a signature by key {name}: get the signed bundle, "
            "or sign it after review with `edge-infer sign`"
        ) from None
    if len(signature) != SIGNATURE_BYTES:
        raise BundleError(
            f"{path} is no Ed25519 signature: expected {SIGNATURE_BYTES} bytes: copy the bundle again from its signer"
        )
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise BundleError(
            f"{path} is no signature of the manifest beside it by key {name}: the manifest was altered after it was "
            "signed, or another key signed it: refuse this bundle, or configure its signer's public key"
        ) from None
    return Signature(VERIFIED, name)


def fingerprint(key: Ed25519PublicKey) -> str:
    """``sha256:`` and the SHA-256 of the key's DER form (SubjectPublicKeyInfo), in hexadecimal."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return "sha256:" + hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file. Raises `UsageError` if it holds anything else, or cannot be read."""
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read_key(path)
    make = "make one with `openssl pkey -in PRIVATE -pubout -out PUBLIC`"
    if b"PRIVATE KEY-----" in content:
        raise UsageError(
            f"{path} holds a private key, expected the public one, which alone belongs on a device: {make}"
        )
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no public key in PEM form: {make}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} holds a {type(key).__name__}, expected Ed25519: {make}")
    return key


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 private key in a PEM file (PKCS8); the passphrase of an encrypted one is asked for.

    Raises `UsageError` if the file holds anything else, cannot be read, or its passphrase is missing or wrong.
    """
    _require_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_key(path)
    make = "make one with `openssl genpkey -algorithm ed25519 -out PRIVATE`"
    if b"PRIVATE KEY-----" not in content:
        raise UsageError(f"{path} is no private key in PEM form: {make}")
    passphrase = _passphrase(path) if b"ENCRYPTED" in content else None
    try:
        key = load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = (
            "cannot be read" if passphrase is None else "cannot be decrypted: the passphrase is wrong, or it is damaged"
        )
        raise UsageError(f"the private key {path} {why}: check it with `openssl pkey -in {path} -noout`") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds a {type(key).__name__}, expected Ed25519: {make}")
    return key


def require_unsigned(directory: Path) -> None:
    """Raises `BundleError` if the bundle in `directory` is signed: whoever is about to write its manifest calls this.

    The signature would be left as one of another manifest, and only look like one of this.
    """
    if os.path.lexists(directory / SIGNATURE):
        raise BundleError(
            f"{directory} is signed, so its manifest is not written again: remove {SIGNATURE} first, and have it "
            "signed anew"
        )


def write_signature(directory: Path, manifest: bytes, key: Ed25519PrivateKey) -> Path:
    """Sign `manifest`, the content of the manifest in `directory`; the file is there whole or not at all."""
    import tempfile  # here: only signing needs it

    path = directory / SIGNATURE
    descriptor, partial = tempfile.mkstemp(prefix=f".{SIGNATURE}.", suffix=".partial", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.sign(manifest))
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)  # mkstemp makes it private; the daemon's own user reads it
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return path


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"the key cannot be read: {describe_os_error(error)}") from None


def _passphrase(path: Path) -> bytes:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is None:
        if not sys.stdin.isatty():
            raise UsageError(f"{path} is encrypted: set {PASSPHRASE_VARIABLE}, or run this in a terminal to be asked")
        import getpass

        try:
            given = getpass.getpass(f"passphrase of {path}: ")
        except EOFError:
            raise UsageError(
                f"{path} is encrypted, and no passphrase was typed: type it, or set {PASSPHRASE_VARIABLE}"
            ) from None
    return os.fsencode(given)


def _require_library() -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as missing:
        raise MachineError(
            f"signatures need the library cryptography, which cannot be imported ({missing}): "
            "pip install 'mdconv-edge[signing]'"
        ) from None
