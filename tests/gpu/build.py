"""Compile the kernels for a GPU: ``.venv/bin/python tests/gpu/build.py``, into ``.cache/native/``.

For the GPU of this machine, or for what `MDCONV_GPU_ARCHITECTURE` names ("sm_87"). Needs nvcc, and for the plugin
NVIDIA's headers (tests/stand_ins/build.py). Once for each change.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN, HOST, UNFUSED = ROOT / "plugin", ROOT / "plugin" / "host", ROOT / "benchmarks" / "kernels"
FOLDER = ROOT / ".cache" / "native"
ARCHITECTURE = "MDCONV_GPU_ARCHITECTURE"

FLAGS = (
    "-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden",
    f"-I{PLUGIN}", f"-I{HOST}", f"-I{UNFUSED}",
)  # fmt: skip


def device_library() -> Path:
    """The shared library with the kernels and host_run.h's functions on a GPU. Raises `RuntimeError` if it fails."""
    return _library("mdconv_device", [UNFUSED / "unfused.cu", HOST / "host_plan.cpp", _here("device_run.cu")])


def device_plugin(headers: Path) -> Path:
    """The plugin with its kernels for a GPU, and the harness in it. `headers` are NVIDIA's. Raises `RuntimeError`."""
    own = [*sorted(PLUGIN.glob("*.cpp")), HOST / "tensorrt" / "plugin_harness.cpp", _here("device_memory.cu")]
    return _library("mdconv_plugin_device", own, "-isystem", str(headers), '-DMDCONV_KERNEL_ID="device"')


def _here(name: str) -> Path:
    return Path(__file__).with_name(name)


def _library(name: str, own: Sequence[Path], *flags: str) -> Path:
    """The library of the kernels and of the sources `own`, which have `flags` more."""
    architecture = f"-arch={os.environ.get(ARCHITECTURE, 'native')}"
    kernels = sorted(PLUGIN.glob("mdconv_kernel*.cu"))
    headers = sorted(path for folder in (PLUGIN, HOST, UNFUSED) for path in folder.glob("*.*h"))
    digest = hashlib.sha256(architecture.encode())
    for path in (*kernels, *own, *headers, Path(__file__)):
        digest.update(path.read_bytes())
    target = FOLDER / f"lib{name}-{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:

        def compile_one(source: Path) -> str:
            compiled = Path(scratch) / f"{source.stem}.o"
            _nvcc(*FLAGS, *(flags if source in own else ()), architecture, "-c", source, "-o", compiled)
            return str(compiled)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, [*kernels, *own]))
        linked = Path(scratch) / "linked.so"
        _nvcc(architecture, "-shared", "-Xlinker=--exclude-libs,ALL", *objects, "-o", linked)
        return linked.replace(target)


def _nvcc(*arguments: object) -> None:
    command = ["nvcc", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[:4000]}")


if __name__ == "__main__":
    try:
        print(device_library().relative_to(ROOT))
    except RuntimeError as error:
        sys.exit(f"build: {error}")
