"""JPEG lossless by GDCM against an encoder written plainly after ITU-T T.81, and GDCM's crashes contained."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import uid

from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode
from tests.unit.edge.dicom_writer import radiograph, to_bytes

ROOT = Path(__file__).resolve().parents[3]
PREPROCESS = Preprocess(input_size=64)
PROCESS_14, SELECTION_1 = uid.JPEGLossless, uid.JPEGLosslessSV1


def predicted(image, row, column, first_row, predictor, precision):
    """Table H.1 and H.1.1, sample by sample."""
    if row == first_row:
        return int(image[row, column - 1]) if column else 1 << (precision - 1)
    if column == 0:
        return int(image[row - 1, 0])
    a, b, c = int(image[row, column - 1]), int(image[row - 1, column]), int(image[row - 1, column - 1])
    return [a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1][predictor - 1]


def encode(image, precision, predictor, restart_rows=0, code_lengths=None, shift=0):
    """A JPEG lossless stream; by default all 17 categories have codes of 5 bits."""
    rows, columns = image.shape
    lengths = code_lengths or [5] * 17
    codes, code, previous = {}, 0, 0
    order = sorted(range(17), key=lambda category: (lengths[category], category))
    for category in order:
        code <<= lengths[category] - previous
        codes[category], previous = f"{code:0{lengths[category]}b}", lengths[category]
        code += 1
    band = restart_rows or rows
    scans = []
    for first in range(0, rows, band):
        bits = []
        for row in range(first, min(first + band, rows)):
            for column in range(columns):
                difference = (
                    int(image[row, column]) - predicted(image, row, column, first, predictor, precision)
                ) & 0xFFFF
                difference -= 65536 if difference > 32768 else 0
                category = abs(difference).bit_length()
                bits.append(codes[category])
                if 0 < category < 16:
                    value = difference if difference > 0 else difference + (1 << category) - 1
                    bits.append(f"{value:0{category}b}")
        text = "".join(bits)
        text += "1" * (-len(text) % 8)
        scans.append(int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00"))
    counts = bytes(lengths.count(length) for length in range(1, 17))
    segments = [(0xC3, struct.pack(">BHHB3B", precision + shift, rows, columns, 1, 1, 0x11, 0))]
    segments.append((0xC4, b"\0" + counts + bytes(order)))
    if restart_rows:
        segments.append((0xDD, struct.pack(">H", restart_rows * columns)))
    segments.append((0xDA, bytes((1, 1, 0, predictor, 0, shift))))
    header = b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    joined = scans[0]
    for index, scan in enumerate(scans[1:]):
        joined += b"\xff" + bytes([0xD0 + index % 8]) + scan
    return b"\xff\xd8" + header + joined + b"\xff\xd9"


def noise(shape, precision, seed=1):
    return (
        np.random.default_rng(seed).integers(0, 1 << precision, shape).astype(np.uint8 if precision == 8 else np.uint16)
    )


def gray_of(image, frame, precision, syntax=PROCESS_14):
    window = {"WindowCenter": 1 << precision - 1, "WindowWidth": 1 << precision}
    return decode(to_bytes(radiograph(image, bits=precision, **window), syntax, frame), PREPROCESS)


def expected(image, precision):
    return np.rint(image.astype(float) / ((1 << precision) - 1) * 255)


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize(
    ("precision", "shape"), [(8, (9, 13)), (12, (1, 5)), (12, (7, 1)), (14, (17, 31)), (16, (23, 19))]
)
def test_every_predictor(predictor, precision, shape):
    image = noise(shape, precision)
    image.flat[:3] = [(1 << precision) - 1, 0, (1 << precision) - 1][: image.size]
    frame = encode(image, precision, predictor)
    assert (gray_of(image, frame, precision) == expected(image, precision)).all()


def test_a_difference_of_32768_has_a_category_of_its_own():
    image = np.array([[0, 32768, 0, 65535]], np.uint16)
    assert (gray_of(image, encode(image, 16, 1), 16) == expected(image, 16)).all()


@pytest.mark.parametrize("restart_rows", [1, 3, 20])
@pytest.mark.parametrize("predictor", [1, 4, 7])
def test_restart_intervals(restart_rows, predictor):
    image = noise((25, 11), 12)
    frame = encode(image, 12, predictor, restart_rows)
    assert (gray_of(image, frame, 12) == expected(image, 12)).all()


def test_codes_of_1_to_16_bits():
    lengths = [*range(16, 0, -1), 16]
    image = noise((40, 40), 12)
    image[5:] //= 64
    frame = encode(image, 12, 1, code_lengths=lengths)
    assert (gray_of(image, frame, 12) == expected(image, 12)).all()


def test_point_transform():
    image = noise((9, 9), 12)
    frame = encode(image >> 4, 8, 1, shift=4)
    assert (gray_of(image, frame, 12) == expected(image >> 4 << 4, 12)).all()


def test_first_order_prediction_has_a_syntax_of_its_own():
    image = noise((600, 500), 16)
    assert (gray_of(image, encode(image, 16, 1), 16, SELECTION_1) == expected(image, 16)).all()


@pytest.mark.parametrize("predictor", range(1, 8))
def test_the_test_encoder_by_opencv(predictor):
    image = noise((31, 33), 8)
    frame = encode(image, 8, predictor)
    assert (cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_UNCHANGED) == image).all()


def test_damage_is_refused():
    image = noise((31, 33), 12)
    frame = encode(image, 12, 1, restart_rows=8)
    scan = frame.index(b"\xff\xda") + 10
    middle = (scan + len(frame)) // 2
    for damaged in (
        frame[:-2],
        frame[:middle],
        frame[:middle] + b"\xff\xd9",
        frame[:middle] + frame[middle + 5 :],
        frame[:middle] + b"\xff\xff\xff" + frame[middle:],
        frame.replace(b"\xff\xd1", b"\xff\xd2"),
        frame.replace(b"\xff\xd1", b""),
        frame.replace(b"\xff\xc4", b"\xff\xc5", 1),
        frame[: scan - 3] + b"\x09" + frame[scan - 2 :],
    ):
        assert damaged != frame
        with pytest.raises(InputRefusedError):
            gray_of(image, damaged, 12)


def damaged_at_random(frame, seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damaged = np.frombuffer(frame, np.uint8).copy()
        damaged[rng.integers(2, damaged.size, 3)] = rng.integers(0, 256, 3)
        yield damaged.tobytes()


def test_random_damage_ends_in_an_image_or_a_refusal(capfd):
    image = noise((31, 33), 12)
    refused = 0
    for damaged in damaged_at_random(encode(image, 12, 1), 8, 100):
        try:
            assert gray_of(image, damaged, 12).shape == image.shape
        except InputRefusedError:
            refused += 1
    assert refused > 30
    assert capfd.readouterr() == ("", "")  # GDCM and libjpeg write of damage to the terminal


def children():
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def gdcm_process():
    (pid,) = (
        pid for pid in children() if b"edge.gdcm_process" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    )
    return pid


def test_a_process_that_died_between_images_is_replaced():
    image = noise((31, 33), 12)
    frame = encode(image, 12, 1)
    gray_of(image, frame, 12)
    first = gdcm_process()
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert (gray_of(image, frame, 12) == expected(image, 12)).all()
    assert gdcm_process() != first


def test_a_process_that_dies_of_an_image_costs_that_image_only():
    image = noise((31, 33), 12)
    frame = encode(image, 12, 1)
    gray_of(image, frame, 12)
    os.kill(gdcm_process(), signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(gray_of, image, frame, 12)
        while not waiting.running():
            time.sleep(0.01)
        time.sleep(0.2)  # lets it reach the stopped process; if it did not, the process is replaced, as above
        os.kill(gdcm_process(), signal.SIGABRT)
        os.kill(gdcm_process(), signal.SIGCONT)
        with pytest.raises(InputRefusedError, match="makes the decoder GDCM fail"):
            waiting.result()
    assert (gray_of(image, frame, 12) == expected(image, 12)).all()


def test_a_stream_that_makes_gdcm_abort_is_refused(capfd):
    """4 bits a sample, where the codes are those of 12: GDCM 3.2 calls abort()."""
    image = noise((31, 33), 12)
    frame = encode(image, 12, 1)
    assert frame[6] == 12
    with pytest.raises(InputRefusedError, match="damaged"):
        gray_of(image, frame[:6] + b"\x04" + frame[7:], 12)
    assert (gray_of(image, frame, 12) == expected(image, 12)).all()
    assert capfd.readouterr() == ("", "")


def test_signals_to_the_whole_group_leave_the_process_to_finish():
    image = noise((31, 33), 12)
    frame = encode(image, 12, 1)
    gray_of(image, frame, 12)
    pid = gdcm_process()
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert (gray_of(image, frame, 12) == expected(image, 12)).all()
    assert gdcm_process() == pid


def test_threads_and_forked_processes_do_not_mix_up_their_images():
    images = [noise((31, 33), 12, seed) for seed in range(8)]
    frames = [encode(image, 12, 1) for image in images]

    def right(index):
        return bool((gray_of(images[index], frames[index], 12) == expected(images[index], 12)).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(right, range(8)))
    own = gdcm_process()
    with multiprocessing.get_context("fork").Pool(2, initializer=signal.alarm, initargs=(60,)) as pool:
        assert all(pool.starmap(decoded_right, zip(images, frames)))
    assert gdcm_process() == own and right(0)


def decoded_right(image, frame):
    return bool((gray_of(image, frame, 12) == expected(image, 12)).all())


def test_without_gdcm_the_message_says_what_to_install(tmp_path):
    image = noise((31, 33), 12)
    path = tmp_path / "image.dcm"
    path.write_bytes(to_bytes(radiograph(image, bits=12), PROCESS_14, encode(image, 12, 1)))
    (tmp_path / "gdcm.py").write_text("raise ImportError('as if it were not installed')")
    program = (
        "import sys; from pathlib import Path\n"
        "from edge.preprocess import Preprocess, decode; from edge.errors import EdgeError\n"
        "try: decode(Path(sys.argv[1]), Preprocess(64))\n"
        "except EdgeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.rstrip().endswith(
        "JPEG lossless, which needs a decoder that is not installed: pip install 'mdconv-edge[gdcm]'"
    )
    assert done.stderr == ""


PROGRAM = """
import os, sys
from pathlib import Path
from edge.preprocess import Preprocess, decode
decode(Path(sys.argv[1]), Preprocess(input_size=64))
print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["by itself", "killed"])
def test_the_process_ends_with_its_parent(tmp_path, end):
    """A program whose main module has no guard, as a user would write it."""
    image = noise((31, 33), 12)
    path = tmp_path / "image.dcm"
    path.write_bytes(to_bytes(radiograph(image, bits=12), PROCESS_14, encode(image, 12, 1)))
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", path, end],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (-9 if end == "killed" else 0, b"")
    child = Path(f"/proc/{int(done.stdout)}/cmdline")
    deadline = time.monotonic() + 30
    while child.exists() and child.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or not child.read_bytes()
