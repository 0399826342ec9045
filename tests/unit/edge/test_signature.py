from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge.bundle import MANIFEST, load_bundle, sign_bundle
from edge.errors import BundleError, UsageError
from edge.signature import (
    NO_SIGNATURE,
    PUBLIC_KEY_VARIABLE,
    SIGNATURE,
    VERIFIED,
    check_signature,
    configured_key,
    fingerprint,
)


@pytest.fixture
def private() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def public(private: Ed25519PrivateKey, tmp_path: Path) -> Path:
    path = tmp_path / "key.pub.pem"
    path.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


@pytest.fixture
def directory(tiny_bundle_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle_directory, tmp_path / "bundle"))


def test_a_signature_adds_one_file_and_changes_none(
    directory: Path, private: Ed25519PrivateKey, public: Path, tiny_bundle_directory: Path
) -> None:
    bundle = sign_bundle(directory, private)
    assert bundle.signature == NO_SIGNATURE  # as it was found
    before = {path.name: path.read_bytes() for path in tiny_bundle_directory.iterdir()}
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    signature = after.pop(SIGNATURE)
    assert after == before
    private.public_key().verify(signature, before[MANIFEST])
    loaded = load_bundle(directory, public)
    assert loaded.signature == (VERIFIED, fingerprint(private.public_key()))
    assert loaded.sha256 == bundle.sha256


def test_no_flipped_bit_of_manifest_or_signature_is_accepted(
    directory: Path, private: Ed25519PrivateKey, public: Path
) -> None:
    sign_bundle(directory, private)
    manifest, signature = (directory / MANIFEST).read_bytes(), (directory / SIGNATURE).read_bytes()
    for position in range(len(manifest)):
        altered = bytearray(manifest)
        altered[position] ^= 1 << position % 8
        with pytest.raises(BundleError, match="the manifest was altered after it was signed"):
            check_signature(directory, bytes(altered), public)
    for position in range(len(signature)):
        altered = bytearray(signature)
        altered[position] ^= 1 << position % 8
        (directory / SIGNATURE).write_bytes(altered)
        with pytest.raises(BundleError, match="is no signature of the manifest beside it"):
            check_signature(directory, manifest, public)


def test_a_changed_file_is_found_though_the_manifest_is_signed(
    directory: Path, private: Ed25519PrivateKey, public: Path
) -> None:
    sign_bundle(directory, private)
    content = bytearray((directory / "model.onnx").read_bytes())
    content[-1] ^= 1
    (directory / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx was altered"):
        load_bundle(directory, public)


def test_a_manifest_cannot_list_its_own_signature(directory: Path, private: Ed25519PrivateKey) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"][SIGNATURE] = {"sha256": "0" * 64, "size": 64}
    (directory / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="which is not a plain file name"):
        sign_bundle(directory, private)
    assert not (directory / SIGNATURE).exists()


def test_which_key_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PUBLIC_KEY_VARIABLE, raising=False)
    assert configured_key(None) is None
    monkeypatch.setenv(PUBLIC_KEY_VARIABLE, "/etc/key.pem")
    assert configured_key(None) == Path("/etc/key.pem")
    assert configured_key(Path("other.pem")) == Path("other.pem")
    monkeypatch.setenv(PUBLIC_KEY_VARIABLE, "")
    with pytest.raises(UsageError, match="is set but empty"):
        configured_key(None)
