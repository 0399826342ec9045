"""What decoding and resizing cost, in each library that could do them, as ratios to what the product does.

    python -m benchmarks.decode_speed [--rounds 7]

Milliseconds of one core, by the process's CPU time, so that other load weighs little; all in one run and in turns. What
gives a gray image is compared with the product in what the network would see: the largest difference of a gray level,
and the share of pixels that differ. Libraries that are not installed are left out, and named:
`pip install pillow imagecodecs pyspng isal zlib-ng deflate`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import simplejpeg
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames

from benchmarks.pipeline import read_plainly
from edge.codestream import read_jpeg2000_frame
from edge.dicom.display import WANTED, display_table
from edge.dicom.reader import read_file as read_dicom
from edge.grayscale import apply_table
from edge.guard import ImageLimits, check_image
from edge.pipeline import read_file
from edge.preprocess import Preprocess, decode, resize
from mdconv.data.phantom import render

SECONDS = 0.15
"""How long one way runs in one round, at least once."""
PREPROCESS = Preprocess(448)

Ways = Mapping[str, Callable[[], Any]]


def library(name: str) -> Any:
    """The module, or None; says once that it is left out."""
    try:
        return import_module(name)
    except ImportError:
        print(f"left out: {name} is not installed", file=sys.stderr)
        return None


PILLOW, IMAGECODECS, PYSPNG = library("PIL.Image"), library("imagecodecs"), library("pyspng")
ISAL, ZLIB_NG, DEFLATE = library("isal.isal_zlib"), library("zlib_ng.zlib_ng"), library("deflate")


def given(library: Any, ways: Callable[[], Ways]) -> Ways:
    return ways() if library is not None else {}


def real(name: str) -> Path:
    found = get_testdata_file(name)
    assert isinstance(found, str)
    return Path(found)


def stages(path: Path) -> Ways:
    """What the pipeline does with one file, step by step."""
    content = path.read_bytes()
    gray = decode(content, PREPROCESS)

    def everything() -> None:
        whole = read_file(path, 1 << 30)
        hashlib.sha256(whole).hexdigest()
        image = decode(whole, PREPROCESS)
        check_image(image, ImageLimits())
        resize(image, PREPROCESS)

    return {
        "all of it": everything,
        "reading the file": lambda: read_file(path, 1 << 30),
        "SHA-256": lambda: hashlib.sha256(content).hexdigest(),
        "decoding": lambda: decode(content, PREPROCESS),
        "the guard's limits": lambda: check_image(gray, ImageLimits()),
        "resizing": lambda: resize(gray, PREPROCESS),
        "for comparison: the plain loop's reading": lambda: read_plainly(path, PREPROCESS.input_size),
    }


def png(content: bytes) -> Ways:
    """Whole decoders."""
    array = np.frombuffer(content, np.uint8)
    return {
        "the product (OpenCV, and every checksum)": lambda: decode(content, PREPROCESS),
        "OpenCV": lambda: cv2.imdecode(array, cv2.IMREAD_UNCHANGED),
        **given(PILLOW, lambda: {"pillow": lambda: np.asarray(PILLOW.open(io.BytesIO(content)))}),
        **given(PYSPNG, lambda: {"pyspng": lambda: pyspng_gray(content)}),
        **given(IMAGECODECS, lambda: {"imagecodecs (libpng)": lambda: IMAGECODECS.png_decode(content)}),
        **given(IMAGECODECS, lambda: {"imagecodecs (libspng)": lambda: IMAGECODECS.spng_decode(content)}),
    }


def pyspng_gray(content: bytes) -> Any:
    gray = PYSPNG.load(content)
    return gray[..., 0] if gray.ndim == 3 else gray


def inflating(content: bytes, size: int) -> Ways:
    """The part of a PNG decoder that libraries differ in."""
    deflated, at = b"", 8
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        deflated += content[at + 8 : at + 8 + length] if content[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    return {
        "OpenCV, inflating and all else": lambda: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED),
        "zlib": lambda: zlib.decompress(deflated),
        **given(ZLIB_NG, lambda: {"zlib-ng": lambda: ZLIB_NG.decompress(deflated)}),
        **given(ISAL, lambda: {"ISA-L (isal)": lambda: ISAL.decompress(deflated)}),
        **given(DEFLATE, lambda: {"libdeflate (deflate)": lambda: DEFLATE.zlib_decompress(deflated, size)}),
    }


def jpeg(gray: NDArray[np.uint8]) -> Ways:
    content = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    least = {"min_height": PREPROCESS.input_size, "min_width": PREPROCESS.input_size, "min_factor": 1}

    def draft() -> Any:
        image = PILLOW.open(io.BytesIO(content))
        image.draft("L", (PREPROCESS.input_size, PREPROCESS.input_size))
        return np.asarray(image)

    return {
        "the product (simplejpeg)": lambda: decode(content, PREPROCESS),
        "OpenCV": lambda: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE),
        **given(PILLOW, lambda: {"pillow": lambda: np.asarray(PILLOW.open(io.BytesIO(content)))}),
        **given(IMAGECODECS, lambda: {"imagecodecs": lambda: IMAGECODECS.jpeg8_decode(content)}),
        "simplejpeg, scaled while decoding": lambda: simplejpeg.decode_jpeg(content, colorspace="GRAY", **least)[
            ..., 0
        ],
        **given(PILLOW, lambda: {"pillow, scaled while decoding": draft}),
    }


def jpeg2000(path: Path) -> Ways:
    content, dataset = path.read_bytes(), pydicom.dcmread(path)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    bits = read_jpeg2000_frame(stream).precision
    openjpeg = import_module("openjpeg")
    table = table_of(path, openjpeg.decode(stream))

    def pillow(halvings: int) -> Callable[[], Any]:
        def run() -> Any:
            image = PILLOW.open(io.BytesIO(stream))
            image.reduce = halvings
            # Pillow shifts the samples up to 16 bits.
            samples: NDArray[np.uint16] = np.asarray(image).astype(np.uint16) >> np.uint16(16 - bits)
            return apply_table(samples, table)

        return run

    return {
        "the product (OpenCV)": lambda: decode(content, PREPROCESS),
        "pylibjpeg-openjpeg": lambda: apply_table(openjpeg.decode(stream), table),
        **given(IMAGECODECS, lambda: {"imagecodecs": lambda: apply_table(IMAGECODECS.jpeg2k_decode(stream), table)}),
        **given(PILLOW, lambda: {"pillow": pillow(0)}),
        **given(PILLOW, lambda: {"pillow, at half the resolution": pillow(1)}),
    }


def table_of(path: Path, stored: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The gray of each stored value, as the product has it."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    elements = read_dicom(path.read_bytes(), WANTED, 1 << 30).data_set
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    return display_table(elements, stored, dataset.BitsStored, False, inverted)


def raw_dicom(path: Path) -> Ways:
    content, dataset = path.read_bytes(), pydicom.dcmread(path)
    stored = dataset.pixel_array
    table = table_of(path, stored)
    return {
        "the product, from the file's content to gray": lambda: decode(content, PREPROCESS),
        "pydicom, from the file's content to stored values": lambda: pydicom.dcmread(io.BytesIO(content)).pixel_array,
        "the table of gray levels, by OpenCV (in the product)": lambda: apply_table(stored, table),
        "the same, by NumPy's take": lambda: np.take(table, stored, mode="clip"),
        "the same, by NumPy's index": lambda: table[stored],
    }


def resizing(gray: NDArray[np.uint8]) -> Ways:
    side = PREPROCESS.input_size
    halves = (gray.shape[1] // 2, gray.shape[0] // 2)
    even = np.ascontiguousarray(gray[: halves[1] * 2, : halves[0] * 2])

    def in_two_steps() -> Any:
        return cv2.resize(
            cv2.resize(even, halves, interpolation=cv2.INTER_AREA), (side, side), interpolation=cv2.INTER_AREA
        )

    def pillow() -> Any:
        return np.asarray(PILLOW.fromarray(gray).resize((side, side), PILLOW.Resampling.BOX))

    return {
        "the product (OpenCV, area)": lambda: resize(gray, PREPROCESS),
        "OpenCV, exact halves and then area": in_two_steps,
        "OpenCV, bilinear": lambda: cv2.resize(gray, (side, side), interpolation=cv2.INTER_LINEAR),
        **given(PILLOW, lambda: {"pillow, box": pillow}),
    }


def groups(scratch: Path) -> Iterator[tuple[str, Ways]]:
    phantom, raw, compressed = scratch / "phantom.png", real("RG1_UNCR.dcm"), real("RG1_J2KR.dcm")
    drawn = render(4_000_000, 1024).image
    cv2.imwrite(str(phantom), drawn)
    radiograph = decode(raw, PREPROCESS)
    size = drawn.size + drawn.shape[0]
    yield "stages, PNG 1024 x 1024", stages(phantom)
    yield "stages, raw DICOM 1841 x 1955", stages(raw)
    written = {"OpenCV": phantom.read_bytes()}
    if PILLOW is not None:
        stream = io.BytesIO()
        PILLOW.fromarray(drawn).save(stream, "PNG")
        written["pillow"] = stream.getvalue()
    for writer, content in written.items():
        yield f"PNG 1024 x 1024, written by {writer}", png(content)
        yield f"inflating it, written by {writer}", inflating(content, size)
    yield "JPEG 1024 x 1024", jpeg(drawn)
    yield "JPEG 1841 x 1955", jpeg(radiograph)
    yield "JPEG 2000 in DICOM, 1841 x 1955, lossless", jpeg2000(compressed)
    yield "raw DICOM 1841 x 1955", raw_dicom(raw)
    yield "resizing 1024 x 1024", resizing(drawn)
    yield "resizing 1841 x 1955", resizing(radiograph)


def cpu_milliseconds(run: Callable[[], object]) -> float:
    """The median of the calls in `SECONDS`."""
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while not found or time.perf_counter() < end:
        start = time.process_time()
        run()
        found.append((time.process_time() - start) * 1e3)
    return statistics.median(found)


def difference(found: object, expected: object) -> str:
    """How the network's input differs between two gray images; empty where one of them is no gray image."""
    if not all(isinstance(one, np.ndarray) and one.ndim == 2 and one.dtype == np.uint8 for one in (found, expected)):
        return ""
    one, other = (resize(np.ascontiguousarray(image), PREPROCESS).astype(int) for image in (found, expected))
    gap = np.abs(one - other)
    return f"{gap.max()} levels, {np.count_nonzero(gap) / gap.size:.1%} of pixels" if gap.any() else "none"


def compare(title: str, ways: Ways, rounds: int) -> list[dict[str, Any]]:
    """Let all take turns, after one that is not counted; prints medians, ratios to the first, and differences."""
    expected = next(iter(ways.values()))()
    turns = [{name: cpu_milliseconds(run) for name, run in ways.items()} for _ in range(rounds + 1)][1:]
    base, rows = next(iter(ways)), []
    print(f"\n{title}", flush=True)
    for name, run in ways.items():
        ratios = sorted(turn[name] / turn[base] for turn in turns)
        median, ratio = statistics.median(turn[name] for turn in turns), statistics.median(ratios)
        differs = difference(run(), expected)
        rows.append({"what": title, "way": name, "ms": round(median, 3), "ratio": round(ratio, 3), "differs": differs})
        span = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"  {name:<56}{median:>8.2f} ms  ratio {ratio:.2f} {span:<16} {differs}", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as scratch:
        rows = [row for title, ways in groups(Path(scratch)) for row in compare(title, ways, options.rounds)]
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
