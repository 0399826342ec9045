"""Pixels of every transfer syntax, encoded in the test, and of real files that other software encoded."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc

import cv2
import jpeg_ls
import numpy as np
import pydicom
import pytest
import simplejpeg
from openjpeg.utils import encode_array
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

from edge.dicom.pixels import Layout, read_stored
from edge.dicom.reader import read_file
from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode
from tests.unit.edge.dicom_writer import BUNDLED, PATIENT, REAL, radiograph, to_bytes, without_scope

PREPROCESS = Preprocess(input_size=64)
NATIVE = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian]
SIZES = [(35, 33), (64, 47), (33, 128)]


def noise(shape, bits, signed=False, seed=3):
    """Smooth and rough at once: runs and literals for RLE, both ends of the range."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 1 << bits, shape)
    image[: shape[0] // 2] //= 1 << bits - 2
    image.flat[0] = (1 << bits) - 1
    if signed:
        return (image - (1 << bits - 1)).astype(np.int8 if bits == 8 else np.int16)
    return image.astype(np.uint8 if bits == 8 else np.uint16)


def expected_gray(image, bits):
    """The range of the bits for 8, else that of the image."""
    values = image.astype(float)
    low, high = (values.min(), values.max()) if bits > 8 else (float(-128 if image.dtype == np.int8 else 0), 0.0)
    high = high if bits > 8 else low + 255
    return np.rint((values - low) / (high - low) * 255)


def encode(image, syntax, bits):
    """One encoded frame."""
    signed = image.dtype.kind == "i"
    if syntax == uid.RLELossless:
        dataset = radiograph(image, bits=bits)
        options = {
            "rows": dataset.Rows,
            "columns": dataset.Columns,
            "samples_per_pixel": 1,
            "bits_allocated": dataset.BitsAllocated,
            "bits_stored": bits,
            "pixel_representation": int(signed),
            "photometric_interpretation": "MONOCHROME2",
            "number_of_frames": 1,
        }
        return get_encoder(syntax).encode(image, encoding_plugin="pydicom", **options)
    if syntax in uid.JPEGLSTransferSyntaxes:
        unsigned = image.view(image.dtype.str.replace("i", "u")) & np.array(
            (1 << bits) - 1, image.dtype.str.replace("i", "u")
        )
        return bytes(jpeg_ls.encode_array(unsigned))
    return bytes(encode_array(image, bits_stored=bits, photometric_interpretation=2))


@pytest.mark.parametrize("syntax", [*NATIVE, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (10, False), (12, True), (16, False), (16, True)])
@pytest.mark.parametrize("shape", SIZES)
def test_lossless_syntaxes(syntax, bits, signed, shape):
    image = noise(shape, bits, signed)
    frame = None if syntax in NATIVE else encode(image, syntax, bits)
    content = to_bytes(radiograph(image, bits=bits), syntax, frame)
    assert (decode(content, PREPROCESS) == expected_gray(image, bits)).all()


@pytest.mark.parametrize("shape", [(1, 7), (9, 1), (3, 3), (1, 2)])
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("syntax", [*NATIVE, uid.RLELossless])
def test_images_of_a_few_pixels(shape, bits, syntax):
    image = noise(shape, bits)
    frame = None if syntax in NATIVE else encode(image, syntax, bits)
    content = to_bytes(radiograph(image, bits=bits), syntax, frame)
    assert (decode(content, PREPROCESS) == expected_gray(image, bits)).all()


@pytest.mark.parametrize("bits", [8, 12])
def test_big_endian(bits):
    image = noise((35, 33), bits)
    dataset = radiograph(image, bits=bits)
    dataset.PixelData = image.astype(image.dtype.newbyteorder(">")).tobytes() + b"\0" * (image.nbytes % 2)
    assert (decode(to_bytes(dataset, uid.ExplicitVRBigEndian), PREPROCESS) == expected_gray(image, bits)).all()


def test_big_endian_8_bit_in_words():
    image = noise((5, 7), 8)
    dataset = radiograph(image)
    padded = image.tobytes() + b"\0"
    dataset.PixelData = np.frombuffer(padded, "<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    assert (decode(to_bytes(dataset, uid.ExplicitVRBigEndian), PREPROCESS) == image).all()


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit])
def test_jpeg_of_8_bits(syntax):
    image = cv2.GaussianBlur(noise((101, 77), 8), (9, 9), 0)
    frame = simplejpeg.encode_jpeg(image[..., None], quality=95, colorspace="GRAY")
    gray = decode(to_bytes(radiograph(image), syntax, frame), PREPROCESS)
    assert (gray == cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED)).all()
    assert np.abs(gray.astype(int) - image).max() < 16


