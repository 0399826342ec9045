"""Compile the kernels for this CPU, with the emulator: ``.venv/bin/python tests/native/build.py``.

Into ``.cache/native/``, again only when a source, a header or a flag changes: one object a source, then the library.
Needs a C++17 compiler (`CXX`, else c++) and nothing of CUDA.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLUGIN = ROOT / "plugin"
EMULATOR = PLUGIN / "host"
UNFUSED = ROOT / "benchmarks" / "kernels"
FOLDER = ROOT / ".cache" / "native"

# -O2 takes half as long again to compile and runs no faster.
FLAGS = (
    "-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas",  # nvcc's unroll
    "-Wno-maybe-uninitialized",  # g++ does not see that two branches ask the same thing
    "-fno-strict-aliasing",  # device code reads a register's bits through a pointer
    "-ffp-contract=off",  # a fused multiply-add is where the source says so
    f"-I{EMULATOR / 'include'}", f"-I{PLUGIN}", f"-I{EMULATOR}", f"-I{UNFUSED}",
)  # fmt: skip
NO_FLAGS: Mapping[Path, Sequence[str]] = MappingProxyType({})
# Not optimised: the instrumented templates would take minutes to compile.
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O0", "-g0")


EMULATOR_SOURCES = tuple(
    EMULATOR / f"{name}.cpp" for name in ("cuda_errors", "emulator", "fibers", "host_report", "observer")
)
"""The emulator without the kernels."""


def kernel_library(*, sanitized: bool = False) -> Path:
    """The shared library with the shipped kernels and host_run.h's functions."""
    sources = [*sorted(PLUGIN.glob("mdconv_kernel*.cu")), UNFUSED / "unfused.cu"]
    sources += [EMULATOR / "host_plan.cpp", EMULATOR / "host_run.cpp"]
    return library("mdconv_host", [*sources, *EMULATOR_SOURCES], sanitized=sanitized)


def library(
    name: str,
    sources: Sequence[Path],
    *,
    more_flags: Mapping[Path, Sequence[str]] = NO_FLAGS,
    soname: str = "",
    sanitized: bool = False,
) -> Path:
    """The shared library `name` of `sources`, of which some have `more_flags`.

    Raises `RuntimeError` with the compiler's words if that fails.
    """
    flags = [*FLAGS, *(SANITIZERS if sanitized else ())]
    headers = [path for folder in (PLUGIN, UNFUSED) for path in folder.rglob("*.*h") if path.is_file()]
    common = _digest(" ".join(flags).encode(), *(path.read_bytes() for path in sorted(headers)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _object(source, flags, more_flags.get(source, ()), common), sources))
    target = FOLDER / f"lib{name}-{_digest(*(path.name.encode() for path in objects))}.so"
    link = [f"-Wl,-soname,{soname}"] if soname else []
    _make(target, [*flags, "-shared", *link, *map(str, objects)])
    return target


def sanitizer_runtime() -> str:
    """What must be loaded first (LD_PRELOAD) into a process that loads a sanitized library."""
    command = [_compiler(), "-print-file-name=libasan.so"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _object(source: Path, flags: Sequence[str], more_flags: Sequence[str], common: str) -> Path:
    own = " ".join(more_flags).encode()
    target = FOLDER / f"{source.stem}-{_digest(common.encode(), own, str(source).encode(), source.read_bytes())}.o"
    _make(target, [*flags, *more_flags, "-c", "-x", "c++", str(source)])
    return target


def _make(target: Path, arguments: Sequence[str]) -> None:
    """Compile `target` unless it is there. Who comes while another process does waits for that one."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not target.exists():
            _compile(target, arguments)


def _compile(target: Path, arguments: Sequence[str]) -> None:
    """Under a temporary name first, so that a broken-off build leaves nothing that looks finished."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        made = Path(scratch) / target.name
        command = [_compiler(), *arguments, "-o", str(made)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[:4000]}")
        made.replace(target)


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


if __name__ == "__main__":
    try:
        print(kernel_library().relative_to(ROOT))
    except RuntimeError as error:
        sys.exit(f"build: {error}")
