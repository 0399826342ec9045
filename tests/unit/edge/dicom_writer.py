"""DICOM files for tests, written by pydicom."""

from __future__ import annotations

import io
from pathlib import Path

import data_store
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

REAL = Path(data_store.__file__).parent / "data"
"""Real images of the package pydicom-data."""
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
"""Those that come with pydicom itself."""

CR_CLASS = "1.2.840.10008.5.1.4.1.1.1"
DX_CLASS = "1.2.840.10008.5.1.4.1.1.1.1"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
PATIENT = "Doe^Jane"


def radiograph(
    pixels: np.ndarray, *, bits: int | None = None, sop_class: str = CR_CLASS, **elements: object
) -> Dataset:
    """A CR data set of an (H, W) integer array. An element that is given as None is left out."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Modality = "CR"
    dataset.PatientName = PATIENT
    dataset.PatientID = "ID-4711"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def to_bytes(
    dataset: Dataset, syntax: str = ExplicitVRLittleEndian, frame: bytes | None = None, sop_class: str = CR_CLASS
) -> bytes:
    """The file of `dataset`; `frame` is the encoded image where `syntax` is a compressed one."""
    if frame is not None:
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", sop_class)
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def without_scope(path: Path) -> bytes:
    """A real file less what it says of body part and orientation: the guard would refuse it before its pixels."""
    dataset = pydicom.dcmread(path)
    for keyword in ("BodyPartExamined", "ViewPosition", "PatientOrientation"):
        dataset.pop(keyword, None)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def lut(entries: list[int], first: int, bits: int, *, signed: bool = False) -> Dataset:
    """An item of a Modality LUT or VOI LUT Sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "US", entries)
    return item