def test_near_lossless_jpeg_ls():
    image = noise((40, 41), 12)
    frame = bytes(jpeg_ls.encode_array(image, lossy_error=3))
    file = read_file(to_bytes(radiograph(image, bits=12), uid.JPEGLSNearLossless, frame), (), 10**6)
    stored = read_stored(file, Layout(40, 41, 16, 12, False))
    assert 0 < np.abs(stored.astype(int) - image).max() <= 3


def test_the_real_radiograph_is_the_same_raw_and_lossless():
    raw = decode(REAL / "RG1_UNCR.dcm", PREPROCESS)
    assert raw.shape == (1955, 1841)
    assert (decode(REAL / "RG1_J2KR.dcm", PREPROCESS) == raw).all()
    assert np.abs(decode(REAL / "RG1_J2KI.dcm", PREPROCESS).astype(int) - raw).max() <= 4
    extremity, lossless = (decode(without_scope(REAL / f"RG3_{kind}.dcm"), PREPROCESS) for kind in ("UNCR", "J2KR"))
    assert extremity.shape == (1760, 1760)
    assert (extremity == lossless).all()


@pytest.mark.parametrize(
    ("path", "digest"),
    [
        # SHA-256 of the stored values, as little-endian 16-bit integers, that GDCM 3.2.6 decodes
        (REAL / "JPEG-LL.dcm", "a6e9d32143339d3f5748b5520aa4e6c6ffb3550b6f71fdf17bdb2ebb44bc2611"),
        (REAL / "JPGLosslessP14SV1_1s_1f_8b.dcm", "53e607880105df3b1991859fde98379e486f33ccb705e689296ab7583df325ae"),
    ],
)
def test_jpeg_lossless_of_other_software(path, digest):
    stored = stored_of(path)
    assert hashlib.sha256(stored.astype("<u2").tobytes()).hexdigest() == digest


@pytest.mark.parametrize(
    "name",
    [
        "MR_small",
        "MR_small_implicit",
        "MR_small_bigendian",
        "MR_small_RLE",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
    ],
)
def test_one_image_in_six_syntaxes(name):
    expected = pydicom.dcmread(BUNDLED / "MR_small.dcm").pixel_array
    assert (stored_of(BUNDLED / f"{name}.dcm").view(np.int16) == expected).all()


def test_a_jpeg_2000_stream_that_forgot_the_sign():
    stored = stored_of(BUNDLED / "J2K_pixelrep_mismatch.dcm")
    signed = (stored.astype(np.int32) ^ 0x1000) - 0x1000  # 13 bits
    assert (signed.min(), signed.max()) == (-2000, 1896)  # as pydicom corrects it


