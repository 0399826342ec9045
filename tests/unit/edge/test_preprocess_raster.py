"""PNG and JPEG files of every kind: exact gray values, and the refusal of what is no faithful gray image."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest

from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode

PREPROCESS = Preprocess(input_size=64)
GRAY = np.random.default_rng(4).integers(0, 256, (37, 53), np.uint8)
SMOOTH = cv2.GaussianBlur(GRAY, (15, 15), 0)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows, depth, colour, *extra, columns=None, height=None, interlace=0):
    """A PNG of rows of packed bytes, filter 0; `extra` are chunks before the data."""
    raw = b"".join(b"\0" + bytes(row) for row in rows)
    header = struct.pack(">IIBBBBB", columns or len(rows[0]), height or len(rows), depth, colour, 0, 0, interlace)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    )


def written(image, suffix, *options):
    ok, content = cv2.imencode(suffix, image, list(options))
    assert ok
    return content.tobytes()


def gray_of(content):
    return decode(content, PREPROCESS)


def refusal(content, preprocess=PREPROCESS):
    with pytest.raises(InputRefusedError) as caught:
        decode(content, preprocess)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_png_of_8_bits_gray_rgb_and_opaque_alpha_are_the_same():
    opaque = np.full_like(GRAY, 255)
    for image in (GRAY, cv2.merge([GRAY] * 3), cv2.merge([GRAY, GRAY, GRAY, opaque])):
        assert (gray_of(written(image, ".png")) == GRAY).all()


def test_png_of_gray_and_alpha():
    with_alpha = np.dstack([GRAY, np.full_like(GRAY, 255)]).reshape(37, -1)
    assert (gray_of(png(with_alpha, 8, 4, columns=53)) == GRAY).all()
    with_alpha[3, 1] = 254
    assert "transparent" in refusal(png(with_alpha, 8, 4, columns=53))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_png_of_few_bits_are_scaled_to_8(depth):
    levels = 1 << depth
    values = np.arange(levels * 8).reshape(2, -1) % levels
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :].reshape(2, -1)
    content = png(np.packbits(bits, axis=1), depth, 0, columns=values.shape[1])
    assert (gray_of(content) == values * (255 // (levels - 1))).all()


def test_png_palette_of_grays_and_of_colours():
    order = np.random.default_rng(1).permutation(256).astype(np.uint8)
    grays = chunk(b"PLTE", np.repeat(order, 3).tobytes())
    assert (gray_of(png(GRAY, 8, 3, grays)) == order[GRAY]).all()
    colours = chunk(b"PLTE", np.roll(np.arange(768) % 256, 1).astype(np.uint8).tobytes())
    assert "in colour" in refusal(png(GRAY, 8, 3, colours))


@pytest.mark.parametrize("top", [4095, 65535])
def test_png_of_16_bits_is_stretched_to_its_range(top):
    image = np.linspace(17, top, 37 * 53).astype(np.uint16).reshape(37, 53)
    expected = np.rint((image - 17.0) / (top - 17) * 255)
    for content in (written(image, ".png"), written(cv2.merge([image] * 3), ".png")):
        assert (gray_of(content) == expected).all()


def test_png_of_16_bits_without_contrast():
    assert "same value" in refusal(written(np.full((5, 5), 1000, np.uint16), ".png"))


def test_png_in_colour_by_one_level():
    image = cv2.merge([GRAY] * 3)
    image[20, 30, 1] ^= 1
    assert "in colour" in refusal(written(image, ".png"))


def test_jpeg_gray_and_neutral_colour():
    gray = gray_of(written(SMOOTH, ".jpg"))
    assert (gray == cv2.imdecode(np.frombuffer(written(SMOOTH, ".jpg"), np.uint8), cv2.IMREAD_UNCHANGED)).all()
    assert np.abs(gray.astype(int) - SMOOTH).max() <= 6
    assert np.abs(gray_of(written(cv2.merge([SMOOTH] * 3), ".jpg")).astype(int) - SMOOTH).max() <= 6


@pytest.mark.parametrize(
    "option", [cv2.IMWRITE_JPEG_PROGRESSIVE, cv2.IMWRITE_JPEG_OPTIMIZE, cv2.IMWRITE_JPEG_RST_INTERVAL]
)
def test_jpeg_progressive_and_with_restarts(option):
    assert np.abs(gray_of(written(SMOOTH, ".jpg", option, 1)).astype(int) - gray_of(written(SMOOTH, ".jpg"))).max() <= 1


def test_jpeg_in_colour():
    assert "in colour" in refusal(written(cv2.merge([SMOOTH, SMOOTH, 255 - SMOOTH]), ".jpg"))


def exif(orientation, order="<"):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_must_be_upright(order):
    plain = written(SMOOTH, ".jpg")
    for orientation in range(1, 9):
        body = b"Exif\0\0" + exif(orientation, order)
        jpeg = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
        image = png(GRAY, 8, 0, chunk(b"eXIf", exif(orientation, order)))
        if orientation == 1:
            assert (gray_of(jpeg) == gray_of(plain)).all() and (gray_of(image) == GRAY).all()
        else:
            assert f"orientation is {orientation}" in refusal(jpeg)
            assert f"orientation is {orientation}" in refusal(image)


def test_an_animation():
    assert "animation" in refusal(png(GRAY, 8, 0, chunk(b"acTL", struct.pack(">II", 2, 0))))


def test_huge_headers_are_refused_before_decoding():
    content = png(GRAY[:1], 8, 0, columns=60_000, height=60_000)
    assert "60000 x 60000" in refusal(content)
    assert "60000 x 60000" in refusal(content[:40])
    jpeg = written(SMOOTH, ".jpg")
    at = jpeg.index(b"\xff\xc0") + 5
    assert "60000 x 60000" in refusal(jpeg[:at] + struct.pack(">HH", 60_000, 60_000) + jpeg[at + 4 :])
    exactly = Preprocess(input_size=64, max_pixels=37 * 53)
    assert decode(written(GRAY, ".png"), exactly).shape == (37, 53)
    assert "37" in refusal(written(GRAY, ".png"), Preprocess(input_size=64, max_pixels=37 * 53 - 1))


def test_headers_of_no_pixels():
    assert "0 x 37 pixels" in refusal(png(GRAY, 8, 0)[:16] + struct.pack(">I", 0) + png(GRAY, 8, 0)[20:])
    jpeg = written(SMOOTH, ".jpg")
    at = jpeg.index(b"\xff\xc0") + 5
    assert "0 pixels" in refusal(jpeg[:at] + b"\0\0" + jpeg[at + 2 :])


def test_data_that_ends_before_the_image_does_though_every_checksum_is_right():
    assert "damaged" in refusal(png(GRAY[:20], 8, 0, height=37))


@pytest.mark.parametrize(
    "content", [written(GRAY, ".png"), written(GRAY.astype(np.uint16) * 9, ".png")], ids=["8", "16"]
)
def test_every_cut_and_every_flip_of_a_png_is_refused(content):
    for length in range(8, len(content), 7):
        refusal(content[:length])
    for at in range(8, len(content), 5):
        refusal(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])


@pytest.mark.parametrize("option", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_every_cut_of_a_jpeg_is_refused(option):
    content = written(SMOOTH, ".jpg", *option)
    for length in range(3, len(content) - 2):
        refusal(content[:length])


def test_damaged_files_leave_standard_error_clean():
    program = (
        "import sys, numpy as np, cv2\nfrom edge.preprocess import Preprocess, decode\n"
        "from edge.errors import InputRefusedError\n"
        "image = np.random.default_rng(0).integers(0, 256, (99, 99), np.uint8)\n"
        "for suffix in '.png', '.jpg':\n"
        "    whole = cv2.imencode(suffix, image)[1]\n"
        "    for at in range(10, whole.size, 97):\n"
        "        flipped = whole.copy(); flipped[at] ^= 255\n"
        "        for content in whole[:at].tobytes(), flipped.tobytes():\n"
        "            try: decode(content, Preprocess(64))\n"
        "            except InputRefusedError: pass\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
