"""The emulator on small kernels (emulator_probes.cu) whose traffic and faults are known by hand."""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.native.build import EMULATOR_SOURCES, HERE, library
from tests.native.host_report import HostOptions, HostReport, Report, error_name, report_of

PROBES = (
    "read_global<uint8_t>", "read_global<uint32_t>", "read_global<uint4>", "write_some", "take_turns",
    "touch_shared<uint8_t>", "touch_shared<uint32_t>", "touch_shared<uint2>", "touch_shared<uint4>", "neighbours",
    "write_together", "read_what_the_last_block_wrote", "end_early", "meet_in_two_places", "count_threads",
)  # fmt: skip
"""As kProbes."""

SIZE = 4096


@functools.cache
def probes() -> Any:
    return ctypes.CDLL(str(library("emulator_probes", [HERE / "emulator_probes.cu", *EMULATOR_SOURCES])))


def aligned(size: int) -> NDArray[np.uint8]:
    whole = np.zeros(size + 256, np.uint8)
    start = -whole.ctypes.data % 256
    return whole[start : start + size]


def launch(
    probe: str,
    a: int = 0,
    b: int = 0,
    *,
    threads: tuple[int, ...] = (32, 1, 1),
    blocks: tuple[int, ...] = (1, 1, 1),
    shared: int = SIZE,
    count: bool = True,
    check: bool = True,
    drop_barrier: int = -1,
    y_bytes: int = SIZE,
) -> tuple[str, NDArray[np.uint32], Report]:
    """The error's name, what the kernel wrote, and the report."""
    x, y, report = aligned(SIZE), aligned(SIZE), HostReport()
    x[:] = np.arange(SIZE) % 251
    error = probes().run_probe(
        PROBES.index(probe), (ctypes.c_uint32 * 3)(*blocks), (ctypes.c_uint32 * 3)(*threads), shared,
        x.ctypes.data_as(ctypes.c_void_p), SIZE, y.ctypes.data_as(ctypes.c_void_p), y_bytes, a, b,
        byref(HostOptions(count, check, drop_barrier)), byref(report),
    )  # fmt: skip
    return error_name(probes(), error), y.view(np.uint32), report_of(report)


@pytest.mark.parametrize(
    ("probe", "start", "step", "sectors"),
    [
        ("read_global<uint32_t>", 0, 4, 4),  # 128 bytes, aligned
        ("read_global<uint32_t>", 4, 4, 5),  # the same, across five
        ("read_global<uint32_t>", 0, 32, 32),
        ("read_global<uint32_t>", 0, 8, 8),
        ("read_global<uint32_t>", 64, 0, 1),  # all lanes the same
        ("read_global<uint8_t>", 0, 1, 1),
        ("read_global<uint8_t>", 31, 1, 2),
        ("read_global<uint4>", 0, 16, 16),
        ("read_global<uint4>", 16, 16, 17),
    ],
)
def test_sectors_of_a_request(probe: str, start: int, step: int, sectors: int) -> None:
    error, _, report = launch(probe, start, step)
    assert error == "cudaSuccess"
    assert (report.global_load_requests, report.global_load_sectors) == (1, sectors)
    assert (report.global_store_requests, report.global_store_sectors) == (1, 1)
    assert report.global_bytes == 32 * (sectors + 1)


def test_each_warp_makes_its_own_requests() -> None:
    *_, report = launch("read_global<uint32_t>", 0, 4, threads=(80, 1, 1), blocks=(3, 1, 1))
    assert report.blocks == 3
    assert (report.global_load_requests, report.global_load_sectors) == (9, 3 * (4 + 4 + 2))
    assert report.global_store_requests == 3  # by the last thread of each block


@pytest.mark.parametrize(("every", "sectors"), [(1, 4), (2, 4), (8, 4), (16, 2), (32, 1)])
def test_lanes_that_want_nothing_touch_no_sector(every: int, sectors: int) -> None:
    *_, report = launch("write_some", every)
    assert (report.global_store_requests, report.global_store_sectors) == (1, sectors)


