"""DICOM files that are no single gray radiograph: refused with the reason, and without the patient's name."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode
from tests.unit.edge.dicom_writer import BUNDLED, CAPTURE_CLASS, CT_CLASS, DX_CLASS, REAL, radiograph, to_bytes

IMAGE = np.arange(35 * 33, dtype=np.uint16).reshape(35, 33)


def refusal(content, preprocess=Preprocess(input_size=64)):  # noqa: B008 -- immutable
    with pytest.raises(InputRefusedError) as caught:
        decode(content, preprocess)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(secret in message for secret in ("Doe", "Jane", "4711"))
    return message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CT_small.dcm", "modality is CT"),
        ("MR_small.dcm", "modality is MR"),
        ("rtplan.dcm", "modality is RTPLAN"),
        ("rtdose.dcm", "modality is RTDOSE"),
        ("test-SR.dcm", "modality is SR"),
        ("waveform_ecg.dcm", "modality is ECG"),
        ("SC_rgb_small_odd.dcm", "in colour"),
        ("MR_truncated.dcm", "cut short"),
        ("liver_1frame.dcm", "modality is SEG"),
    ],
)
def test_other_objects(name, reason):
    assert reason in refusal((BUNDLED / name).read_bytes())


def test_an_ultrasound_loop():
    assert "modality is US" in refusal((REAL / "color3d_jpeg_baseline.dcm").read_bytes())


@pytest.mark.parametrize(
    ("modality", "sop_class", "accepted"),
    [
        ("CR", "1.2.840.10008.5.1.4.1.1.1", True),
        ("DX", DX_CLASS, True),
        ("RG", CAPTURE_CLASS, True),
        ("CR", CAPTURE_CLASS, True),
        ("OT", CAPTURE_CLASS, True),
        ("OT", DX_CLASS, False),
        ("CT", CAPTURE_CLASS, False),
        ("CR", CT_CLASS, False),
        ("MG", "1.2.840.10008.5.1.4.1.1.1.2", False),
        (None, DX_CLASS, True),
        (None, CAPTURE_CLASS, False),
        ("cr", DX_CLASS, False),
        ("Doe^Jane", DX_CLASS, False),
    ],
)
def test_modality_and_class_together_say_radiograph(modality, sop_class, accepted):
    content = to_bytes(radiograph(IMAGE, sop_class=sop_class, Modality=modality and "AAAAAAAA"))
    if modality:
        content = content.replace(b"AAAAAAAA", modality.encode().ljust(8))  # pydicom would not write all of them
    if accepted:
        assert decode(content, Preprocess(input_size=64)).shape == IMAGE.shape
    else:
        assert "expected a projection radiograph" in refusal(content)


def test_raw_detector_data():
    assert "for processing" in refusal(to_bytes(radiograph(IMAGE, sop_class=f"{DX_CLASS}.1", Modality="DX")))
    assert "for processing" in refusal(to_bytes(radiograph(IMAGE, PresentationIntentType="FOR PROCESSING")))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": "2"}, "2 frames"),
        ({"NumberOfFrames": "0"}, "0 frames"),
        ({"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}, "in colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "in colour"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 bits in 32"),
        ({"BitsStored": 7, "HighBit": 6}, "7 bits in 16"),
        ({"BitsStored": 17, "HighBit": 16}, "17 bits in 16"),
        ({"BitsStored": 12, "HighBit": 15}, "High Bit is 15"),
        ({"Rows": 0}, "33 x 0 pixels"),
        ({"Rows": None}, "no Rows"),
        ({"BitsAllocated": None}, "no Bits Allocated"),
        ({"PixelData": None}, "no pixel data"),
    ],
)
def test_layouts_that_are_not_decoded(elements, reason):
    assert reason in refusal(to_bytes(radiograph(IMAGE, **elements)))


def test_a_huge_image_is_refused_by_its_header():
    dataset = radiograph(IMAGE, Rows=60_000, Columns=60_000)
    assert "60000 x 60000" in refusal(to_bytes(dataset))
    assert "33 x 35" in refusal(to_bytes(radiograph(IMAGE)), Preprocess(input_size=64, max_pixels=35 * 33 - 1))
    decode(to_bytes(radiograph(IMAGE)), Preprocess(input_size=64, max_pixels=35 * 33))


def test_a_directory_file():
    dataset = Dataset()
    dataset.FileSetID = "DISK"
    assert "expected a projection radiograph" in refusal(to_bytes(dataset, sop_class="1.2.840.10008.1.3.10"))
