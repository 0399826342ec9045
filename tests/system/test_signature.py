"""Signed bundles as a hospital uses them: real processes of ``edge-infer`` and ``make.py``, and keys by OpenSSL."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from edge.signature import PASSPHRASE_VARIABLE, PUBLIC_KEY_VARIABLE, SIGNATURE
from tests.system.conftest import build, run_make

ROOT = Path(__file__).parents[2]
PASSPHRASE = "correct horse"

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8


def edge(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != PUBLIC_KEY_VARIABLE}
    return subprocess.run(
        [sys.executable, "-m", "edge", *arguments],
        cwd=ROOT,
        env={**environment, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def write_pair(directory: Path, name: str, passphrase: str | None = None) -> tuple[Path, Path]:
    """The files of a new private and public key."""
    key = ed25519.Ed25519PrivateKey.generate()
    secrecy: Any = serialization.NoEncryption()
    if passphrase is not None:
        secrecy = serialization.BestAvailableEncryption(passphrase.encode())
    private, public = directory / f"{name}.pem", directory / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(PEM, PKCS8, secrecy))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs ``ours``, ``theirs`` and, encrypted, ``locked``."""
    directory = tmp_path_factory.mktemp("keys")
    write_pair(directory, "ours")
    write_pair(directory, "theirs")
    write_pair(directory, "locked", PASSPHRASE)
    return directory


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(size=32)


