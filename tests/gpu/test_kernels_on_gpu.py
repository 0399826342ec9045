"""The tests that run the kernels and the plugin on a CPU, on a real GPU. Skipped, never passed, where there is none."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.gpu.build import ROOT
from tests.native import host_kernel, plugin_harness, reference
from tests.native.cases import sweep
from tests.native.layer import random_operands
from tests.native.layouts import FORMATS
from tests.native.network_layers import NETWORK_LAYERS, network_layer
from tests.native.test_kernel import (  # noqa: F401  (collected here once more)
    check,
    test_a_tactic_that_does_not_exist_is_refused,
    test_int8_at_the_ends_of_its_range,
    test_int8_rounds_ties_to_even,
    test_it_computes_the_layer,
    test_rows_may_be_wider_than_a_tile,
)
from tests.native.test_plugin import (  # noqa: F401
    test_a_life_from_the_builder_to_results,
    test_an_enqueue_needs_no_tactic_and_no_call_before_it,
)


def devices() -> int:
    """CUDA devices that the driver sees; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


if devices() == 0:
    pytest.skip("needs an NVIDIA GPU: the driver sees none", allow_module_level=True)


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(host_kernel.ON_GPU, "1")
    for cached in (host_kernel._library, plugin_harness._harness):
        cached.cache_clear()
    yield
    for cached in (host_kernel._library, plugin_harness._harness):
        cached.cache_clear()


@pytest.mark.parametrize(("dtype", "layout"), FORMATS)
@pytest.mark.parametrize("shape", NETWORK_LAYERS)
def test_every_tactic_computes_the_networks_layers(dtype: str, layout: str, shape: tuple[int, int, int]) -> None:
    layer = network_layer(dtype, layout, *shape)
    operands = random_operands(layer, np.random.default_rng(3))
    results = [
        host_kernel.run(layer, operands, tactic).y for tactic in range(1, host_kernel.tactic_count(dtype, layout) + 1)
    ]
    check(layer, operands, 1)
    for other in results[1:]:
        if dtype == "int8":
            np.testing.assert_array_equal(other, results[0])
        else:
            np.testing.assert_allclose(other, results[0], rtol=0, atol=4e-3 * float(np.abs(results[0]).max()))


def test_the_unfused_sequence_computes_the_same() -> None:
    """What the benchmark compares with is right, too."""
    for index, layer in enumerate(layer for layer in sweep(per_layout=20) if layer.layout == "linear"):
        operands = random_operands(layer, np.random.default_rng(index))
        y = host_kernel.run_unfused(layer, operands).y
        if layer.dtype == "int8":
            # Not to the bit, as by the emulator: nvcc may fuse a multiplication with an addition.
            codes = reference.int8(
                replace(layer, activation="none"), replace(operands, bias=np.zeros_like(operands.bias))
            )
            expected = reference.int8_bias(layer, codes, operands.bias)
            assert np.abs(y.astype(int) - expected).max() <= 1
        else:
            expected, magnitudes = reference.exact(layer, operands)
            tolerance = 1e-6 if layer.dtype == "float32" else 2e-3
            assert np.all(np.abs(y - expected) <= tolerance * np.maximum(np.abs(expected).max(), magnitudes))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_has_nothing_to_say(tool: str) -> None:
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer, of the CUDA toolkit")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.native.sanitized_sweep"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "ERROR SUMMARY: 0 errors" in done.stdout or "0 hazards displayed" in done.stdout
    words = next(line for line in done.stdout.splitlines() if line.endswith("right")).split()
    assert int(words[0]) >= 150
    assert words[0] == words[2]