def test_lanes_stay_in_step_where_some_want_nothing() -> None:
    *_, report = launch("take_turns")
    assert (report.global_load_requests, report.global_load_sectors) == (2, 8)


@pytest.mark.parametrize(
    ("probe", "stride", "wavefronts", "minimum"),
    [
        ("touch_shared<uint32_t>", 4, 1, 1),
        ("touch_shared<uint32_t>", 8, 2, 1),
        ("touch_shared<uint32_t>", 12, 1, 1),  # odd strides in words meet no bank twice
        ("touch_shared<uint32_t>", 16, 4, 1),
        ("touch_shared<uint32_t>", 128, 32, 1),
        ("touch_shared<uint32_t>", 0, 1, 1),  # broadcast
        ("touch_shared<uint8_t>", 1, 1, 1),  # four lanes a word
        ("touch_shared<uint8_t>", 128, 32, 1),
        ("touch_shared<uint2>", 8, 2, 2),
        ("touch_shared<uint2>", 16, 4, 2),
        ("touch_shared<uint4>", 16, 4, 4),
        ("touch_shared<uint4>", 32, 8, 4),
    ],
)
def test_wavefronts_of_a_request(probe: str, stride: int, wavefronts: int, minimum: int) -> None:
    *_, report = launch(probe, stride, check=False)
    assert (report.shared_store_requests, report.shared_load_requests) == (1, 1)
    assert (report.shared_store_wavefronts, report.shared_load_wavefronts) == (wavefronts, wavefronts)
    assert (report.shared_store_minimum, report.shared_load_minimum) == (minimum, minimum)
    assert report.conflict_share == pytest.approx(1 - minimum / wavefronts)
    assert sorted(report.sites.values()) == [(1, wavefronts, minimum)] * 2
    assert all(place.startswith("emulator_probes.cu:") for place in report.sites)


def test_barriers_let_neighbours_meet() -> None:
    error, y, report = launch("neighbours", threads=(64, 1, 1))
    assert error == "cudaSuccess"
    assert (report.findings, report.barrier_sites) == (0, 3)
    pairs = np.arange(64) // 2
    np.testing.assert_array_equal(y[:64], 2 * (4 * pairs + 1))


@pytest.mark.parametrize(
    ("barrier", "what"),
    [
        (0, "uninitialised read"),
        (1, "race: write without a barrier since another thread's read"),
        (2, "race: read without a barrier since the write"),
    ],
)
def test_a_missing_barrier_is_found(barrier: int, what: str) -> None:
    *_, report = launch("neighbours", threads=(64, 1, 1), drop_barrier=barrier)
    assert report.findings > 0
    assert any(what in message for message in report.messages), report.messages
    assert all("thread" in message and "emulator_probes.cu:" in message for message in report.messages)


def test_two_writers_of_one_word_race() -> None:
    *_, report = launch("write_together")
    assert report.findings == 31
    assert "another thread's write" in report.messages[0]


def test_a_block_finds_nothing_of_the_one_before() -> None:
    _, y, report = launch("read_what_the_last_block_wrote", blocks=(2, 1, 1))
    assert report.findings == 32
    assert "uninitialised read" in report.messages[0]
    assert np.all(y[:32] == 0xCDCDCDCD)


@pytest.mark.parametrize("thread", [0, 1, 31, 63])
def test_a_thread_that_ends_early_while_others_wait_is_an_error(thread: int) -> None:
    error, _, report = launch("end_early", thread, threads=(64, 1, 1), count=False, check=False)
    assert error == "cudaErrorLaunchFailure"
    assert "barrier divergence" in report.messages[0] and "has ended" in report.messages[0]
    assert launch("end_early", -1)[0] == "cudaSuccess"  # and the next launch is not harmed


def test_barriers_in_two_places_do_not_meet() -> None:
    error, _, report = launch("meet_in_two_places", 16, count=False, check=False)
    assert error == "cudaErrorLaunchFailure"
    assert report.messages[0].count("waits at emulator_probes.cu:") == 2


