"""DICOM projection radiographs to 8-bit gray."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from edge.dicom.display import WANTED, display_table
from edge.dicom.pixels import Layout, read_stored
from edge.dicom.reader import DataSet, File, is_dicom, read_file
from edge.dicom.scope import WANTED as SCOPE
from edge.dicom.scope import check_polarity, check_scope
from edge.errors import InputRefusedError
from edge.grayscale import apply_table
from edge.raster import check_pixel_count

__all__ = ["decode_dicom", "is_dicom"]

_MODALITY, _PRESENTATION_INTENT = 0x0008_0060, 0x0008_0068
_SOP_CLASS, _NUMBER_OF_FRAMES = 0x0008_0016, 0x0028_0008
_SAMPLES, _PHOTOMETRIC, _ROWS, _COLUMNS = 0x0028_0002, 0x0028_0004, 0x0028_0010, 0x0028_0011
_ALLOCATED, _STORED, _HIGH_BIT, _REPRESENTATION = 0x0028_0100, 0x0028_0101, 0x0028_0102, 0x0028_0103

RADIOGRAPH_CLASSES = frozenset(("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"))
"""SOP classes that say radiograph by themselves: Computed Radiography, Digital X-Ray for presentation."""
RAW_CLASS = "1.2.840.10008.5.1.4.1.1.1.1.1"
"""Digital X-Ray for processing: the detector's values, no image to look at."""
CAPTURE_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.7{suffix}" for suffix in ("", ".2", ".3"))
"""Secondary Capture, and its grayscale byte and word forms (of one frame): what they hold, the modality tells."""
RADIOGRAPH_MODALITIES = frozenset(("CR", "DX", "RG"))
"""Computed, digital, and conventional (film) radiography, PS3.3 C.7.3.1.1.1."""


def decode_dicom(content: bytes, max_pixels: int, max_bytes: int) -> NDArray[np.uint8]:
    """(H, W) uint8 gray of a DICOM file, black is air. Raises `InputRefusedError`.

    Accepted: one frame of MONOCHROME1 or MONOCHROME2, 8 to 16 bits stored, of a projection radiograph whose tags do not
    say that it is another body part or view (`edge.dicom.scope`). Overlays and the pixel aspect ratio are not applied.
    """
    wanted = {
        *(_MODALITY, _PRESENTATION_INTENT, _SOP_CLASS, _NUMBER_OF_FRAMES, _SAMPLES, _PHOTOMETRIC, _ROWS, _COLUMNS),
        *(_ALLOCATED, _STORED, _HIGH_BIT, _REPRESENTATION, *WANTED, *SCOPE),
    }
    file = read_file(content, wanted, max_bytes)
    _check_radiograph(file)
    check_polarity(file.data_set)
    layout = _read_layout(file.data_set)
    check_scope(file.data_set)  # after the layout: where pydicom parses a sequence it converts Pixel Representation
    check_pixel_count(layout.rows, layout.columns, max_pixels)
    stored = read_stored(file, layout)
    inverted = file.data_set.text(_PHOTOMETRIC) == "MONOCHROME1"
    return apply_table(stored, display_table(file.data_set, stored, layout.stored, layout.signed, inverted))


def _check_radiograph(file: File) -> None:
    """Refuse what is no projection radiograph for presentation: a network would answer on a CT slice as surely.

    A secondary capture may hold anything, so its modality must say radiograph, or OT (other), as converted data sets
    do. Where anonymization took the modality, the class must say it.
    """
    modality, intent = file.data_set.text(_MODALITY), file.data_set.text(_PRESENTATION_INTENT)
    if file.sop_class == RAW_CLASS or intent == "FOR PROCESSING":
        raise InputRefusedError(
            "the DICOM holds raw detector data (for processing), expected the image for presentation: send that one"
        )
    allowed = RADIOGRAPH_MODALITIES | ({"OT"} if file.sop_class in CAPTURE_CLASSES else set())
    known_class = file.sop_class in RADIOGRAPH_CLASSES | CAPTURE_CLASSES
    if modality in allowed and (known_class or not file.sop_class):
        return
    if not modality and file.sop_class in RADIOGRAPH_CLASSES:
        return
    shown = modality if re.fullmatch(r"[A-Z][A-Z0-9_]{0,15}", modality) else "missing or unreadable"
    reason = "" if known_class or modality not in allowed else " of another image class"
    raise InputRefusedError(
        f"the DICOM's modality is {shown}{reason}, expected a projection radiograph (CR, DX, RG, or a secondary "
        "capture that says one of them or OT): send a radiograph, or correct the Modality if it is one"
    )


def _read_layout(data_set: DataSet) -> Layout:
    """The image's declared layout, checked. Raises `InputRefusedError` for what is not decoded."""
    frames = data_set.number(_NUMBER_OF_FRAMES, "Number of Frames")
    if frames not in (None, 1):
        raise InputRefusedError(f"the DICOM has {frames:g} frames, expected one: send each image as a file of its own")
    if _required(data_set, _SAMPLES, "Samples per Pixel") != 1 or not _is_monochrome(data_set):
        raise InputRefusedError("the DICOM is in colour, expected MONOCHROME1 or MONOCHROME2: export it as gray image")
    layout = Layout(
        rows=_required(data_set, _ROWS, "Rows"),
        columns=_required(data_set, _COLUMNS, "Columns"),
        allocated=_required(data_set, _ALLOCATED, "Bits Allocated"),
        stored=_required(data_set, _STORED, "Bits Stored"),
        signed=_required(data_set, _REPRESENTATION, "Pixel Representation") == 1,
    )
    if layout.allocated not in (8, 16) or not 8 <= layout.stored <= layout.allocated:
        raise InputRefusedError(
            f"the DICOM stores {layout.stored} bits in {layout.allocated}, expected 8 to 16 in 8 or 16: "
            "convert the image"
        )
    high_bit = data_set.short(_HIGH_BIT, "High Bit")
    if high_bit not in (None, layout.stored - 1):
        raise InputRefusedError(
            f"the DICOM's High Bit is {high_bit}, expected {layout.stored - 1}, one below Bits Stored: "
            "convert the image"
        )
    return layout


def _is_monochrome(data_set: DataSet) -> bool:
    return data_set.text(_PHOTOMETRIC) in ("MONOCHROME1", "MONOCHROME2")


def _required(data_set: DataSet, tag: int, name: str) -> int:
    value = data_set.short(tag, name)
    if value is None:
        raise InputRefusedError(f"the DICOM has no {name}, so it holds no image: send the image itself")
    return value
