"""Decodes mutated DICOM, PNG and JPEG files: ``python -m tests.system.fuzz_files --count 5000``.

Every file is decoded or refused, within a bound of time, and no reason for a refusal names the patient.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import random
import sys
import time
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pydicom
import simplejpeg
from pydicom import uid

from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode
from tests.system.dicom_peers import chest
from tests.unit.edge.dicom_writer import radiograph, to_bytes
from tests.unit.edge.test_dicom_gdcm import PROCESS_14, encode

SECONDS = 20.0
"""For one file: far more than any of these takes, far less than for ever."""
PATIENT = "Zzyzx^Quentin"
PARAMETERS = Preprocess(64, max_pixels=4_000_000)


def originals() -> dict[str, bytes]:
    """One good file of each kind, small, by name."""
    wide = chest()
    narrow = (wide >> 4).astype(np.uint8)
    explicit = to_bytes(radiograph(wide, bits=12, PatientName=PATIENT))
    files = {
        "explicit": explicit,
        "implicit": _written(pydicom.dcmread(io.BytesIO(explicit)), uid.ImplicitVRLittleEndian),
        "big endian": _written(pydicom.dcmread(io.BytesIO(explicit)), uid.ExplicitVRBigEndian),
        "deflated": _written(pydicom.dcmread(io.BytesIO(explicit)), uid.DeflatedExplicitVRLittleEndian),
        "png": cv2.imencode(".png", narrow)[1].tobytes(),
        "png of 16 bits": cv2.imencode(".png", wide)[1].tobytes(),
        "jpeg": _jpeg(narrow),
        "JPEG Lossless": to_bytes(
            radiograph(wide, bits=12, PatientName=PATIENT), PROCESS_14, encode(wide, 12, predictor=1)
        ),
        "dicom jpeg": to_bytes(radiograph(narrow, PatientName=PATIENT), uid.JPEGBaseline8Bit, _jpeg(narrow)),
    }
    encoders = {uid.RLELossless: "pydicom", uid.JPEGLSLossless: "pyjpegls", uid.JPEG2000Lossless: "pylibjpeg"}
    for syntax, plugin in encoders.items():
        dataset = pydicom.dcmread(io.BytesIO(files["explicit"]))
        dataset.compress(syntax, encoding_plugin=plugin)
        files[syntax.name] = _written(dataset, syntax)
    return files


def _written(dataset: pydicom.Dataset, syntax: uid.UID) -> bytes:
    big = syntax == uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax
    if big:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    buffer = io.BytesIO()
    implicit = syntax == uid.ImplicitVRLittleEndian
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=not big, enforce_file_format=True)
    return buffer.getvalue()


def _jpeg(pixels: np.ndarray) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[..., np.newaxis]), colorspace="GRAY"))


def poke(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def poke_header(rng: random.Random, data: bytes) -> bytes:
    """Damage near the start, where the sizes and the codes are; in a DICOM behind its preamble."""
    start = 128 if data[128:132] == b"DICM" else 0
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 4))):
        changed[rng.randrange(start, min(len(data), start + 700))] = rng.choice(
            (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
        )
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def repeat_a_piece(rng: random.Random, data: bytes) -> bytes:
    at, length = rng.randrange(len(data)), rng.randrange(1, 200)
    return data[: at + length] + data[at : at + length] * rng.choice((1, 2, 50)) + data[at + length :]


def remove_a_piece(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 100) :]


def put_a_number(rng: random.Random, data: bytes) -> bytes:
    number = rng.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, rng.choice(("little", "big")))
    at = rng.randrange(len(data))
    return data[:at] + number + data[at + 4 :]


def graft(rng: random.Random, data: bytes) -> bytes:
    """The start of this file and the end of another."""
    other = rng.choice(_KEPT)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


_KEPT: list[bytes] = []
MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(poke, poke_header, cut, repeat_a_piece, remove_a_piece, put_a_number, graft),
)


def fuzz(count: int, seed: int) -> Counter[str]:
    """How many files were decoded and refused. Raises `AssertionError` for whatever else happens."""
    files = originals()
    _KEPT[:] = files.values()
    for name in ("implicit", "big endian", "deflated", *(name for name in files if "Lossless" in name)):
        assert np.array_equal(decode(files[name], PARAMETERS), decode(files["explicit"], PARAMETERS)), name
    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    for number in range(count):
        name, content = rng.choice(list(files.items()))
        for mutate in rng.choices(MUTATIONS, k=rng.choice((1, 1, 2, 3))):
            content = mutate(rng, content) or b"\0"
        where = f"file {number} ({name}), seed {seed}"
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
        start = time.monotonic()
        try:
            gray = decode(content, PARAMETERS)
        except InputRefusedError as error:
            assert "Zzyzx" not in str(error), where
            assert "\n" not in str(error), where
            ends["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        else:
            assert gray.dtype == np.uint8 and gray.ndim == 2 and gray.size <= PARAMETERS.max_pixels, where
            ends["decoded"] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
        took = time.monotonic() - start
        assert took < SECONDS, f"{where} took {took:.1f} s"
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ends = fuzz(options.count, options.seed)
    print(f"{options.count} damaged files, seed {options.seed}: {dict(ends)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
