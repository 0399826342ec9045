"""What the DICOM tests share: an inbox in place of the daemon, real radiographs, certificates, free ports."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.service import Receipt
from tests.unit.edge.dicom_writer import radiograph, to_bytes

T = TypeVar("T")


@dataclass
class Inbox:
    """Stands for the daemon: keeps what it is given, or raises `error`."""

    max_bytes: int = 400_000_000
    error: Exception | None = None
    contents: list[bytes] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def receive(self, content: bytes, **facts: Any) -> Receipt:
        if self.error is not None:
            raise self.error
        self.contents.append(content)
        self.calls.append(facts)
        return Receipt(uuid.uuid4().hex, hashlib.sha256(content).hexdigest(), True)


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where one of the Debian programs is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)} (Debian: dcmtk, dicom3tools, ...)")


def run(*command: str | Path, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, **more)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def on_a_free_port(start: Callable[[], tuple[subprocess.Popen[Any], T]], ready: Callable[[T], bool]) -> Iterator[T]:
    """A server that `start` starts on ports it chose; anew where another program was quicker to take one."""
    for attempt in range(4):
        process, facts = start()
        try:
            while process.poll() is None and not ready(facts):
                time.sleep(0.02)
            if process.poll() is not None and attempt < 3:
                continue
            assert process.poll() is None, f"{process.args} ended with status {process.returncode}"
            yield facts
            return
        finally:
            process.terminate()
            process.wait(30)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.02)


def chest(seed: int = 0, size: tuple[int, int] = (96, 80), bits: int = 12) -> np.ndarray:
    """(H, W) uint16 smooth noise, as good as a radiograph to a codec."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 1 << bits, (size[0] // 8 + 1, size[1] // 8 + 1)).astype(np.float64)
    smooth = np.kron(rough, np.ones((8, 8)))[: size[0], : size[1]]
    return smooth.astype(np.uint16)


def write_radiograph(path: Path, seed: int = 0, **elements: object) -> Path:
    """A complete, if small, CR file with a study and a series of its own."""
    facts: dict[str, object] = {
        "SOPInstanceUID": f"1.2.826.0.1.3680043.8.498.{seed + 1}",
        "StudyInstanceUID": f"1.2.826.0.1.3680043.8.498.1000.{seed + 1}",
        "SeriesInstanceUID": f"1.2.826.0.1.3680043.8.498.2000.{seed + 1}",
        "StudyDate": "20260102",
        "StudyTime": "030405",
        "AccessionNumber": "A-17",
        "StudyID": "S1",
        "ReferringPhysicianName": "Roe^Richard",
        "PatientBirthDate": "19600708",
        "PatientSex": "F",
        "PatientOrientation": ["L", "F"],
    }
    dataset = radiograph(chest(seed), bits=12, **{**facts, **elements})
    path.write_bytes(to_bytes(dataset))
    return path


def data_set_of(content: bytes | Path) -> bytes:
    """The encoded data set of a file: all after its File Meta Information (PS3.10 7.1)."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    length = int.from_bytes(data[140:144], "little")
    return data[144 + length :]


def syntax_of(content: bytes) -> str:
    import io

    return str(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).file_meta.TransferSyntaxUID)


def certificate(directory: Path, name: str, issuer: tuple[Path, Path] | None = None) -> tuple[Path, Path]:
    """A certificate for ``localhost`` and its key as PEM files; self-signed, or by `issuer` (certificate, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by, signer = subject, key
    if issuer is not None:
        by = x509.load_pem_x509_certificate(issuer[0].read_bytes()).subject
        loaded = serialization.load_pem_private_key(issuer[1].read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer = loaded
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
