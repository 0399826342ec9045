"""What nvcc made of the kernels: registers, local memory, and the instructions of the straight-line arithmetic.

Reads the shipped library with NVIDIA's cuobjdump and nvdisasm (PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

COLUMNS = 4
"""Output columns of a thread (kColumns)."""

TYPES = ("float32", "float16", "int8")
LAYOUTS = ("linear", "chw4", "chw32", "hwc8")

_NAME = re.compile(r"(planar|interleaved_half)_kernelI(?:LNS_8DataTypeE(\d)ELNS_6LayoutE(\d)E)?Li(\d)ELi(\d+)ELb(\d)EE")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)\S*(?: (0x[0-9a-f]+) ;)?")
_BRANCHES = {"BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BREAK"}
_MULTIPLIES = {"float32": {"FFMA"}, "float16": {"HFMA2", "HMUL2", "HADD2"}, "int8": {"IDP"}}


@dataclass(frozen=True, order=True)
class Instance:
    """One compiled kernel; `rows` are a thread's."""

    dtype: str
    layout: str
    stride: int
    rows: int
    hardswish: bool

    @property
    def outputs(self) -> int:
        """Of a thread."""
        return COLUMNS * self.rows * (2 if self.layout == "hwc8" else 1)

    def multiplies(self, size: int) -> int:
        """Multiplying instructions of a thread for a kernel of `size`, the sums of half-precision rows included.

        int8: a dot product a row, and two for the fifth column of 5x5. float16: two outputs an instruction.
        """
        if self.dtype == "int8":
            return self.outputs * {3: 3, 5: 7}[size]
        if self.dtype == "float16":
            return self.outputs * (size * size + size - 1) // 2
        return self.outputs * size * size


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int
    local: int


def program(name: str) -> Path:
    """A program of NVIDIA's: of its PyPI package, else on PATH. Skips the test where there is none."""
    try:
        files = metadata.files(f"nvidia-cuda-{name}") or []
        return next(Path(str(file.locate())) for file in files if file.name == name)
    except (metadata.PackageNotFoundError, StopIteration):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"needs {name}, which PyPI has for Linux (nvidia-cuda-{name})")
        return Path(found)


def resources(library: Path, architecture: str) -> dict[Instance, Resources]:
    """Registers a thread, bytes of stack and of local memory, by kernel."""
    text = _run("--dump-resource-usage", "-arch", f"sm_{architecture}", str(library))
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    return {_instance(name): Resources(*map(int, figures)) for name, *figures in found if _NAME.search(name)}


def instructions_per_output(library: Path, architecture: str) -> dict[Instance, dict[int, float]]:
    """Instructions per output element of the straight-line code of 3x3 and of 5x5 kernels, by kernel without hardswish.

    From the load of the weights to the finished results: what lies between two branches and has the arithmetic in it. A
    3x3 kernel in the middle of a larger weight tensor has code of its own; the longest counts.
    """
    table: dict[Instance, dict[int, float]] = {}
    for instance, code in _functions(library, architecture):
        if not instance.hardswish:
            # Where the compiler lets two kernels share their last instructions, one enters the other's code midway.
            shared = _lengths(instance, _runs(code, entered=False))
            table[instance] = {**shared, **_lengths(instance, _runs(code, entered=True))}
    return table


def _lengths(instance: Instance, runs: Iterator[list[str]]) -> dict[int, float]:
    lengths: dict[int, float] = {}
    for run in runs:
        multiplies = sum(Counter(run)[name] for name in _MULTIPLIES[instance.dtype])
        for size in (3, 5):
            # Constants are made by the same instructions, a few.
            if 0 <= multiplies - instance.multiplies(size) <= max(4, instance.outputs // 4):
                lengths[size] = max(lengths.get(size, 0.0), len(run) / instance.outputs)
    return lengths


class _Instruction(NamedTuple):
    address: int
    name: str
    target: int | None
    """Of a branch."""


def _functions(library: Path, architecture: str) -> Iterator[tuple[Instance, list[_Instruction]]]:
    text = _run("-sass", "-arch", f"sm_{architecture}", str(library))
    for part in text.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        if _NAME.search(name):
            found = _INSTRUCTION.findall(body)
            code = [_Instruction(int(at, 16), op, int(to, 16) if to and op == "BRA" else None) for at, op, to in found]
            yield _instance(name), code


def _runs(code: list[_Instruction], *, entered: bool) -> Iterator[list[str]]:
    """The instructions between two branches; with `entered`, a run ends, too, where a branch leads to."""
    targets = {instruction.target for instruction in code} if entered else set()
    run: list[str] = []
    for instruction in code:
        if instruction.address in targets:
            yield run
            run = []
        run.append(instruction.name)
        if instruction.name in _BRANCHES:
            yield run
            run = []


def _instance(name: str) -> Instance:
    match = _NAME.search(name)
    assert match is not None, name
    kind, dtype, layout, stride, rows, hardswish = match.groups()
    named = (TYPES[int(dtype)], LAYOUTS[int(layout)]) if kind == "planar" else ("float16", "hwc8")
    return Instance(*named, int(stride), int(rows), hardswish == "1")


def _run(*arguments: str) -> str:
    """What cuobjdump says. It calls nvdisasm, which lies elsewhere."""
    environment = {**os.environ, "NVDISASM_PATH": str(program("nvdisasm").parent)}
    command = [str(program("cuobjdump")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
