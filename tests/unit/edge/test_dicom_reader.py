"""Reading of DICOM elements: every file that comes with pydicom, odd encodings, damage, and silence about patients."""

from __future__ import annotations

import io
import logging
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from edge.dicom.reader import is_dicom, read_file
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


@pytest.mark.parametrize("path", files, ids=lambda path: path.name)
def test_files_of_other_software_are_read_or_refused_without_a_word(path, monkeypatch, capfd):
    """Warnings are errors here, so that one of pydicom's would come out as a refusal that names damage."""
    heard = []
    monkeypatch.setattr(logging.getLogger(), "handlers", [Listener(heard)])
    content = path.read_bytes()
    try:
        decode(content, PREPROCESS)
    except InputRefusedError as refusal:
        assert "damaged" not in str(refusal) or path.name in DAMAGED
    else:
        assert path.name not in DAMAGED
    assert (heard, *capfd.readouterr()) == ([], "", "")


class Listener(logging.Handler):
    """What a program with logging set up would see."""

    def __init__(self, heard):
        super().__init__()
        self.emit = heard.append


def test_a_warning_that_quotes_the_file_is_kept_from_every_thread():
    dataset = radiograph(IMAGE, bits=12)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    content = to_bytes(dataset).replace(b"ISO_IR 100", b"Doe^Jane^X")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a filter that was there before, and is not ours to touch
        with pytest.raises(UserWarning, match="Doe"):
            pydicom.dcmread(io.BytesIO(content))
        decode(content, PREPROCESS)
        warnings.simplefilter("error")  # and one that comes later
        with ThreadPoolExecutor(4) as threads:
            grays = list(threads.map(lambda _: decode(content, PREPROCESS), range(40)))
    assert all(gray.shape == IMAGE.shape for gray in grays)


def test_no_patient_data_is_kept():
    content = to_bytes(radiograph(IMAGE))
    assert PATIENT.encode() in content
    data_set = read_file(content, WANTED, 10**6).data_set
    assert PATIENT_NAME not in data_set and MODALITY in data_set


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
    with pytest.raises(InputRefusedError, match="damaged"):
        decode(content, PREPROCESS)


def test_millions_of_empty_elements_are_refused():
    content = b"\0" * 128 + b"DICM" + struct.pack("<HH2sH", 0x0008, 0x0018, b"UI", 0) * 1_000_000
    with pytest.raises(InputRefusedError, match="more elements than any radiograph"):
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
