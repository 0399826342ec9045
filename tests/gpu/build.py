"""Compile the kernels for a GPU: ``.venv/bin/python tests/gpu/build.py``, into ``.cache/native/``.

For the GPU of this machine, or for what `MDCONV_GPU_ARCHITECTURE` names ("sm_87"). Needs nvcc. Once for each change.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
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
    architecture = os.environ.get(ARCHITECTURE, "native")
    sources = [*sorted(PLUGIN.glob("mdconv_kernel*.cu")), UNFUSED / "unfused.cu", HOST / "host_plan.cpp"]
    sources.append(Path(__file__).with_name("device_run.cu"))
    headers = sorted(path for folder in (PLUGIN, HOST, UNFUSED) for path in folder.glob("*.*h"))
    digest = hashlib.sha256(architecture.encode())
    for path in (*sources, *headers, Path(__file__)):
        digest.update(path.read_bytes())
    target = FOLDER / f"libmdconv_device-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            _compile(sources, f"-arch={architecture}", Path(scratch)).replace(target)
    return target


def _compile(sources: list[Path], architecture: str, folder: Path) -> Path:
    def compile_one(source: Path) -> str:
        compiled = folder / f"{source.stem}.o"
        _nvcc(*FLAGS, architecture, "-c", source, "-o", compiled)
        return str(compiled)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    linked = folder / "linked.so"
    _nvcc(architecture, "-shared", "-Xlinker=--exclude-libs,ALL", *objects, "-o", linked)
    return linked


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
