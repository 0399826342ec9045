"""What a DICOM's tags rule out: body part, view, orientation, and photometric tags that contradict each other."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr import _snomed_dict
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._concepts_dict import concepts

from edge.dicom.scope import BODY_PARTS, CHEST_REGIONS, LATERAL, NOT_FRONTAL, OBLIQUE
from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode
from tests.unit.edge.dicom_writer import CAPTURE_CLASS, PATIENT, REAL, radiograph, to_bytes

PREPROCESS = Preprocess(64)
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")
"""Devices write what the standard forbids, and pydicom says so when the tests write it."""
PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8)


def read(**elements: object) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return decode(to_bytes(radiograph(PIXELS, **elements)), PREPROCESS)


def refusal(**elements: object) -> str:
    with pytest.raises(InputRefusedError) as caught:
        read(**elements)
    text = str(caught.value)
    assert "expected" in text or "contradict" in text
    assert ": " in text
    assert PATIENT not in text
    return text


def coded(value: str, scheme: str = "SCT") -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, PATIENT
    return [item]


def codes(context_group: int) -> dict[str, str]:
    """Meaning of each code of a context group of PS3.16 as pydicom has it, by SNOMED CT code and by the older one."""
    older = _snomed_dict.mapping["SRT"]
    found = {}
    for scheme, keywords in cid_concepts[context_group].items():
        for keyword in keywords:
            for code, (meaning, groups) in concepts[scheme][keyword].items():
                if context_group in groups:
                    found[code] = meaning.lower()
    return found | {old: found[new] for old, new in older.items() if new in found}


CHEST_WORDS = ("chest", "thorax", "lung", "rib", "heart", "mediastinum", "bronchus")


# Body part


@pytest.mark.parametrize(
    "value",
    [
        *("CHEST", "chest", "CHEST ", "THORAX", "LUNG", "RIB", "RIBS", "HEART", "MEDIASTINUM", "CHEST_TO_AP", "CXR"),
        *("PORT CHEST", "CHESTABDOMEN", "CHEST-ABD", "TORAX", "TORACE", "PULMON"),
        *("", None, "UNKNOWN", "OTHER", "DEFAULT", "N/A", "-", "0"),
    ],
)
def test_a_chest_and_a_body_part_that_is_not_told_are_read(value: str | None) -> None:
    elements = {} if value is None else {"BodyPartExamined": value}
    assert (read(**elements) == PIXELS).all()


@pytest.mark.parametrize("value", sorted(BODY_PARTS))
def test_another_body_part_is_refused_by_its_name(value: str) -> None:
    assert f"Body Part Examined is {value}, expected the chest" in refusal(BodyPartExamined=value)


@pytest.mark.parametrize(
    "value", ["T-SPINE", "T SPINE", "Thoracic Spine", "THORACOLUMBAR", "C_SPINE", "hand", "Left Hand", "KNEE LAT"]
)
def test_spellings_of_other_body_parts_are_refused(value: str) -> None:
    assert "expected the chest" in refusal(BodyPartExamined=value)


@pytest.mark.parametrize("value", [PATIENT, "DOE JANE 1950", "RIBBON", "手", "H\u00c4NDE"])
def test_a_word_that_is_no_known_body_part_is_refused_and_not_repeated(value: str) -> None:
    dataset = radiograph(PIXELS)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.add_new("BodyPartExamined", "LO", value)  # CS would not take every letter
    with pytest.raises(InputRefusedError, match="a word that does not name the chest") as caught:
        decode(to_bytes(dataset), PREPROCESS)
    assert value not in str(caught.value)


def test_the_regions_of_the_chest_are_those_of_the_standard() -> None:
    """Each code of PS3.16 CID 4009 is the chest's by its meaning or by ours, and not by one of them alone."""
    region = codes(4009)
    assert len(region) > 150
    for code, meaning in region.items():
        named = any(word in meaning.split() or f"{word}s" in meaning.split() for word in CHEST_WORDS) or any(
            word in meaning for word in ("chest", "lung")
        )
        assert (code in CHEST_REGIONS) == named, (code, meaning)


@pytest.mark.parametrize(
    ("code", "scheme"),
    [
        *(("816094009", "SCT"), ("51185008", "SCT"), ("T-D3000", "SRT"), ("T-28000", "SNM3"), ("T-11300", "99SDM")),
        *(("85562004", "99LOCAL"), ("RID2639", "RADLEX"), ("", "SCT")),
    ],
)
def test_regions_of_the_chest_and_codes_of_unknown_schemes_are_read(code: str, scheme: str) -> None:
    assert (read(AnatomicRegionSequence=coded(code, scheme)) == PIXELS).all()


@pytest.mark.parametrize(("code", "scheme"), [("85562004", "SCT"), ("T-D8700", "SRT"), ("66019005", "sct")])
def test_other_regions_are_refused_whatever_the_body_part_says(code: str, scheme: str) -> None:
    for elements in ({}, {"BodyPartExamined": "CHEST"}):
        assert "Anatomic Region" in refusal(AnatomicRegionSequence=coded(code, scheme), **elements)


# View


@pytest.mark.parametrize("value", ["PA", "AP", "pa", "AP SUPINE", "PA ERECT", "CHEST PA", "", None, "DOE"])
def test_frontal_views_and_unknown_ones_are_read(value: str | None) -> None:
    elements = {} if value is None else {"ViewPosition": value}
    assert (read(**elements) == PIXELS).all()


