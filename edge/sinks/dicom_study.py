"""What a derived DICOM object takes over from its image, so that it is filed in the same study of the same patient."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pydicom
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.valuerep import validate_value

from edge import __version__
from edge.dicom.network import is_uid
from edge.dicom.reader import silence_pydicom
from edge.sinks import SinkRefusedError

MANUFACTURER = "mdconv-edge"
RESEARCH_ONLY = "research use only"

_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): must be there, may be empty."""
_TYPE_3 = ("IssuerOfPatientID", "StudyDescription")
_OF_THE_IMAGE = ("PatientOrientation", "BurnedInAnnotation", "BodyPartExamined", "ViewPosition")
_CHARACTER_SET = "ISO_IR 192"
"""UTF-8: holds whatever the image's own character set held."""
_SEXES = ("M", "F", "O")


@dataclass(frozen=True)
class Study:
    """The image that a result is about, and the study that it is in."""

    sop_class: str
    instance: str
    study: str
    series: str
    attributes: Dataset
    """Patient and study, as they are written into what is derived; type 2 complete."""
    image: Dataset
    """What of the image itself is looked at again."""

    def evidence(self) -> Dataset:
        """The image as highdicom wants it referenced: without the patient, whose name it might warn about."""
        dataset = Dataset()
        for keyword in _TYPE_2:
            setattr(dataset, keyword, None)
        dataset.SOPClassUID, dataset.SOPInstanceUID = self.sop_class, self.instance
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.study, self.series
        return dataset


def read_study(content: bytes) -> Study:
    """Read the DICOM file `content`, which was decoded once. Raises `SinkRefusedError` if it is in no study."""
    silence_pydicom()
    keywords = (*_IDENTITY, *_TYPE_2, *_TYPE_3, *_OF_THE_IMAGE)
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True, specific_tags=[*keywords])
        dataset.decode()
    except Exception as error:  # pydicom raises whatever it stumbles over; its text may quote the file
        raise SinkRefusedError(
            f"the image's patient and study cannot be read ({type(error).__name__}): correct its character set"
        ) from None
    identity = [_text(dataset, keyword) or "" for keyword in _IDENTITY]
    for keyword, value in zip(_IDENTITY, identity):
        if not is_uid(value):
            raise SinkRefusedError(
                f"the image has no valid {keyword}, so its result cannot be filed beside it: send complete images"
            )
    if _text(dataset, "PatientID") is None:
        raise SinkRefusedError("the image's PatientID is malformed, so its result would be filed under another patient")
    attributes = Dataset()
    for keyword in _TYPE_2:
        setattr(attributes, keyword, _text(dataset, keyword) or "")
    if attributes.PatientSex not in _SEXES:
        attributes.PatientSex = ""
    image = Dataset()
    for target, optional in ((attributes, _TYPE_3), (image, _OF_THE_IMAGE)):
        for keyword in optional:
            if text := _text(dataset, keyword):
                setattr(target, keyword, text)
    sop_class, instance, study, series = identity
    return Study(sop_class, instance, study, series, attributes, image)


def finish(dataset: Dataset, study: Study, made: datetime) -> Dataset:
    """Put `dataset`, made by highdicom, into its study, with the time of the result instead of the present."""
    for element in study.attributes:
        dataset[element.tag] = element
    dataset.SpecificCharacterSet = _CHARACTER_SET
    day, clock = made.strftime("%Y%m%d"), made.strftime("%H%M%S")
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(dataset, f"{name}Date", day)
        setattr(dataset, f"{name}Time", clock)
    for equipment in dataset.get("ContributingEquipmentSequence") or ():  # highdicom itself
        equipment.ContributionDateTime = day + clock
    dataset.SoftwareVersions = __version__
    return dataset


def derived_uid(*parts: str) -> str:
    """The same UID for the same `parts`, wherever it is made (PS3.5 B.2): a second delivery is the same instance."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join((MANUFACTURER, *parts))).int}"


def made_at(result: dict[str, Any]) -> datetime:
    """When `result` was made, in local time, as DICOM's dates and times are unless they say otherwise."""
    return datetime.fromisoformat(result["time"]).astimezone()


def _text(dataset: Dataset, keyword: str) -> str | None:
    """The value as text, empty if it is absent; None if it is not valid (PS3.5 section 6.2)."""
    value = dataset.get(keyword)
    if value is None:
        return ""
    several = keyword == "PatientOrientation"
    if not isinstance(value, str) and hasattr(value, "__iter__") and not hasattr(value, "family_name"):
        values = [str(part) for part in value]
    else:
        values = [str(value).strip(" \0")]
    if len(values) > 1 and not several:
        return None
    try:
        for part in values:
            validate_value(dictionary_VR(keyword), part, config.RAISE)
    except ValueError:
        return None
    return "\\".join(values)
