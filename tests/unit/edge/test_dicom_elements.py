"""The reader of DICOM elements against pydicom's, on every file that comes with pydicom, and on malformed ones."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from edge.dicom.elements import is_dicom, read_file
from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode
from tests.unit.edge.dicom_writer import BUNDLED, PATIENT, REAL, radiograph, to_bytes

PREPROCESS = Preprocess(input_size=64)
MODALITY, PATIENT_NAME, ROWS, WINDOW, VOI = 0x0008_0060, 0x0010_0010, 0x0028_0010, 0x0028_1050, 0x0028_3010
WANTED = (0x0008_0016, MODALITY, ROWS, 0x0028_0011, 0x0028_0100, 0x0028_0101, WINDOW, 0x0028_1051, 0x0028_3000, VOI)
DAMAGED = {"MR_truncated.dcm", "rtplan_truncated.dcm", "no_meta.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"}
"""Cut short, or begun in the middle."""

files = sorted(BUNDLED.glob("*.dcm")) + sorted(REAL.glob("*.dcm"))
IMAGE = np.arange(35 * 33, dtype=np.uint16).reshape(35, 33)


def as_pydicom_reads(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of files that are not all well-formed
        return pydicom.dcmread(io.BytesIO(content), force=True)


@pytest.mark.parametrize("path", files, ids=lambda path: path.name)
def test_elements_are_those_that_pydicom_reads(path):
    content = path.read_bytes()
    if path.name in DAMAGED:
        with pytest.raises(InputRefusedError, match="damaged"):
            read_file(content, WANTED, 10**8)
        return
    expected, file = as_pydicom_reads(content), read_file(content, WANTED, 10**8)
    assert is_dicom(content)
    assert set(file.data_set) == {tag for tag in WANTED if tag in expected}
    for tag, element in file.data_set.items():
        raw = expected.get_item(tag)
        if raw.VR == "SQ" or element.items:
            assert len(element.items) == len(expected[tag].value)
        else:
            assert bytes(element.value) == (raw.value or b"")
    if "TransferSyntaxUID" in expected.file_meta:
        assert file.transfer_syntax == expected.file_meta.TransferSyntaxUID
    pixels = expected.get_item(0x7FE0_0010)
    if pixels is None:
        assert file.pixels is None
    elif isinstance(file.pixels, list):
        assert file.pixels
    else:
        assert file.pixels is not None and bytes(file.pixels) == pixels.value


def test_no_patient_data_is_kept():
    content = to_bytes(radiograph(IMAGE))
    assert PATIENT.encode() in content
    assert PATIENT_NAME not in read_file(content, WANTED, 10**6).data_set


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
@pytest.mark.parametrize("undefined_length", [False, True])
def test_sequences_before_the_image_are_stepped_over_and_nested_ones_entered(syntax, undefined_length):
    dataset = radiograph(IMAGE, bits=12)
    inner = Dataset()
    inner.Rows, inner.Modality = 7, "CT"  # must not be taken for the image's own
    outer = Dataset()
    outer.ReferencedSeriesSequence = [inner, inner]
    dataset.ReferencedImageSequence = [outer]
    for item in (outer, inner):
        item.is_undefined_length_sequence_item = undefined_length
    dataset["ReferencedImageSequence"].is_undefined_length = undefined_length
    outer["ReferencedSeriesSequence"].is_undefined_length = undefined_length
    data_set = read_file(to_bytes(dataset, syntax), WANTED, 10**6).data_set
    assert data_set.short(ROWS, "Rows") == 35
    assert data_set.text(MODALITY) == "CR"


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_a_file_without_preamble_is_read(syntax):
    dataset = radiograph(IMAGE, bits=12)
    whole = to_bytes(dataset, syntax)
    assert (decode(whole[132:], PREPROCESS) == decode(whole, PREPROCESS)).all()


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_a_bare_data_set_is_read(syntax):
    dataset = radiograph(IMAGE, bits=12)
    expected = decode(to_bytes(dataset), PREPROCESS)
    if syntax == uid.ExplicitVRBigEndian:
        dataset.PixelData = IMAGE.astype(">u2").tobytes()
    buffer = io.BytesIO()
    del dataset.file_meta
    pydicom.dcmwrite(
        buffer,
        dataset,
        implicit_vr=syntax == uid.ImplicitVRLittleEndian,
        little_endian=syntax != uid.ExplicitVRBigEndian,
    )
    assert buffer.getvalue()[128:132] != b"DICM"
    assert (decode(buffer.getvalue(), PREPROCESS) == expected).all()


def test_the_wrong_vr_in_the_transfer_syntax_is_seen_through():
    content = to_bytes(radiograph(IMAGE, bits=12), uid.ExplicitVRLittleEndian)
    assert content.count(b"1.2.840.10008.1.2.1\0") == 1
    lied = content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    assert (decode(lied, PREPROCESS) == decode(content, PREPROCESS)).all()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\0\x05", b"\xff" * 300, b"\0" * 300, b"II*\0" + b"\0" * 300])
def test_other_content_is_no_dicom(content):
    assert not is_dicom(content)


def test_deeply_nested_sequences_are_refused_and_do_not_exhaust_the_stack():
    nested = b"".join(
        struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        for _ in range(100_000)
    )
    content = b"\0" * 128 + b"DICM" + nested
    with pytest.raises(InputRefusedError, match="nested more than"):
        decode(content, PREPROCESS)


def test_millions_of_empty_elements_are_refused():
    content = b"\0" * 128 + b"DICM" + struct.pack("<HH2sH", 0x0008, 0x0018, b"UI", 0) * 1_000_000
    with pytest.raises(InputRefusedError, match="elements, which no radiograph has"):
        decode(content, PREPROCESS)


def test_every_cut_is_refused():
    """From the first byte to the last but one: whatever is missing, the file is not taken for a smaller image."""
    for syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian):
        content = to_bytes(radiograph(IMAGE[:5, :4], bits=12), syntax)
        for length in range(len(content)):
            if syntax == uid.DeflatedExplicitVRLittleEndian and length == len(content) - 1:
                continue  # one byte pads the deflated data to an even length
            with pytest.raises(InputRefusedError):
                decode(content[:length], PREPROCESS)
        decode(content, PREPROCESS)
