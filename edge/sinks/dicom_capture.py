"""The class activation map of a result's likeliest finding over its image, as a DICOM Secondary Capture image."""

from __future__ import annotations

import textwrap
from typing import Any

import cv2
import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from edge.bundle import Bundle
from edge.errors import EdgeError
from edge.heatmap import caption, overlay
from edge.preprocess import Preprocess, decode
from edge.service import Picture
from edge.sinks import SinkRefusedError
from edge.sinks.dicom_sr import finding_code, notices
from edge.sinks.dicom_study import MANUFACTURER, RESEARCH_ONLY, Study, derived_uid, finish, made_at

SERIES_NUMBER = 902
LONGEST_SIDE = 1024
"""Pixels; the map itself has a few dozen."""
_PIXELS_A_LETTER = 9
_TEXT_SCALE = 0.5


def map_over_image(
    result: dict[str, Any], bundle: Bundle, study: Study, content: bytes, picture: Picture
) -> Dataset | None:
    """The Secondary Capture of a done `result`, None if its network has no maps.

    The image is decoded once more, so that it has its own shape, not the square that the network saw.
    """
    if picture.cam is None:
        return None
    chances = [result["findings"][label]["probability"] for label in picture.labels]
    top = int(np.argmax(chances))
    pixels = _captioned(
        overlay(_image(content, bundle), picture.cam[top]),
        f"{picture.labels[top]}  {chances[top]:.3f}",
        notices(result, bundle),
    )
    id = str(result["id"])
    capture = SCImage(
        pixel_array=np.ascontiguousarray(pixels[..., ::-1]),  # OpenCV's blue, green, red
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # highdicom wants one: replaced below by the image's own
        study_instance_uid=study.study,
        series_instance_uid=derived_uid(id, "capture", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derived_uid(id, "capture"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=bundle.name[:64],
        series_description=f"{MANUFACTURER} map ({RESEARCH_ONLY})",
    )
    capture.PatientOrientation = study.image.get("PatientOrientation") or []
    capture.Laterality = ""  # type 2: a chest has none
    capture.ConversionType = "WSD"  # workstation
    capture.ImageType = ["DERIVED", "SECONDARY"]
    if "BurnedInAnnotation" in study.image:
        capture.BurnedInAnnotation = study.image.BurnedInAnnotation
    _add_derivation(capture, study, picture.labels[top])
    finish(capture, study, made_at(result))
    capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture = capture.ContentDate, capture.ContentTime
    return capture


def _image(content: bytes, bundle: Bundle) -> NDArray[np.uint8]:
    """(H, W) uint8, the image itself, at most `LONGEST_SIDE` pixels long."""
    try:
        gray = decode(content, Preprocess.from_manifest(bundle.manifest["preprocess"]))
    except EdgeError as error:
        raise SinkRefusedError(f"the image cannot be decoded again: {error}") from None
    scale = LONGEST_SIDE / max(gray.shape)
    if scale >= 1:
        return gray
    size = tuple(max(1, round(side * scale)) for side in gray.shape[::-1])
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def _captioned(picture: NDArray[np.uint8], finding: str, told: list[str]) -> NDArray[np.uint8]:
    """`picture` (H, W, 3) above lines of text, wrapped to its width; a narrow one is padded to hold a few words."""
    width = max(picture.shape[1], 256)
    picture = np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)))
    lines = [line for text in (finding, *told) for line in textwrap.wrap(text, width // _PIXELS_A_LETTER)]
    return np.vstack([picture, caption(lines, width, _TEXT_SCALE)])


def _add_derivation(capture: Dataset, study: Study, label: str) -> None:
    """What the image was made from, and how (PS3.3 C.7.6.1, C.12.4)."""
    code = finding_code(label)
    capture.DerivationDescription = f"Class activation map of {code.CodeMeaning}"
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = study.sop_class, study.instance
    source.PurposeOfReferenceCodeSequence = [purpose]
    capture.SourceImageSequence = [source]