@pytest.mark.parametrize(
    ("value", "view"),
    [
        *((value, "a lateral view") for value in ("LL", "RL", "LATERAL", "LAT", "L LAT", "ll", "LEFT LATERAL", "LLAT")),
        *((value, "an oblique view") for value in ("RLO", "LLO", "RAO", "LAO", "RPO", "LPO", "OBL", "PA OBLIQUE")),
        *((value, "a decubitus view") for value in ("RLD", "LLD", "AP DECUBITUS")),
    ],
)
def test_other_views_are_refused(value: str, view: str) -> None:
    text = refusal(ViewPosition=value)
    assert f"is {view} by its View Position, expected a frontal one" in text


def test_the_views_are_those_of_the_standard() -> None:
    """Each code of PS3.16 CID 4010 whose meaning has the word is refused as that, and no other code is."""
    view = codes(4010)
    assert len(view) > 80
    for code, meaning in view.items():
        if "oblique" in meaning:
            assert NOT_FRONTAL.get(code) == OBLIQUE, (code, meaning)
        elif "lateral" in meaning or meaning == "sagittal":
            assert NOT_FRONTAL.get(code) == LATERAL, (code, meaning)
        else:
            assert code not in NOT_FRONTAL, (code, meaning)
    assert set(NOT_FRONTAL) <= set(view)


@pytest.mark.parametrize(
    ("code", "scheme", "view"),
    [
        *(("399067008", "SCT", LATERAL), ("R-10236", "SRT", LATERAL), ("R-10232", "SNM3", LATERAL)),
        ("399182000", "SCT", OBLIQUE),
    ],
)
def test_other_views_are_refused_by_their_code(code: str, scheme: str, view: str) -> None:
    assert f"is {view} by its View Code Sequence" in refusal(ViewCodeSequence=coded(code, scheme), ViewPosition="PA")


@pytest.mark.parametrize(("code", "scheme"), [("272479007", "SCT"), ("399348003", "SCT"), ("399067008", "99LOCAL")])
def test_frontal_views_are_read_by_their_code(code: str, scheme: str) -> None:
    assert (read(ViewCodeSequence=coded(code, scheme)) == PIXELS).all()


# Orientation


@pytest.mark.parametrize(("row", "column"), list(itertools.product("APRLHF", repeat=2)))
def test_every_orientation(row: str, column: str) -> None:
    elements = {"PatientOrientation": [row, column]}
    if (row, column) == ("L", "F"):
        assert (read(**elements) == PIXELS).all()
    elif {"A", "P"} & {row, column}:
        assert "a lateral view by its Patient Orientation" in refusal(**elements)
    else:
        assert f"Patient Orientation is {row}\\{column}: it is turned or mirrored" in refusal(**elements)


@pytest.mark.parametrize("value", [None, "", ["", ""], ["L"], ["L", "F", "F"], ["X", "F"], ["LF", "FR"], ["L", "FP"]])
def test_orientations_that_are_frontal_or_say_nothing_are_read(value: object) -> None:
    elements = {} if value is None else {"PatientOrientation": value}
    assert (read(**elements) == PIXELS).all()


# Polarity


@pytest.mark.parametrize(
    ("photometric", "shape", "read_as"),
    [
        ("MONOCHROME2", "IDENTITY", PIXELS),
        ("MONOCHROME1", "INVERSE", 255 - PIXELS),
        ("MONOCHROME1", "", 255 - PIXELS),
        ("MONOCHROME2", "LIN OD", PIXELS),
    ],
)
def test_polarities_that_agree(photometric: str, shape: str, read_as: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    found = read(PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert (found == read_as).all()


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")])
def test_polarities_that_contradict_each_other_are_refused(photometric: str, shape: str) -> None:
    text = refusal(PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert f"says {photometric} with Presentation LUT Shape {shape}" in text


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_sign_of_the_pixel_intensity_relationship_is_no_polarity(photometric: str, sign: int) -> None:
    """PS3.3 C.8.11.3.1.2: it says how stored values follow the beam, before any LUT, and is not for display."""
    plain = read(PhotometricInterpretation=photometric)
    assert (read(PhotometricInterpretation=photometric, PixelIntensityRelationshipSign=sign) == plain).all()


@pytest.mark.parametrize(("photometric", "samples"), [("MONOCHROME2", 3), ("MONOCHROME1", 3), ("RGB", 1)])
def test_samples_that_contradict_the_photometric_interpretation_are_refused(photometric: str, samples: int) -> None:
    text = refusal(PhotometricInterpretation=photometric, SamplesPerPixel=samples)
    assert f"{photometric} with {samples} samples a pixel" in text


def test_colour_stays_colour() -> None:
    assert "in colour" in refusal(PhotometricInterpretation="PALETTE COLOR")


# Real images


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KI.dcm"])
def test_a_real_chest_radiograph_is_read(name: str) -> None:
    assert decode(REAL / name, PREPROCESS).shape == (1955, 1841)


@pytest.mark.parametrize("name", ["RG3_UNCR.dcm", "RG3_UNCI.dcm", "RG3_J2KR.dcm", "RG3_J2KI.dcm"])
def test_a_real_radiograph_of_an_extremity_is_refused(name: str) -> None:
    with pytest.raises(InputRefusedError, match="Body Part Examined is EXTREMITY, expected the chest"):
        decode(REAL / name, PREPROCESS)


def test_its_orientation_alone_would_do() -> None:
    dataset = pydicom.dcmread(REAL / "RG3_UNCR.dcm")
    del dataset.BodyPartExamined
    with pytest.raises(InputRefusedError, match="it is turned or mirrored"):
        decode(to_bytes(dataset), PREPROCESS)


def test_a_secondary_capture_is_looked_at_like_any_other() -> None:
    elements = {"sop_class": CAPTURE_CLASS, "Modality": "OT", "BodyPartExamined": "HAND"}
    with pytest.raises(InputRefusedError, match="HAND"):
        decode(to_bytes(radiograph(PIXELS, **elements)), PREPROCESS)  # type: ignore[arg-type]
