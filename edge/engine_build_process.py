"""The process that holds NVIDIA's builder: started by `edge.engine_from_onnx`, one job each.

Reads the job as JSON from stdin. Writes JSON lines to what was stdout: ``{"progress": [phase, done, steps]}`` while it
builds, then ``{"built": facts}`` or ``{"error": line}``.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edge.bundle import sha256_of
from edge.errors import EdgeError, MachineError, describe_os_error

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as trt_rtx

_INSTALL = {
    "tensorrt": "on a Jetson `sudo apt install python3-libnvinfer`, and make the virtual environment see it",
    "tensorrt-rtx": "`pip install tensorrt-rtx-cu12`",
}
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|bad_alloc|memory allocation|insufficient memory|cannot allocate|MemoryError"
    r"|temporarily unavailable",
    re.IGNORECASE,
)
OUT_OF_MEMORY_ADVICE = "free memory (close programs, stop the desktop), lower --workspace-mb, or use a smaller batch"
_REPORT_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_WARNINGS_KEPT = 20


class _Channel:
    """The line back to the parent. Safe to write from the builder's threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, **message: Any) -> bool:
        """False if nobody reads any more."""
        try:
            with self._lock:
                self._stream.write(json.dumps(message) + "\n")
                self._stream.flush()
        except OSError:
            return False
        return True


def import_tensorrt(target: str) -> Any:
    """The Python module of `target`. Raises `MachineError` that says how to install it."""
    try:
        return importlib.import_module(_MODULES[target])
    except (ImportError, OSError) as error:
        raise MachineError(f"{target} does not import here ({error}): install it, {_INSTALL[target]}") from None