def test_jpeg_2000_lets_other_threads_run_where_opencv_can_decode_it(monkeypatch):
    """pylibjpeg-openjpeg keeps Python's lock for the half second that a radiograph takes; OpenCV's decoder does not."""
    raw = stored_of(REAL / "RG1_UNCR.dcm")
    with monkeypatch.context() as patched:
        patched.setattr("edge.dicom.pixels.decode_frame", None)
        np.testing.assert_array_equal(stored_of(REAL / "RG1_J2KR.dcm"), raw)
    monkeypatch.setattr("edge.dicom.pixels.decode_jpeg2000", lambda data: None)  # an OpenCV without it
    np.testing.assert_array_equal(stored_of(REAL / "RG1_J2KR.dcm"), raw)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_damaged_jpeg_2000_is_read_alike_by_either_decoder(bits, monkeypatch):
    image = noise((35, 33), bits)
    content = to_bytes(radiograph(image, bits=bits), uid.JPEG2000Lossless, encode(image, uid.JPEG2000Lossless, bits))
    begin, damaged = content.index(b"\xff\x4f\xff\x51"), []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        end = rng.choice((begin + 150, len(content)))  # its markers, or anywhere
        damaged.append(np.frombuffer(content, np.uint8).copy())
        damaged[-1][rng.integers(begin, end, 2)] = rng.integers(0, 256, 2)

    def outcomes():
        for file in damaged:
            try:
                yield decode(file.tobytes(), PREPROCESS).tolist()
            except InputRefusedError as refusal:
                yield str(refusal)

    first = list(outcomes())
    assert 10 < sum(isinstance(one, str) for one in first) < 90
    monkeypatch.setattr("edge.dicom.pixels.decode_jpeg2000", lambda data: None)
    assert first == list(outcomes())


def stored_of(path):
    dataset = pydicom.dcmread(path)
    layout = Layout(
        dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, bool(dataset.PixelRepresentation)
    )
    return read_stored(read_file(path.read_bytes(), (), 10**7), layout)


