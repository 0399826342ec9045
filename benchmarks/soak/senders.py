"""Images of our own making, sent in each of the ways that the daemon listens to, until it says that it has them."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

WAYS = ("folder", "http", "stow", *(["dicom"] if shutil.which("storescu") else []))
"""DICOM needs DCMTK's storescu (apt-get install dcmtk)."""
AET = "MDCONV_EDGE"
UID_ROOT = "2.25"


def picture(number: int, side: int = 256) -> NDArray[np.uint8]:
    """(side, side) uint8, another one for each `number`."""
    coarse = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def png(number: int) -> bytes:
    return cv2.imencode(".png", picture(number))[1].tobytes()


def radiograph(number: int) -> Dataset:
    """The same image as a Computed Radiography instance."""
    pixels = picture(number)
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = instance(number)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{UID_ROOT}.1{number}", f"{UID_ROOT}.2{number}"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CR", "soak", "Soak^Test"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    return dataset


def instance(number: int) -> str:
    """SOP Instance UID of `radiograph`."""
    return f"{UID_ROOT}.3{number}"


def dicom_file(number: int) -> bytes:
    dataset = radiograph(number)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class Places:
    """Where the daemon takes images."""

    inbox: Path
    http_port: int
    dicom_port: int


def identity(number: int, way: str) -> str:
    """How the ledger knows image `number`: the SHA-256 of the content, or that of the SOP Instance UID."""
    if way in ("stow", "dicom"):
        return hashlib.sha256(instance(number).encode()).hexdigest()
    return hashlib.sha256(png(number)).hexdigest()


def send(number: int, way: str, places: Places) -> bool:
    """Send image `number` once; whether the daemon said that it has it. Never raises for a daemon that is away."""
    if way == "folder":
        part = places.inbox / f"{number}.part"
        part.write_bytes(png(number))
        part.rename(part.with_suffix(".png"))
        return True
    try:
        return _ACROSS[way](number, places)
    except (httpx.HTTPError, OSError):
        return False


def _by_http(number: int, places: Places) -> bool:
    answer = httpx.post(f"http://127.0.0.1:{places.http_port}/v1/images", content=png(number), timeout=30)
    return answer.status_code == 202


def _by_stow(number: int, places: Places) -> bool:
    boundary = "soak"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    answer = httpx.post(
        f"http://127.0.0.1:{places.http_port}/studies",
        content=head + dicom_file(number) + f"\r\n--{boundary}--\r\n".encode(),
        headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'},
        timeout=30,
    )
    return answer.status_code == 200


def _by_dicom(number: int, places: Places) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "image.dcm")
        file.write_bytes(dicom_file(number))
        command = ["storescu", "-v", "-aec", AET, "127.0.0.1", str(places.dicom_port), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return "Received Store Response (Success)" in done.stdout + done.stderr


_ACROSS = {"http": _by_http, "stow": _by_stow, "dicom": _by_dicom}


class Sender:
    """Sends images one after the other, each again and again until it is acknowledged, at most `rate` a second."""

    def __init__(self, numbers: Sequence[int], places: Places, rate: float) -> None:
        self.acknowledged: dict[int, str] = {}
        """Number and way of each image that the daemon said it has."""
        self._numbers = numbers
        self._places = places
        self._pause = 1 / rate
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in self._numbers:
            way = WAYS[number % len(WAYS)]
            while not send(number, way, self._places):
                time.sleep(0.1)
            self.acknowledged[number] = way
            time.sleep(self._pause)

    @property
    def finished(self) -> bool:
        return not self._thread.is_alive()
