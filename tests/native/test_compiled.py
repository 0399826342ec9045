"""The kernels as nvcc compiles them for the Jetsons: registers, local memory, occupancy, instructions an output."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest

from tests.native import sass
from tests.native.build import PLUGIN
from tests.native.host_kernel import default_tactic, plan, tactic_count
from tests.native.layouts import LAYOUTS_OF
from tests.native.network_layers import NETWORK_LAYERS, network_layer
from tests.native.real_plugin import ARCHITECTURES, real_plugin

AIMS = {"float32": 24, "float16": 14, "int8": 16}
"""Instructions an output element, half of the channels 3x3 and half 5x5."""

RECORDED = PLUGIN / "instructions.csv"
COMPILER = "13.0"
"""The nvcc that the recorded figures come from."""

# sm_87: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
REGISTERS_OF_SM, SHARED_OF_SM, WARPS_OF_SM, BLOCKS_OF_SM = 64 * 1024, 164 * 1024, 48, 16
SHARED_RESERVED = 1024


@pytest.fixture(scope="module")
def library() -> Path:
    return real_plugin()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_instance_spills(library: Path, architecture: str) -> None:
    table = sass.resources(library, architecture)
    assert {(instance.dtype, instance.layout) for instance in table} == {
        (dtype, layout) for dtype, layouts in LAYOUTS_OF.items() for layout in layouts
    }
    assert {instance.stride for instance in table} == {1, 2}
    assert [instance for instance, used in table.items() if used.stack or used.local] == []


def resident_warps(registers: int, threads: int, shared: int) -> int:
    """Warps that an sm_87 multiprocessor holds at once. Registers are given out to warps by 256."""
    warps = -(-threads // 32)
    by_registers = REGISTERS_OF_SM // (-(-registers * 32 // 256) * 256) // warps
    blocks = min(by_registers, SHARED_OF_SM // (shared + SHARED_RESERVED), WARPS_OF_SM // warps, BLOCKS_OF_SM)
    return blocks * warps


def test_half_of_the_warps_fit(library: Path) -> None:
    """At the network's own layers, as they would be launched where nothing was timed."""
    registers = {
        (i.dtype, i.layout, i.stride, i.rows): used.registers
        for i, used in sass.resources(library, "87").items()
        if not i.hardswish
    }
    few = []
    for dtype, layouts in LAYOUTS_OF.items():
        for layout in layouts:
            for shape in NETWORK_LAYERS:
                layer = network_layer(dtype, layout, *shape)
                cut = plan(layer, default_tactic(layer))
                used = registers[dtype, layout, layer.stride, cut.rows_per_thread]
                warps = resident_warps(used, cut.block[0], cut.shared_bytes)
                if warps < WARPS_OF_SM // 2:
                    few.append((dtype, layout, shape, warps))
    assert few == []


def test_every_tactic_has_an_instance(library: Path) -> None:
    compiled = {(i.dtype, i.layout, i.stride, i.rows) for i in sass.resources(library, "87")}
    used = set()
    for dtype, layouts in LAYOUTS_OF.items():
        for layout in layouts:
            for stride in (1, 2):
                layer = network_layer(dtype, layout, 96, 28, stride)
                for tactic in range(1, tactic_count(dtype, layout) + 1):
                    used.add((dtype, layout, stride, plan(layer, tactic).rows_per_thread))
    assert used == compiled


def test_instructions_an_output(library: Path) -> None:
    found = sass.instructions_per_output(library, "87")
    for dtype, aim in AIMS.items():
        best = min(sum(figures.values()) / 2 for i, figures in found.items() if i.dtype == dtype and i.stride == 1)
        assert best <= aim, dtype
    release = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    if not re.search(rf"release {re.escape(COMPILER)},", release):
        pytest.skip(f"the recorded figures are nvcc {COMPILER}'s")
    with RECORDED.open() as file:
        recorded = {
            (row["type"], row["layout"], int(row["stride"]), int(row["rows"])): (float(row["3x3"]), float(row["5x5"]))
            for row in csv.DictReader(file)
        }
    assert recorded.keys() == {(i.dtype, i.layout, i.stride, i.rows) for i in found}
    slower = {
        i: (figures, recorded[i.dtype, i.layout, i.stride, i.rows])
        for i, figures in found.items()
        if figures[3] > 1.03 * recorded[i.dtype, i.layout, i.stride, i.rows][0]
        or figures[5] > 1.03 * recorded[i.dtype, i.layout, i.stride, i.rows][1]
    }
    assert slower == {}, "write the table anew, if it has to be: benchmarks/kernel_instructions.py --write"