def refusal(content):
    with pytest.raises(InputRefusedError) as caught:
        decode(content, PREPROCESS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_a_stream_of_another_size_than_its_header_is_refused(syntax):
    frame = encode(noise((35, 33), 12), syntax, 12)
    for shape in ((35, 34), (30, 33), (70, 66)):
        message = refusal(to_bytes(radiograph(noise(shape, 12), bits=12), syntax, frame))
        assert "33 x 35" in message or syntax == uid.RLELossless


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGBaseline8Bit])
def test_a_stream_cut_inside_its_item_is_refused(syntax):
    image = noise((35, 33), 8)
    frame = (
        simplejpeg.encode_jpeg(image[..., None], colorspace="GRAY")
        if syntax == uid.JPEGBaseline8Bit
        else encode(image, syntax, 8)
    )
    for keep in (2, 10, 40, len(frame) // 2, len(frame) - 8):
        refusal(to_bytes(radiograph(image), syntax, frame[:keep]))


@pytest.mark.parametrize("syntax", [*NATIVE, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_random_damage_ends_in_an_image_or_a_refusal(syntax, capfd):
    image = noise((35, 33), 12)
    frame = None if syntax in NATIVE else encode(image, syntax, 12)
    content = to_bytes(radiograph(image, bits=12), syntax, frame)
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(200):
        damaged = np.frombuffer(content, np.uint8).copy()
        end = rng.choice((600, damaged.size))  # the header, or anywhere
        damaged[rng.integers(128, end, 3)] = rng.integers(0, 256, 3)
        try:
            assert decode(damaged.tobytes(), PREPROCESS).ndim == 2
        except InputRefusedError as refusal:
            refused += 1
            assert PATIENT.split("^")[0] not in str(refusal)
    assert 20 < refused < 200
    assert capfd.readouterr() == ("", "")


def test_rle_that_unpacks_to_more_than_the_image_is_refused_before_it_fills_memory():
    size = 1000 * 1000
    bomb = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * size  # each pair unpacks to 128 bytes
    tracemalloc.start()
    try:
        assert "RLE data is damaged" in refusal(
            to_bytes(radiograph(np.zeros((1000, 1000), np.uint8)), uid.RLELossless, bomb)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000


def test_a_stream_of_colour_is_refused():
    frame = simplejpeg.encode_jpeg(np.zeros((31, 33, 3), np.uint8), colorspace="RGB")
    assert "3 components" in refusal(to_bytes(radiograph(noise((35, 33), 8)), uid.JPEGBaseline8Bit, frame))


def test_values_beyond_the_bits_stored_are_refused():
    frame = encode(noise((35, 33), 12), uid.JPEGLSLossless, 12)
    assert "more than the 10 bits" in refusal(
        to_bytes(radiograph(noise((35, 33), 10), bits=10), uid.JPEGLSLossless, frame)
    )


def test_jpeg_of_12_bits_is_refused_by_name():
    dataset = pydicom.dcmread(BUNDLED / "JPGExtended.dcm")
    dataset.Modality, dataset.BodyPartExamined = "OT", ""
    assert "12 bits" in refusal(to_bytes(dataset, uid.JPEGExtended12Bit))


@pytest.mark.parametrize("syntax", [uid.MPEG2MPML, uid.HTJ2K])
def test_other_syntaxes_are_refused(syntax):
    assert "transfer syntax" in refusal(to_bytes(radiograph(noise((35, 33), 8)), syntax, b"abcd"))


@pytest.mark.parametrize("syntax", NATIVE)
def test_native_pixels_are_read_where_they_lie(syntax):
    image = noise((400, 500), 12)
    content = to_bytes(radiograph(image, bits=12), syntax)
    stored = read_stored(read_file(content, (), 10**6), Layout(400, 500, 16, 12, False))
    assert (stored == image).all()
    assert np.shares_memory(stored, np.frombuffer(content, np.uint8)) == (syntax != uid.DeflatedExplicitVRLittleEndian)


@pytest.mark.parametrize("length", [2, 3])
def test_native_pixels_behind_an_element_of_an_odd_length(length):
    image = noise((400, 500), 12)
    content = to_bytes(radiograph(image, bits=12), uid.ImplicitVRLittleEndian)
    at = content.index(struct.pack("<HHI", 0x7FE0, 0x0010, image.nbytes))
    before = struct.pack("<HHI", 0x7FDF, 0x1010, length) + bytes(length)
    stored = read_stored(read_file(content[:at] + before + content[at:], (), 10**6), Layout(400, 500, 16, 12, False))
    assert (stored == image).all()
    assert stored.flags.aligned


@pytest.mark.parametrize("surplus", [-2, -1000, 33, 5000])
def test_native_pixels_of_another_length_are_refused(surplus):
    dataset = radiograph(noise((31, 34), 8))
    dataset.PixelData = (dataset.PixelData + b"\0" * 6000)[: 31 * 34 + surplus // 2 * 2 + (34 if surplus > 0 else 0)]
    assert "disagrees" in refusal(to_bytes(dataset))


def test_native_pixels_with_little_padding_are_read():
    image = noise((31, 34), 8)
    dataset = radiograph(image)
    dataset.PixelData += b"\0" * 6
    assert (decode(to_bytes(dataset), PREPROCESS) == image).all()


def test_a_deflated_bomb_is_refused_before_it_fills_memory():
    dataset = radiograph(noise((2, 2), 8))
    dataset.PixelData = b"\0" * 20_000_000
    content = to_bytes(dataset, uid.DeflatedExplicitVRLittleEndian)
    assert len(content) < 100_000
    with pytest.raises(InputRefusedError, match="inflates to more than"):
        decode(content, Preprocess(input_size=64, max_pixels=1000))


def test_an_offset_table_of_two_frames_is_refused():
    frame = encode(noise((35, 33), 8), uid.JPEGLSLossless, 8)
    dataset = radiograph(noise((35, 33), 8))
    content = to_bytes(dataset, uid.JPEGLSLossless, frame)
    dataset.PixelData = encapsulate([frame, frame])
    two = to_bytes(dataset, uid.JPEGLSLossless)
    assert decode(content, PREPROCESS).shape == (35, 33)
    assert "one frame" in refusal(two)


def test_fragments_are_joined():
    image = noise((35, 33), 12)
    dataset = radiograph(image, bits=12)
    dataset.PixelData = encapsulate([encode(image, uid.JPEGLSLossless, 12)], fragments_per_frame=3)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    assert (decode(to_bytes(dataset, uid.JPEGLSLossless), PREPROCESS) == expected_gray(image, 12)).all()
