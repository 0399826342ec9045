"""What a DICOM says of itself that rules it out: another body part, another view, two polarities at once.

The networks are made for frontal chest radiographs. A tag that is absent or says nothing refuses nobody: whether such
an image looks like one is for `edge.guard` to measure. Only words of a fixed vocabulary are repeated in a message; any
other value may hold what somebody typed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edge.dicom.reader import DataSet
from edge.errors import InputRefusedError

_BODY_PART, _VIEW_POSITION, _PATIENT_ORIENTATION = 0x0018_0015, 0x0018_5101, 0x0020_0020
_ANATOMIC_REGION, _VIEW_CODE = 0x0008_2218, 0x0054_0220
_CODE_VALUE, _CODING_SCHEME = 0x0008_0100, 0x0008_0102
_SAMPLES, _PHOTOMETRIC, _PRESENTATION_LUT_SHAPE = 0x0028_0002, 0x0028_0004, 0x2050_0020

WANTED = (
    *(_BODY_PART, _VIEW_POSITION, _PATIENT_ORIENTATION, _ANATOMIC_REGION, _VIEW_CODE),
    *(_SAMPLES, _PHOTOMETRIC, _PRESENTATION_LUT_SHAPE),
)

_CHEST = re.compile(r"CHEST|CXR|THORAX|TORAX|TORACE|LUNG|PULMO|RIB(?!BON)|HEART|MEDIASTIN")
"""In a Body Part Examined: a chest, or a chest with more around it. The terms of PS3.16 Annex L, and vendors' own."""
_UNTOLD = frozenset(("", "UNKNOWN", "OTHER", "DEFAULT", "NONE", "UNSPECIFIED", "UNDEFINED", "ANY", "NA"))
_BODY_PART_TERMS = (
    "ABDOMEN ANKLE ARM BREAST CALCANEUS CERVICALSPINE CLAVICLE COCCYX CSPINE ELBOW EXTREMITY EYE FEMUR FINGER FOOT "
    "FOREARM HAND HEAD HIP HUMERUS JAW KNEE LEG LSPINE LUMBARSPINE MANDIBLE MAXILLA NECK NOSE ORBIT PATELLA PELVIS "
    "SACRUM SCAPULA SHOULDER SKULL SPINE SSPINE STERNUM THIGH THORACICSPINE THUMB TOE TSPINE TOOTH WHOLEBODY WRIST"
)
BODY_PARTS = frozenset(_BODY_PART_TERMS.split())
"""Terms that a message may repeat."""

