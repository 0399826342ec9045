"""Gray values that DICOM's declarations ask for: against values worked out by hand, and against pydicom."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode
from tests.unit.edge.dicom_writer import REAL, lut, radiograph, to_bytes, without_scope

PREPROCESS = Preprocess(input_size=64)


def gray_of(dataset):
    return decode(to_bytes(dataset), PREPROCESS)


def pixels(*values, dtype=np.uint16):
    return np.array([values], dtype)


def test_linear_window_by_hand():
    # PS3.3 C.11.2.1.2: c = 2048, w = 4096: 0 -> 0, 4095 -> 255, 2047.5 -> 127.5
    image = pixels(0, 2047, 2048, 4095)
    assert gray_of(radiograph(image, bits=12, WindowCenter=2048, WindowWidth=4096)).tolist() == [[0, 127, 128, 255]]


def test_linear_window_of_width_one_is_a_step():
    image = pixels(98, 99, 100, 101)
    assert gray_of(radiograph(image, WindowCenter=100, WindowWidth=1)).tolist() == [[0, 0, 255, 255]]


def test_linear_exact_by_hand():
    image = pixels(0, 50, 100, 150, 200)
    dataset = radiograph(image, WindowCenter=100, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")
    assert gray_of(dataset).tolist() == [[0, 0, 128, 255, 255]]


def test_sigmoid_by_hand():
    image = pixels(0, 500, 1000, 1500, 65535)
    dataset = radiograph(image, WindowCenter=1000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    expected = [round(255 / (1 + math.exp(-4 * (value - 1000) / 1000))) for value in (0, 500, 1000, 1500, 65535)]
    assert gray_of(dataset).tolist() == [expected]


def test_first_of_several_windows():
    image = pixels(0, 100, 200, 4095)
    first = gray_of(radiograph(image, bits=12, WindowCenter=100, WindowWidth=200))
    assert (gray_of(radiograph(image, bits=12, WindowCenter=[100, 2000], WindowWidth=[200, 4096])) == first).all()


def test_monochrome1_is_inverted():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (gray_of(radiograph(image)) == image).all()
    assert (gray_of(radiograph(image, PhotometricInterpretation="MONOCHROME1")) == 255 - image).all()


def test_without_a_window_eight_bits_stay_and_more_are_stretched():
    dull = np.array([[100, 101, 120]], np.uint8)
    assert gray_of(radiograph(dull)).tolist() == [[100, 101, 120]]
    assert gray_of(radiograph(dull.astype(np.uint16), bits=8)).tolist() == [[100, 101, 120]]
    assert gray_of(radiograph(dull.astype(np.uint16), bits=12)).tolist() == [[0, 13, 255]]


def test_without_a_window_a_constant_image_is_refused():
    with pytest.raises(InputRefusedError, match="same value"):
        gray_of(radiograph(np.full((5, 5), 700, np.uint16), bits=12))


def test_signed_values_are_rescaled_before_the_window():
    image = pixels(-1000, 0, 1000, dtype=np.int16)
    dataset = radiograph(
        image,
        RescaleSlope="2",
        RescaleIntercept="-100",
        WindowCenter=-100,
        WindowWidth=4000,
        VOILUTFunction="LINEAR_EXACT",
    )
    assert gray_of(dataset).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 13, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_every_stored_value_at_every_depth(bits, signed):
    low = -(1 << bits - 1) if signed else 0
    values = np.arange(low, low + (1 << bits)).astype(np.int16 if signed else np.uint16).reshape(16, -1)
    center, width = low + (1 << bits - 1), 1 << bits
    expected = np.rint((values.astype(float) - low) / ((1 << bits) - 1) * 255)
    assert (gray_of(radiograph(values, bits=bits, WindowCenter=center, WindowWidth=width)) == expected).all()


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_those_stored_are_ignored(signed):
    values = np.arange(-2048, 2048).astype(np.int16) if signed else np.arange(4096).astype(np.uint16)
    values = values.reshape(64, 64)
    overlaid = (values.view(np.uint16) & 0x0FFF | 0x5000).view(values.dtype)
    assert (gray_of(radiograph(overlaid, bits=12)) == gray_of(radiograph(values, bits=12))).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_stretch_the_range(photometric):
    image = pixels(1000, 1100, 1200, 4095, 4000)
    one = radiograph(image, bits=12, PhotometricInterpretation=photometric)
    one.add_new("PixelPaddingValue", "US", 4095)
    both = radiograph(image, bits=12, PhotometricInterpretation=photometric)
    both.add_new("PixelPaddingValue", "US", 4095)
    both.add_new("PixelPaddingRangeLimit", "US", 3990)
    assert gray_of(one)[0, 3] == 0 and gray_of(one)[0, 4] in (0, 255)
    expected = [0, 128, 255, 0, 0] if photometric == "MONOCHROME2" else [255, 127, 0, 0, 0]
    assert gray_of(both).tolist() == [expected]


def test_signed_padding():
    image = pixels(-2000, 0, 100, 200, dtype=np.int16)
    dataset = radiograph(image, bits=12)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    assert gray_of(dataset).tolist() == [[0, 0, 128, 255]]


def test_modality_lut_goes_before_rescale_and_clips_outside():
    image = pixels(5, 10, 11, 12, 13)
    dataset = radiograph(image, WindowCenter=500, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT", RescaleSlope="77")
    dataset.ModalityLUTSequence = [lut([0, 200, 1000], first=10, bits=16)]
    assert gray_of(dataset).tolist() == [[0, 0, 51, 255, 255]]


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_voi_lut_goes_before_the_window_and_is_scaled_by_its_bits(bits):
    top = (1 << bits) - 1
    image = pixels(0, 1, 2, 3, 4)
    dataset = radiograph(image, bits=12, WindowCenter=1, WindowWidth=1)
    dataset.VOILUTSequence = [lut([top, top // 3, 0], first=1, bits=bits), lut([0, 0, 0], first=1, bits=bits)]
    assert gray_of(dataset).tolist() == [[255, 255, 85, 0, 0]]


@pytest.mark.parametrize("signed_vr", [False, True])
def test_voi_lut_that_begins_below_zero(signed_vr):
    image = pixels(-3, -2, -1, 0, dtype=np.int16)
    dataset = radiograph(image, bits=12)
    dataset.VOILUTSequence = [lut([0, 100, 255], first=-2 if signed_vr else 65534, bits=8, signed=signed_vr)]
    assert gray_of(dataset).tolist() == [[0, 0, 100, 255]]


def test_voi_lut_of_8_bit_entries_packed_in_words():
    image = pixels(0, 1, 2)
    dataset = radiograph(image)
    item = lut([0, 0, 0], first=0, bits=8)
    item.add_new("LUTData", "OW", bytes([10, 20, 30, 0]))
    dataset.VOILUTSequence = [item]
    assert gray_of(dataset).tolist() == [[10, 20, 30]]


def test_voi_lut_of_65536_entries():
    entries = list(range(65536))[::-1]
    dataset = radiograph(pixels(0, 32768, 65535))
    item = lut(entries, first=0, bits=16)
    item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())  # too long for a US element's length
    dataset.VOILUTSequence = [item]
    assert gray_of(dataset).tolist() == [[255, 127, 0]]


def test_the_first_of_several_voi_luts_that_take_more_room_than_the_image():
    table = np.random.default_rng(4).integers(0, 1 << 16, 65536).astype("<u2")
    image = np.random.default_rng(5).integers(0, 1 << 16, (33, 35)).astype(np.uint16)
    items = [lut([0] * 65536, first=0, bits=16) for _ in range(3)]
    for item, entries in zip(items, (table, table[::-1], table)):
        item.add_new("LUTData", "OW", entries.tobytes())
    expected = np.rint(table[image] / 65535 * 255)
    np.testing.assert_array_equal(gray_of(radiograph(image, VOILUTSequence=items)), expected)


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KI.dcm", "RG3_UNCR.dcm", "mlut_18.dcm", "vlut_04.dcm"])
def test_real_images_as_pydicom_displays_them(name):
    dataset = pydicom.dcmread(REAL / name)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:  # OpenCV's decoder is another than ours
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        stored = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)
    else:
        stored = dataset.pixel_array
    modality = apply_modality_lut(stored, dataset)
    display = apply_voi_lut(modality, dataset).astype(float)
    if "VOILUTSequence" in dataset:
        low, high = 0, (1 << dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif "WindowWidth" in dataset:
        low, high = 0, (1 << dataset.BitsStored) - 1
    else:
        low, high = display.min(), display.max()
    expected = (display - low) / (high - low) * 255
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 255 - expected
    assert np.abs(decode(without_scope(REAL / name), PREPROCESS) - expected).max() <= 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [("1", "0"), ("-0.5", "300"), ("3.25", "-1024")])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_as_pydicom_applies_them(function, slope, intercept, signed):
    rng = np.random.default_rng(5)
    image = rng.integers(-2048, 2048, (31, 17), np.int16) if signed else rng.integers(0, 4096, (31, 17), np.uint16)
    dataset = radiograph(
        image,
        bits=12,
        WindowCenter="312.5",
        WindowWidth="901.25",
        VOILUTFunction=function,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        RescaleType="US",
    )
    display = apply_voi_lut(apply_modality_lut(image, dataset), dataset)
    # pydicom scales to the rescaled range of the stored values, backwards for a negative slope
    low, high = (float(slope) * end + float(intercept) for end in ((-2048, 2047) if signed else (0, 4095)))
    expected = np.clip((display - low) / (high - low), 0, 1) * 255
    assert np.abs(gray_of(dataset) - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"WindowCenter": 100}, "only one of Window Center and Window Width"),
        ({"WindowCenter": 100, "WindowWidth": 0}, "too small"),
        ({"WindowCenter": 100, "WindowWidth": "0.5"}, "too small"),
        ({"WindowCenter": 100, "WindowWidth": -3, "VOILUTFunction": "SIGMOID"}, "too small"),
        ({"WindowCenter": 100, "WindowWidth": 100, "VOILUTFunction": "CUBIC"}, "VOI LUT Function"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "Rescale Slope is 0"),
    ],
)
def test_declarations_that_cannot_be_followed_are_refused(elements, reason):
    with pytest.raises(InputRefusedError, match=reason):
        gray_of(radiograph(pixels(1, 2, 3), **elements))


@pytest.mark.parametrize("text", [b"nan ", b"inf ", b"12,5", b"left"])
def test_a_window_that_is_no_number_is_refused(text):
    content = to_bytes(radiograph(pixels(1, 2, 3), WindowCenter="8888", WindowWidth=100))
    damaged = content.replace(b"8888", text)
    with pytest.raises(InputRefusedError, match="no finite number"):
        decode(damaged, PREPROCESS)


def test_luts_that_cannot_be_followed_are_refused():
    wrong_count = lut([1, 2, 3], first=0, bits=16)
    wrong_count.LUTDescriptor = [9, 0, 16]
    no_data = lut([1, 2, 3], first=0, bits=16)
    del no_data.LUTData
    for item, reason in (
        (wrong_count, "declares 9 entries and has 3"),
        (no_data, "lacks"),
        (lut([1, 2, 3], first=0, bits=4), "4 bits"),
    ):
        for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
            dataset = radiograph(pixels(1, 2, 3))
            setattr(dataset, keyword, [item])
            with pytest.raises(InputRefusedError, match=reason):
                gray_of(dataset)