def build(job: dict[str, Any], channel: _Channel) -> dict[str, Any]:
    """Parse, build, write the engine to ``job["engine"]``; returns what TensorRT told. Raises `EdgeError`, OSError."""
    trt = import_tensorrt(job["target"])
    rtx = job["target"] == "tensorrt-rtx"
    logger = make_logger(trt, verbose=rtx)
    builder = _make_builder(trt, logger)
    if job["plugin"]:
        # The global registry: the builder's own one does not serve the runtime that inspects the engine.
        load_plugin(trt.get_plugin_registry(), Path(job["plugin"]))
    network = _parse(trt, builder, logger, Path(job["onnx"]))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # What the model says is float32 stays so: TF32, on by default, keeps 10 bits of the mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    monitor = _monitor(trt, channel)  # named: it must outlive the build
    config.progress_monitor = monitor
    if job["workspace_mb"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_mb"] << 20)
    _add_profile(builder, network, config, job["batch"])
    timing = None
    if rtx:
        _set_compute_capabilities(trt, config, job["compute_capabilities"])
    elif job["timing_cache"]:
        timing = _read_timing_cache(config, Path(job["timing_cache"]))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MachineError(_describe_failure(job, logger.errors))
    with Path(job["engine"]).open("wb") as file:
        file.write(plan)
        file.flush()
        os.fsync(file.fileno())
    if timing is not None:
        _write_timing_cache(config, Path(job["timing_cache"]))
    return {
        "tensorrt": trt.__version__,
        "timing_cache": "none in TensorRT-RTX" if rtx else timing,
        "warnings": logger.warnings,
        "layers": logger.layers if rtx else _inspect(trt, logger, plan),
        "layers_source": "builder log" if rtx else "inspector",
        **({"compute_capabilities": job["compute_capabilities"]} if rtx else {}),
    }


def make_logger(trt: Any, verbose: bool = False) -> Any:
    """A logger that keeps errors, warnings and, if verbose, the list of layers that the builder prints."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layers: list[dict[str, Any]] = []

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)
            elif severity == trt.ILogger.Severity.WARNING:
                if msg not in self.warnings and len(self.warnings) < _WARNINGS_KEPT:
                    self.warnings.append(msg)
            elif verbose and msg.startswith("Layers:"):
                self.layers = layers_of_log(msg)

    return Logger()


def layers_of_log(message: str) -> list[dict[str, Any]]:
    """The layers of the verbose log's "Layers:" message, in the inspector's keys; one dict a ``Name: `` line."""
    layers = []
    for line in message.split("\n"):
        head = re.match(r"Name: (.*?), LayerType: ([^,]*)", line)
        if head is None:
            continue
        tactic = re.search(r"TacticName: ([^,]*)", line)
        layers.append(
            {
                "Name": head[1],
                "LayerType": head[2],
                "Inputs": _tensors(line, "Inputs"),
                "Outputs": _tensors(line, "Outputs"),
                "TacticName": tactic[1] if tactic else "",
            }
        )
    return layers


def _tensors(line: str, which: str) -> list[dict[str, Any]]:
    section = re.search(which + r": \[ (.*?) \}\]", line)
    tensor = r"Name: (.*?), Dimensions: \[(.*?)\], .*?Datatype: (\w+), Format: (.*?)(?: \}|$)"
    return [
        {"Name": name, "Dimensions": [int(d) for d in dimensions.split(",") if d], "Datatype": kind, "Format": layout}
        for name, dimensions, kind, layout in re.findall(tensor, section[1] if section else "")
    ]


def _monitor(trt: Any, channel: _Channel) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes the innermost phase on, a few times a second; stops the build when the parent is gone."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._due = 0.0
            self._wanted = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return self._wanted

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _report(self, phase: str, done: int) -> None:
            now = time.monotonic()
            if now >= self._due:
                self._due = now + _REPORT_SECONDS
                self._wanted = channel.send(progress=[phase, done, self._steps.get(phase, done)])

    return Monitor()


def _make_builder(trt: Any, logger: Any) -> trt.Builder:
    try:
        return trt.Builder(logger)
    except Exception as error:  # pybind raises TypeError when the factory gives up, and other kinds elsewhere
        why = _one_line(logger.errors[-1] if logger.errors else str(error))
        raise MachineError(
            f"TensorRT's builder cannot start here ({why}): it needs an NVIDIA GPU and its driver; in a container, "
            "`--runtime nvidia` or `--gpus all`"
        ) from None


def load_plugin(registry: trt.IPluginRegistry, library: Path) -> None:
    """Register the plugins of a shared library, for the life of this process. Raises `MachineError`."""
    if not library.is_file():
        raise MachineError(f"plugin library {library} is missing: build it (`make plugin`) or name another one")
    digest = sha256_of(library)
    if digest in _registered:
        return  # TensorRT refuses a second registration
    try:
        handle = registry.load_library(str(library))
    except Exception as error:  # pybind's translation of a failed dlopen differs among releases
        raise MachineError(f"plugin library {library} does not load ({_one_line(str(error))}): build it anew") from None
    if handle is None:
        held = "this process already holds another one" if _registered else "it registers no plugin"
        advice = "start a new process" if _registered else "build it anew for this TensorRT"
        raise MachineError(f"plugin library {library} cannot be used ({held}): {advice}")
    _registered.add(digest)


_registered: set[str] = set()
"""SHA-256 of the plugin libraries that this process holds."""


def _parse(trt: Any, builder: trt.Builder, logger: Any, path: Path) -> trt.INetworkDefinition:
    """The network of the model at `path`, strongly typed. Raises `MachineError` with every error of the parser."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):
        return network
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    said = [f"{_node(error)}{_one_line(error.desc())}" for error in errors]
    said = said or [_one_line(line) for line in logger.errors] or ["no reason given"]
    reasons = "; ".join(dict.fromkeys(said))
    raise MachineError(f"NVIDIA's ONNX parser refuses {path}: {reasons}: {_advice(reasons, 'export the model anew')}")


def _node(error: trt.ParserError) -> str:
    name = " ".join(filter(None, (error.node_operator(), error.node_name())))
    return f"{name}: " if name else ""


def _add_profile(builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, batch: int) -> None:
    """One optimisation profile for inputs with a symbolic batch dimension; a static network needs none."""
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        dimensions = tuple(tensor.shape)
        if -1 not in dimensions:
            if dimensions and dimensions[0] != batch:
                raise MachineError(f"input {tensor.name} is {dimensions}, expected a batch of {batch}: export it so")
            continue
        if -1 in dimensions[1:]:
            raise MachineError(f"input {tensor.name} is {dimensions}: only its first dimension may be symbolic")
        profile = profile or builder.create_optimization_profile()
        most = (batch, *dimensions[1:])
        profile.set_shape(tensor.name, min=(1, *dimensions[1:]), opt=most, max=most)
    if profile is not None and config.add_optimization_profile(profile) < 0:
        raise MachineError(f"TensorRT refuses an optimisation profile of 1 to {batch} images: use a smaller batch")


def _set_compute_capabilities(trt_rtx: Any, config: trt_rtx.IBuilderConfig, names: list[str]) -> None:
    """TensorRT-RTX only: TensorRT itself builds for the GPU at hand."""
    known = [name[2:] for name in trt_rtx.ComputeCapability.__members__ if name.startswith("SM")]
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise MachineError(f"compute capability {', '.join(unknown) or 'none'} is not among {', '.join(known)}")
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(trt_rtx.ComputeCapability.__members__["SM" + name], index):
            raise MachineError(f"TensorRT-RTX refuses compute capability {name}: leave it out")


def _read_timing_cache(config: trt.IBuilderConfig, path: Path) -> str:
    """Give the builder the cache at `path`, or an empty one if that is damaged or of another machine; says which."""
    content = path.read_bytes() if path.is_file() else b""
    taken = False
    if content:
        with suppress(Exception):  # a damaged file: some releases return None, others raise
            taken = bool(config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False))
    if not taken:
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return "read" if taken else "damaged or of another device or version, started anew" if content else "started"


def _write_timing_cache(config: trt.IBuilderConfig, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(bytes(config.get_timing_cache().serialize()))
    partial.replace(path)


def _inspect(trt: Any, logger: Any, plan: trt.IHostMemory) -> list[Any]:
    """The engine inspector's layers. Raises `MachineError` if the engine that was just built does not load."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise MachineError(f"the engine just built does not load: {_one_line(logger.errors[-1:] or 'no reason given')}")
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return list(json.loads(information)["Layers"])


def _describe_failure(job: dict[str, Any], errors: list[str]) -> str:
    said = "; ".join(dict.fromkeys(_one_line(error) for error in errors)) or "no reason given"
    advice = _advice(said, "report this with the model")
    return f"{job['target']} cannot build an engine of {job['onnx']}: {said[:600]}: {advice}"


def _advice(said: str, otherwise: str) -> str:
    return OUT_OF_MEMORY_ADVICE if OUT_OF_MEMORY.search(said) else otherwise


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends: nobody would take the engine then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    _die_with_parent()
    # NVIDIA's libraries may print: what was stdout becomes ours alone, and descriptor 1 a second stderr.
    channel = _Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    try:
        channel.send(built=build(json.load(sys.stdin), channel))
    except EdgeError as error:
        channel.send(error=str(error))
    except OSError as error:
        channel.send(error=describe_os_error(error))
    except MemoryError:
        channel.send(error=f"the builder ran out of memory: {OUT_OF_MEMORY_ADVICE}")


if __name__ == "__main__":
    main()