_SNOMED = frozenset(("SCT", "SRT", "SNM3", "99SDM"))
"""SNOMED CT, and the three names of its older identifiers (PS3.16, 8.1): each concept has a code of both kinds."""
_CHEST_CODES = (
    # Chest, thorax, lung, apex of lung, rib, heart, mediastinum, bronchus; chest with neck, abdomen, pelvis.
    "816094009 51185008 39607008 86598002 113197003 80891009 72410000 955009 416550000 417437006 416152001 416319003 "
    "416775004 T-D3000 T-28000 T-280A0 T-11300 T-32000 T-D3300 T-26000 R-FAB55 R-FAB52 R-FAB53 R-FAB54 R-FAB56"
)
CHEST_REGIONS = frozenset(_CHEST_CODES.split())
_LATERAL_CODES = (
    # Of PS3.16 CID 4010, DX View: left, right and plain lateral, medial-lateral and back, sagittal.
    "399173006 399198007 399067008 399260004 399352003 30730003 R-10236 R-10232 R-102CD R-10224 R-10228 G-A145"
)
_OBLIQUE_CODES = (
    # Of the same, everything oblique.
    "399038007 399225005 399059000 399099002 399288005 399135007 260427002 399236003 399368009 399312000 399356000 "
    "399184004 399182000 260426006 399132005 399325008 399160007 399004004 399006002 R-10210 R-10250 R-10216 R-10230 "
    "R-10248 R-10220 R-40783 R-10234 R-10226 R-10208 R-40985 R-10238 R-102C1 R-40782 R-10252 R-10254 R-10204 R-10246 "
    "R-10212"
)
LATERAL, OBLIQUE = "a lateral view", "an oblique view"
NOT_FRONTAL: Mapping[str, str] = {
    **dict.fromkeys(_LATERAL_CODES.split(), LATERAL),
    **dict.fromkeys(_OBLIQUE_CODES.split(), OBLIQUE),
}
_VIEW_TERMS: Mapping[str, str] = {
    **dict.fromkeys(("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "LATL", "LATR", "XTLAT"), LATERAL),
    **dict.fromkeys(("RLO", "LLO", "LAO", "RAO", "LPO", "RPO", "OBL", "OBLIQUE"), OBLIQUE),
    **dict.fromkeys(("RLD", "LLD", "DECUB", "DECUBITUS"), "a decubitus view"),
}
"""View Position (PS3.3 C.8.1.1, C.8.11.5), and what devices write there besides."""


def check_scope(data_set: DataSet) -> None:
    """Refuse what its tags say is no frontal chest radiograph. Raises `InputRefusedError`."""
    _check_body_part(data_set.text(_BODY_PART))
    for region in _codes(data_set, _ANATOMIC_REGION):
        if region not in CHEST_REGIONS:
            raise _other_body_part("Anatomic Region is none of the chest's", "Anatomic Region Sequence")
    if view := _view_of(data_set.text(_VIEW_POSITION)):
        raise _other_view(view, "View Position")
    for code in _codes(data_set, _VIEW_CODE):
        if code in NOT_FRONTAL:
            raise _other_view(NOT_FRONTAL[code], "View Code Sequence")
    _check_orientation(data_set)


def check_polarity(data_set: DataSet) -> None:
    """Refuse photometric tags that contradict each other: a negative would be read as a positive.

    Presentation LUT Shape is INVERSE for MONOCHROME1 and IDENTITY for MONOCHROME2, in every image class (PS3.3 C.7.6.1,
    C.8.11.3). Pixel Intensity Relationship Sign is not looked at: it is about beam and stored value, "not a
    transformation for presentation" (C.8.11.3.1.2), and a VOI LUT may turn it round. Raises `InputRefusedError`.
    """
    photometric, samples = data_set.text(_PHOTOMETRIC), data_set.short(_SAMPLES, "Samples per Pixel")
    shape = data_set.text(_PRESENTATION_LUT_SHAPE)
    gray = photometric in ("MONOCHROME1", "MONOCHROME2")
    if (gray and samples not in (None, 1)) or (photometric == "RGB" and samples == 1):
        raise InputRefusedError(
            f"the DICOM says {photometric} with {samples} samples a pixel, which contradict each other: export it anew"
        )
    if (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        raise InputRefusedError(
            f"the DICOM says {photometric} with Presentation LUT Shape {shape}, which contradict each other, so black "
            "may be white: correct the one that is wrong, or export the image anew"
        )


def _check_body_part(value: str) -> None:
    term = value.upper()
    plain = re.sub(r"[^A-Z]", "", term)
    spine = "SPINE" in plain or "THORACOLUMBAR" in plain
    if (plain in _UNTOLD and term.isascii()) or (_CHEST.search(plain) and not spine):
        return
    shown = plain if plain in BODY_PARTS else "a word that does not name the chest"
    raise _other_body_part(f"Body Part Examined is {shown}", "Body Part Examined")


def _codes(data_set: DataSet, tag: int) -> list[str]:
    """The SNOMED codes of a code sequence; those of other schemes are not known here."""
    return [
        item.text(_CODE_VALUE)
        for item in data_set.items(tag)
        if item.text(_CODING_SCHEME).upper() in _SNOMED and item.text(_CODE_VALUE)
    ]


def _view_of(value: str) -> str:
    """What a View Position says instead of frontal; empty if it says PA, AP, or nothing that is known."""
    words = re.findall(r"[A-Z]+", value.upper())
    return next((_VIEW_TERMS[word] for word in words if word in _VIEW_TERMS), "")


def _check_orientation(data_set: DataSet) -> None:
    """Patient Orientation (PS3.3 C.7.6.1.1.1): in a frontal view rows run to the patient's left, columns to the feet.

    Each of its two values is up to three letters, the main direction first.
    """
    values = [value.strip(" \0") for value in data_set.value(_PATIENT_ORIENTATION).decode("latin-1").split("\\")]
    if len(values) != 2 or not all(re.fullmatch(r"[APRLHF]{1,3}", value) for value in values):
        return
    row, column = values[0][0], values[1][0]
    if (row, column) == ("L", "F"):
        return
    if "A" in (row, column) or "P" in (row, column):
        raise _other_view(LATERAL, "Patient Orientation")
    raise InputRefusedError(
        f"the DICOM's Patient Orientation is {row}\\{column}: it is turned or mirrored, expected L\\F (rows "
        "to the patient's left, columns to the feet): export it upright, or correct the Patient Orientation"
    )


def _other_body_part(found: str, tag: str) -> InputRefusedError:
    return InputRefusedError(
        f"the DICOM's {found}, expected the chest: send a chest radiograph, or correct the {tag} if it is one"
    )


def _other_view(view: str, tag: str) -> InputRefusedError:
    return InputRefusedError(
        f"the DICOM is {view} by its {tag}, expected a frontal one (PA or AP): send that, or correct the {tag}"
    )