def sign(bundle: Path, key: Path, **settings: str) -> str:
    done = edge("sign", "--bundle", bundle, "--key", key, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def error_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("edge-infer: ")
    return line


def every_command(bundle: Path, tmp_path: Path) -> list[list[str | Path]]:
    """All that load a bundle, but for `doctor`, which tells among other things."""
    image, inbox = tmp_path / "image.png", tmp_path / "inbox"
    cv2.imwrite(str(image), np.random.default_rng(3).integers(0, 256, (40, 40), dtype=np.uint8))
    inbox.mkdir(exist_ok=True)
    run = ["--bundle", bundle, "--backend", "onnxruntime"]
    return [
        ["classify", image, *run],
        ["serve", *run, "--watch", inbox, "--state", tmp_path / "state", "--drain"],
        ["bench", *run, "--duration", "0.1"],
        ["selftest", *run],
        ["passport", "--bundle", bundle],
    ]


def test_a_signed_bundle_runs_in_every_command(bundle: Path, keys: Path, tmp_path: Path) -> None:
    public = keys / "ours.pub.pem"
    said = sign(bundle, keys / "ours.pem")
    for command in every_command(bundle, tmp_path):
        done = edge(*command, "--public-key", public)
        assert done.returncode == 0, done.stderr
    done = edge("doctor", "--bundle", bundle, "--public-key", public)
    (line,) = [line for line in done.stdout.splitlines() if "files verified" in line]
    key = line.split("signature: verified: signed with key ")[1].split(";")[0]
    assert key.startswith("sha256:") and key in said
    assert json.loads(edge("passport", "--bundle", bundle, "--json", "--public-key", public).stdout)["signature"] == {
        "state": "verified",
        "key": key,
    }


def refusals(bundle: Path, tmp_path: Path, *given: str | Path, **settings: str) -> set[str]:
    """What every command says, each in one line, when it refuses the bundle."""
    lines = {error_line(edge(*command, *given, **settings), 3) for command in every_command(bundle, tmp_path)}
    done = edge("doctor", "--bundle", bundle, *given, **settings)
    assert done.returncode == 3
    assert not (tmp_path / "state").exists()  # nothing was begun
    return lines | {line for line in done.stdout.splitlines() if "key sha256:" in line}


def change(bundle: Path, position: int, byte: bytes) -> None:
    content = (bundle / "manifest.json").read_bytes()
    position %= len(content)
    altered = content[:position] + byte + content[position + 1 :]
    assert altered != content
    (bundle / "manifest.json").write_bytes(altered)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_every_command_refuses_an_unsigned_bundle(bundle: Path, keys: Path, tmp_path: Path, by: str) -> None:
    given: list[str | Path] = ["--public-key", keys / "ours.pub.pem"] if by == "option" else []
    settings = {PUBLIC_KEY_VARIABLE: str(keys / "ours.pub.pem")} if by == "environment" else {}
    said = refusals(bundle, tmp_path, *given, **settings)
    assert all(f"is not signed (no {SIGNATURE})" in line for line in said)


def test_every_command_refuses_an_altered_manifest(bundle: Path, keys: Path, tmp_path: Path) -> None:
    """A digit of a threshold; nothing but the signature tells."""
    sign(bundle, keys / "ours.pem")
    manifest = (bundle / "manifest.json").read_bytes()
    assert manifest.count(b'"Mass": 0.5') == 1
    change(bundle, manifest.index(b'"Mass": 0.5') + len(b'"Mass": 0.'), b"9")
    assert edge("passport", "--bundle", bundle).returncode == 0
    said = refusals(bundle, tmp_path, "--public-key", keys / "ours.pub.pem")
    assert all("the manifest was altered after it was signed, or another key" in line for line in said)


@pytest.mark.parametrize(("position", "byte"), [(0, b"["), (-1, b" ")], ids=["no-json", "last-space"])
def test_any_byte_of_the_manifest_counts(bundle: Path, keys: Path, position: int, byte: bytes) -> None:
    sign(bundle, keys / "ours.pem")
    change(bundle, position, byte)
    done = edge("selftest", "--bundle", bundle, "--public-key", keys / "ours.pub.pem")
    assert "the manifest was altered after it was signed" in error_line(done, 3)


def test_every_command_refuses_another_keys_signature(bundle: Path, keys: Path, tmp_path: Path) -> None:
    sign(bundle, keys / "ours.pem")
    assert "in place of the signature that was there" in sign(bundle, keys / "theirs.pem")
    said = refusals(bundle, tmp_path, "--public-key", keys / "ours.pub.pem")
    assert all("or another key signed it: refuse this bundle" in line for line in said)


def test_the_option_comes_before_the_environment(bundle: Path, keys: Path) -> None:
    sign(bundle, keys / "ours.pem")
    settings = {PUBLIC_KEY_VARIABLE: str(keys / "theirs.pub.pem")}
    assert edge("passport", "--bundle", bundle, "--public-key", keys / "ours.pub.pem", **settings).returncode == 0
    assert edge("passport", "--bundle", bundle, **settings).returncode == 3


def test_without_a_key_a_signature_is_neither_needed_nor_trusted(bundle: Path, keys: Path) -> None:
    assert edge("passport", "--bundle", bundle).stdout.splitlines()[-1].split(maxsplit=1) == ["Signature", "unsigned"]
    sign(bundle, keys / "ours.pem")
    expected = ["Signature", "signed, not verified: no key configured"]
    for content in ((bundle / SIGNATURE).read_bytes(), b"made up"):
        (bundle / SIGNATURE).write_bytes(content)
        assert edge("passport", "--bundle", bundle).stdout.splitlines()[-1].split(maxsplit=1) == expected


def test_a_damaged_bundle_is_not_signed(bundle: Path, keys: Path) -> None:
    content = bytearray((bundle / "golden.npz").read_bytes())
    content[100] ^= 1
    (bundle / "golden.npz").write_bytes(content)
    assert "golden.npz was altered" in error_line(edge("sign", "--bundle", bundle, "--key", keys / "ours.pem"), 3)
    assert not (bundle / SIGNATURE).exists()


def test_a_torn_signature_is_told(bundle: Path, keys: Path) -> None:
    sign(bundle, keys / "ours.pem")
    (bundle / SIGNATURE).write_bytes((bundle / SIGNATURE).read_bytes()[:63])
    done = edge("selftest", "--bundle", bundle, "--public-key", keys / "ours.pub.pem")
    assert "is no Ed25519 signature: expected 64 bytes" in error_line(done, 3)


def test_an_encrypted_key_takes_its_passphrase_from_the_environment_or_a_terminal(bundle: Path, keys: Path) -> None:
    command = ("sign", "--bundle", bundle, "--key", keys / "locked.pem")
    assert f"set {PASSPHRASE_VARIABLE}, or run this in a terminal" in error_line(edge(*command), 2)
    assert "the passphrase is wrong" in error_line(edge(*command, **{PASSPHRASE_VARIABLE: "wrong"}), 2)
    assert not (bundle / SIGNATURE).exists()
    sign(bundle, keys / "locked.pem", **{PASSPHRASE_VARIABLE: PASSPHRASE})
    signature = (bundle / SIGNATURE).read_bytes()
    (bundle / SIGNATURE).unlink()

    ours, theirs = pty.openpty()
    # In a session of its own it has no /dev/tty: it asks the terminal that is its standard input.
    asking = subprocess.Popen(
        [sys.executable, "-m", "edge", *command],
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert asking.stderr is not None
    prompt = f"passphrase of {keys / 'locked.pem'}: ".encode()
    assert asking.stderr.read(len(prompt)) == prompt  # what is typed before the prompt is thrown away
    os.write(ours, f"{PASSPHRASE}\n".encode())
    _, said = asking.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    assert asking.returncode == 0, said
    assert (bundle / SIGNATURE).read_bytes() == signature  # Ed25519 has one signature for a key and a text


def test_a_key_that_cannot_be_used_is_wrong_use(bundle: Path, keys: Path, tmp_path: Path) -> None:
    """It never means that no signature is needed."""
    sign(bundle, keys / "ours.pem")
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(other.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    public = other.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "rsa.pub.pem").write_bytes(public)
    (tmp_path / "text").write_text("no key")
    for key, said in (
        (tmp_path / "missing", "No such file"),
        (tmp_path / "text", "is no public key in PEM form"),
        (tmp_path / "rsa.pub.pem", "expected Ed25519"),
        (keys / "ours.pem", "holds a private key"),
    ):
        assert said in error_line(edge("selftest", "--bundle", bundle, "--public-key", key), 2)
    for key, said in (
        (tmp_path / "missing", "No such file"),
        (keys / "ours.pub.pem", "is no private key in PEM form"),
        (tmp_path / "rsa.pem", "expected Ed25519"),
    ):
        assert said in error_line(edge("sign", "--bundle", bundle, "--key", key), 2)
    done = edge("selftest", "--bundle", bundle, **{PUBLIC_KEY_VARIABLE: ""})
    assert f"{PUBLIC_KEY_VARIABLE} is set but empty" in error_line(done, 2)


def test_the_library_is_needed_for_keys_alone(bundle: Path, keys: Path) -> None:
    sign(bundle, keys / "ours.pem")
    code = "import sys; sys.modules['cryptography'] = None; from edge.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "selftest", "--bundle", bundle, "--backend", "onnxruntime"]
    options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120}
    assert subprocess.run(command, **options).returncode == 0
    done = subprocess.run([*command, "--public-key", keys / "ours.pub.pem"], **options)
    assert "pip install 'mdconv-edge[signing]'" in error_line(done, 3)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="OpenSSL's command is not installed")