@pytest.mark.parametrize(
    ("probe", "a", "b", "error"),
    [
        ("read_global<uint32_t>", 2, 4, "cudaErrorMisalignedAddress"),
        ("read_global<uint4>", 8, 16, "cudaErrorMisalignedAddress"),
        ("touch_shared<uint2>", 4, 0, "cudaErrorMisalignedAddress"),
        ("touch_shared<uint32_t>", 256, 0, "cudaErrorIllegalAddress"),
        ("touch_shared<uint32_t>", -4, 0, "cudaErrorIllegalAddress"),
    ],
)
def test_a_bad_address_ends_the_launch(probe: str, a: int, b: int, error: str) -> None:
    name, _, report = launch(probe, a, b, shared=1024, count=False, check=False)
    assert name == error
    assert "emulator_probes.cu:" in report.messages[0]
    assert launch("count_threads")[0] == "cudaSuccess"


@pytest.mark.parametrize(("y_bytes", "findings"), [(128, 0), (124, 1), (64, 16)])
def test_an_access_outside_the_tensors_is_found(y_bytes: int, findings: int) -> None:
    *_, report = launch("write_some", 1, y_bytes=y_bytes)
    assert report.findings == findings
    assert all("store outside the tensors" in message for message in report.messages)


@pytest.mark.parametrize(
    ("threads", "blocks", "shared", "error"),
    [
        ((1025, 1, 1), (1, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        ((32, 32, 2), (1, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        ((0, 1, 1), (1, 1, 1), 0, "cudaErrorInvalidConfiguration"),
        ((32, 1, 1), (1, 65536, 1), 0, "cudaErrorInvalidConfiguration"),
        ((32, 1, 1), (1, 1, 1), 48 * 1024 + 1, "cudaErrorInvalidValue"),
    ],
)
def test_a_launch_that_no_gpu_would_take(
    threads: tuple[int, ...], blocks: tuple[int, ...], shared: int, error: str
) -> None:
    assert launch("count_threads", threads=threads, blocks=blocks, shared=shared)[0] == error
    assert error_name(probes(), probes().peek_error()) == error
    assert error_name(probes(), probes().last_error()) == error
    assert probes().last_error() == 0


def test_more_shared_memory_is_there_for_the_asking() -> None:
    probe = "read_what_the_last_block_wrote"
    assert launch(probe, shared=64 * 1024)[0] == "cudaErrorInvalidValue"
    assert probes().allow_shared(PROBES.index(probe), 64 * 1024) == 0
    assert launch(probe, shared=64 * 1024)[0] == "cudaSuccess"


def test_a_planted_error_is_returned_once() -> None:
    probes().plant_error(719)
    error, y, _ = launch("count_threads")
    assert (error, y.any()) == ("cudaErrorLaunchFailure", False)
    assert launch("count_threads")[0] == "cudaSuccess"


def test_threads_and_blocks_know_where_they_stand() -> None:
    error, y, report = launch("count_threads", threads=(8, 3, 2), blocks=(2, 3, 3))
    assert (error, report.blocks) == ("cudaSuccess", 18)
    np.testing.assert_array_equal(y[: 18 * 48], np.arange(18 * 48))


def call(name: str, *arrays: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (*arrays, out))
    getattr(probes(), name)(len(arrays[0]), *pointers)
    return out


def halves(bits: NDArray[np.uint16]) -> NDArray[np.float16]:
    return bits.view(np.float16)


def test_every_half_becomes_a_float_and_comes_back() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    floats = call("half_to_float", bits, out=np.empty(65536, np.float32))
    np.testing.assert_array_equal(floats, halves(bits).astype(np.float32))
    back = call("float_to_half", floats, out=np.empty(65536, np.uint16))
    number = ~np.isnan(floats)
    np.testing.assert_array_equal(back[number], bits[number])
    assert np.all(back[~number] == 0x7FFF)


def test_floats_round_to_the_nearest_half() -> None:
    rng = np.random.default_rng(1)
    floats = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    halfway = np.arange(0x7BFF, dtype=np.uint16)  # between a half and the next: ties, and a little beside them
    ties = (halves(halfway).astype(np.float32) + halves(halfway + np.uint16(1)).astype(np.float32)) / 2
    floats = np.concatenate(
        [floats, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9)), -ties]
    )
    floats = np.concatenate([floats, np.float32([65519.99, 65520, 65536, 1e30, np.inf, -np.inf])])
    floats = floats[~np.isnan(floats)]
    bits = call("float_to_half", floats, out=np.empty(len(floats), np.uint16))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(bits, floats.astype(np.float16).view(np.uint16))


def nearest_half(value: Fraction) -> float:
    """Exact arithmetic: to nearest, half to even."""
    magnitude = abs(value)
    exponent = -14
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - 10)
    rounded = float(round(magnitude / unit) * unit)  # Python rounds a Fraction half to even
    return float("inf") if rounded >= 65536 else rounded


def test_half_arithmetic_rounds_once() -> None:
    rng = np.random.default_rng(2)
    # Exponents close together, so that sums cancel, and far apart, so that the smaller one decides ties or does not.
    a, b, c = (
        np.concatenate(
            [
                (rng.integers(0x3000, 0x4400, 3000) | rng.integers(0, 2, 3000) << 15),
                (rng.integers(0x0000, 0x7C00, 3000) | rng.integers(0, 2, 3000) << 15),
            ]
        ).astype(np.uint16)
        for _ in range(3)
    )
    results = halves(call("half_arithmetic", a, b, c, out=np.empty((len(a), 6), np.uint16)))
    for i, (x, y, z) in enumerate(zip(*(halves(bits).tolist() for bits in (a, b, c)))):
        exact = (
            Fraction(x) + Fraction(y),
            Fraction(x) * Fraction(y),
            Fraction(x) * Fraction(y) + Fraction(z),
        )
        for got, value in zip(results[i].tolist(), exact):
            assert abs(got) == nearest_half(value), (x, y, z)
            assert got == 0 or (got > 0) == (value > 0), (x, y, z)
        assert results[i, 3] == min(max(results[i, 2], 0), 1)
        assert (results[i, 4], results[i, 5]) == (min(x, y), max(x, y))


def test_word_arithmetic() -> None:
    rng = np.random.default_rng(3)
    a, b, c = (rng.integers(0, 2**32, 5000, dtype=np.uint32) for _ in range(3))
    dot, permuted, high, shifted = call("word_arithmetic", a, b, c, out=np.empty((5000, 4), np.uint32)).T
    products = a.view(np.int8).reshape(-1, 4).astype(np.int64) * b.view(np.int8).reshape(-1, 4)
    np.testing.assert_array_equal(dot, (products.sum(axis=1) + c.view(np.int32)).astype(np.uint32))
    np.testing.assert_array_equal(high, (a.astype(np.uint64) * b >> np.uint64(32)).astype(np.uint32))
    wide = b.astype(np.uint64) << np.uint64(32) | a
    np.testing.assert_array_equal(shifted, (wide >> (c & 31).astype(np.uint64)).astype(np.uint32))
    table = np.concatenate([a[:, None].view(np.uint8), b[:, None].view(np.uint8)], axis=1)
    for i in range(4):
        choice = c >> np.uint32(4 * i) & 15
        byte = table[np.arange(5000), choice & 7]
        byte = np.where(choice & 8, np.where(byte & 0x80, 0xFF, 0), byte)
        np.testing.assert_array_equal(permuted >> np.uint32(8 * i) & 0xFF, byte)


def test_rounding_to_int() -> None:
    values = np.float32([0.5, 1.5, -0.5, -1.5, 2.5, 2.4999998, 3e9, -3e9, np.inf, np.nan, 2147483520, -2147483648])
    expected = [0, 2, 0, -2, 2, 2, 2**31 - 1, -(2**31), 2**31 - 1, 0, 2147483520, -(2**31)]
    assert call("round_to_int", values, out=np.empty(len(values), np.int32)).tolist() == expected
