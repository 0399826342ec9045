"""Build a TensorRT or TensorRT-RTX engine from an ONNX model, in a process of its own.

NVIDIA's builder can take gigabytes, and ends its process when something inside it goes wrong. In a child process both
become one line of error here, the memory is back afterwards, and a daemon that builds on its first load lives on.
Importing this module imports no TensorRT and touches no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, get_args

from edge.bundle import sha256_of
from edge.engine_build_process import OUT_OF_MEMORY, OUT_OF_MEMORY_ADVICE
from edge.errors import MachineError, UsageError, describe_os_error
from edge.plugin_library import PLUGIN_SAYS

Target = Literal["tensorrt", "tensorrt-rtx"]
Progress = Callable[[str, int, int], None]
"""Called with the builder's phase, the steps of it that are done, and its steps in all."""

RTX_COMPUTE_CAPABILITIES = ("86", "89", "120")
"""What an engine for TensorRT-RTX is compiled for by default: GeForce RTX 30, 40, 50 and their workstation kin.

Not the RTX 20 ("75"): TensorRT-RTX has no float32 matrix product there."""


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    *,
    target: Target,
    batch: int = 1,
    workspace_mb: int | None = None,
    timing_cache: Path | None = None,
    plugin: Path | None = None,
    compute_capabilities: Sequence[str] = RTX_COMPUTE_CAPABILITIES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build the engine of `onnx_path` and write it to `engine_path`, atomically; an older file there is replaced.

    The model is fed to NVIDIA's parser as it is; the network is strongly typed, so its types are those of the ONNX. An
    input whose batch dimension is symbolic gets one optimisation profile of 1..`batch` images, tuned for `batch`.

    Args:
        target: ``tensorrt`` builds for the GPU of this machine; ``tensorrt-rtx`` needs none and builds for
            `compute_capabilities` ("86" is 8.6), which ``tensorrt`` ignores.
        workspace_mb: limit of the builder's scratch memory in MiB; None leaves TensorRT's own, the whole device memory.
        timing_cache: measured kernel times, read if the file is there, written after the build; TensorRT-RTX has none.
        plugin: shared library with plugins that the model needs, loaded before parsing.

    Returns facts for a manifest and a report: ``target``, ``tensorrt`` (version), ``batch``, ``seconds``, ``size``,
    ``sha256``, ``onnx_sha256``, ``plugin_sha256`` (None without one), ``workspace_mb``, ``timing_cache`` (what became
    of it), ``compute_capabilities`` (tensorrt-rtx only), ``warnings`` (of parser and builder), ``layers`` (one dict a
    layer, keys as TensorRT's inspector names them: ``Name``, ``LayerType``, ``Inputs``, ``Outputs``, ...),
    ``layers_source`` ("inspector" or "builder log").

    Raises `MachineError` where TensorRT is missing, refuses the model, runs out of memory, crashes, or where a file
    cannot be read or written; `UsageError` for another target.
    """
    if target not in get_args(Target):
        raise UsageError(f"engine target {target!r} is none of {', '.join(get_args(Target))}")
    # Made first: a folder that cannot be written should not cost the minutes of a build.
    partial = engine_path.with_name(f".{engine_path.name}.{os.getpid()}.partial")
    try:
        onnx_sha256 = sha256_of(onnx_path)
        partial.touch()
    except OSError as error:
        raise MachineError(f"cannot build {engine_path.name}: {describe_os_error(error)}") from None
    job = {
        "onnx": str(onnx_path.absolute()),
        "engine": str(partial.absolute()),
        "target": target,
        "batch": batch,
        "workspace_mb": workspace_mb,
        "timing_cache": str(timing_cache.absolute()) if timing_cache else None,
        "plugin": str(plugin.absolute()) if plugin else None,
        "compute_capabilities": list(compute_capabilities) if target == "tensorrt-rtx" else None,
    }
    try:
        started = time.monotonic()
        facts = {
            **_run_child(job, progress),
            "target": target,
            "batch": batch,
            "workspace_mb": workspace_mb,
            "onnx_sha256": onnx_sha256,
            "plugin_sha256": sha256_of(plugin) if plugin else None,
            "seconds": round(time.monotonic() - started, 3),
            "size": partial.stat().st_size,
            "sha256": sha256_of(partial),
        }
        partial.replace(engine_path)
    except OSError as error:
        raise MachineError(f"cannot write {engine_path}: {describe_os_error(error)}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return facts


def _run_child(job: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Run the builder's process on `job`; returns the facts it reports. Raises `MachineError`; leaves no process."""
    root = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryFile("w+") as stdin,
        tempfile.TemporaryFile() as stderr,
        _libraries(job) as libraries,
    ):
        json.dump(job, stdin)
        stdin.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "edge.engine_build_process"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=root,  # -m looks in the working directory first, where a folder of the user's may be called edge
            env={**os.environ, **libraries, "PYTHONPATH": search},
        )
        try:
            for line in child.stdout or ():
                message = json.loads(line)
                if "error" in message:
                    raise MachineError(message["error"] + _words_of_plugin(stderr))
                if "built" in message:
                    return dict(message["built"])
                if progress is not None:
                    progress(*message["progress"])
            raise MachineError(_describe_death(job, child.wait(), stderr))
        finally:
            child.kill()
            child.communicate()


@contextmanager
def _libraries(job: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Environment in which TensorRT-RTX finds itself once a plugin is registered.

    Its parser then opens ``libtensorrt_rtx.so``, a name that NVIDIA's wheel lacks, and dies if it cannot.
    """
    wheel = importlib.util.find_spec("tensorrt_rtx_libs")
    if job["target"] != "tensorrt-rtx" or not job["plugin"] or wheel is None:
        yield {}
        return
    found = [
        path for place in wheel.submodule_search_locations or () for path in Path(place).glob("libtensorrt_rtx.so*")
    ]
    with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as folder:
        if found:
            (Path(folder) / "libtensorrt_rtx.so").symlink_to(found[0])
        yield {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, (folder, os.environ.get("LD_LIBRARY_PATH"))))}


def _words_of_plugin(stderr: IO[bytes]) -> str:
    """What the plugin said; on stderr, as TensorRT gives a logger only to plugins that travel inside an engine."""
    # pread, since the position in the file is shared with the child, which may still be writing.
    lines = os.pread(stderr.fileno(), 1 << 16, 0).decode(errors="replace").split("\n")
    said = "; ".join(dict.fromkeys(line for line in lines if line.startswith(PLUGIN_SAYS)))
    return f" ({said})" if said else ""


def _describe_death(job: dict[str, Any], status: int, stderr: IO[bytes]) -> str:
    """One line for a builder process that ended without a word: by which signal, its last words, what to do."""
    stderr.seek(0)
    words = stderr.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(words) if line.strip()), "nothing on stderr")
    how = f"status {status}" if status >= 0 else signal.Signals(-status).name
    memory = status == -signal.SIGKILL or OUT_OF_MEMORY.search(" ".join(words))
    advice = f"memory ran out, probably: {OUT_OF_MEMORY_ADVICE}" if memory else "report this with the model"
    return f"the {job['target']} builder's process died on {job['onnx']} ({how}; {last[:200]}): {advice}"