def test_openssl_makes_the_keys_and_agrees(bundle: Path, tmp_path: Path) -> None:
    """The commands of docs/bundle.md: a pair, its fingerprint, a check without this package, a signature without it."""

    def openssl(*arguments: str | Path) -> bytes:
        return subprocess.run(["openssl", *arguments], capture_output=True, check=True).stdout

    private, public, manifest = tmp_path / "key.pem", tmp_path / "key.pub.pem", bundle / "manifest.json"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    said = sign(bundle, private)
    der = openssl("pkey", "-pubin", "-in", public, "-outform", "DER")
    assert f"with key sha256:{hashlib.sha256(der).hexdigest()}: " in said
    checked = ("pkeyutl", "-verify", "-rawin", "-in", manifest, "-sigfile", bundle / SIGNATURE)
    openssl(*checked, "-pubin", "-inkey", public)

    openssl("pkeyutl", "-sign", "-rawin", "-in", manifest, "-inkey", private, "-out", bundle / SIGNATURE)
    assert edge("selftest", "--bundle", bundle, "--public-key", public).returncode == 0


def test_make_signs_what_it_builds_and_tells_when_a_signature_is_lost(keys: Path, tmp_path: Path) -> None:
    small = ("--fp32", "--backend", "onnxruntime", "--lowering", "padded", "--input-size", "64", "--no-gate")
    options = (*small, "--calibration-images", "8")
    output = build(tmp_path / "bundle", *options, "--sign-key", keys / "ours.pem")
    shown = json.loads(
        edge("passport", "--bundle", output, "--json", "--public-key", keys / "ours.pub.pem").stdout,
    )
    assert shown["signature"]["state"] == "verified"
    assert SIGNATURE not in shown["files"]

    again = run_make(*options, "--output", output)
    assert again.returncode == 0
    assert f"the bundle at {output} was signed; this one is not" in again.stderr
    assert not (output / SIGNATURE).exists()

    done = run_make(*options, "--sign-key", tmp_path / "missing", "--output", tmp_path / "other")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("make.py: the key cannot be read")
    assert not (tmp_path / "other").exists()
