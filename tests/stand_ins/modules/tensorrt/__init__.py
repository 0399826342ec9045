"""A stand-in for NVIDIA's ``tensorrt``, for tests on a machine without a GPU; imported only by tests' own processes.

Names and signatures are those of the real bindings, as far as our code uses them (a test compares them). A "plan" is
the ONNX model itself. `IExecutionContext.execute_async_v3` enqueues a host function in the stream of the stand-in CUDA
driver; when the stream gets there, ONNX Runtime runs the model on the very addresses that the caller set.

Environment: STAND_IN_BUILD=killed|"out of memory" ends the builder so; STAND_IN_ENQUEUE=refused makes the enqueue fail;
STAND_IN_VERSION is the version to show.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import os
import pickle
import signal
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

__version__ = os.environ.get("STAND_IN_VERSION", "10.3.0")

_MAGIC = b"stand-in plan "


class DataType(enum.Enum):
    FLOAT = 0
    UINT8 = 5


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class BuilderFlag(enum.Enum):
    TF32 = 3


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: ILogger.Severity, msg: str) -> None: ...


class IProgressMonitor:
    pass


class IHostMemory(bytes):
    pass


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content or b"timings")


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class IBuilderConfig:
    profiling_verbosity: Any = None
    progress_monitor: Any = None

    def __init__(self) -> None:
        self._profiles: list[IOptimizationProfile] = []
        self._timing = ITimingCache(b"")

    def clear_flag(self, flag: BuilderFlag) -> None: ...

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._content not in (b"", b"timings"):
            return False
        self._timing = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._timing


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape


class INetworkDefinition:
    _model = b""
    _tensors: tuple[ITensor, ...] = ()

    @property
    def num_inputs(self) -> int:
        return len(self._tensors)

    def get_input(self, index: int) -> ITensor:
        return self._tensors[index]


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return ""

    def node_operator(self) -> str:
        return ""


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        self._network._model = Path(model).read_bytes()
        try:
            session = _session(self._network._model)
        except Exception as error:
            self._errors.append(ParserError(str(error)))
            return False
        self._network._tensors = tuple(ITensor(i.name, _shape(i.shape)) for i in session.get_inputs())
        return True


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 1)
        monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        if os.environ.get("STAND_IN_BUILD") == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("STAND_IN_BUILD") == "out of memory":
            self._logger.log(
                ILogger.Severity.ERROR, "Requested amount of GPU memory could not be allocated: OutOfMemory"
            )
            return None
        return IHostMemory(
            _MAGIC + pickle.dumps((network._model, [p._shapes for p in config._profiles], _registry._libraries))
        )


class EngineInspector:
    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        return json.dumps({"Layers": [{"Name": "all", "LayerType": "stand-in", "Inputs": [], "Outputs": []}]})


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not bytes(serialized_engine).startswith(_MAGIC):
            self._logger.log(ILogger.Severity.ERROR, "the plan is not a plan")
            return None
        model, profiles, libraries = pickle.loads(bytes(serialized_engine)[len(_MAGIC) :])  # noqa: S301  (our own test's)
        if not libraries <= _registry._libraries:
            self._logger.log(ILogger.Severity.ERROR, "could not find plugin MDConv version 1 namespace mdconv")
            return None
        return ICudaEngine(model, profiles)


class ICudaEngine:
    def __init__(self, model: bytes, profiles: list[Any]) -> None:
        self._session = _session(model)
        self._profiles = profiles
        self._inputs = {i.name: (_shape(i.shape), _kind(i.type)) for i in self._session.get_inputs()}
        self._outputs = {o.name: (_shape(o.shape), _kind(o.type)) for o in self._session.get_outputs()}
        self._tensors = {**self._inputs, **self._outputs}
        self._weights = _Allocation() if _in_context() else None

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name][1]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._scratch = _Allocation()
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._tensors

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        declared = self._engine._inputs[name][0]
        least, _, most = self._engine._profiles[0][name] if self._engine._profiles else (declared, declared, declared)
        self._shapes[name] = tuple(shape)
        return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most))

    def execute_async_v3(self, stream_handle: int) -> bool:
        if os.environ.get("STAND_IN_ENQUEUE") == "refused" or self._addresses.keys() != self._engine._tensors.keys():
            return False
        shapes = {name: self._shapes.get(name, shape) for name, (shape, _) in self._engine._inputs.items()}
        run = _HostFunction(partial(_run_if_alive, weakref.ref(self), shapes))
        _kept.append(run)
        return _cuda().cuLaunchHostFunc(ctypes.c_void_p(stream_handle), run, None) == 0

    def _run(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """What the GPU would do: read the inputs where they are now, compute, write the outputs."""
        feeds = {name: self._memory(name, shape) for name, shape in shapes.items()}
        names = list(self._engine._outputs)
        for name, result in zip(names, self._engine._session.run(names, feeds)):
            self._memory(name, result.shape)[...] = result

    def _memory(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        kind = np.uint8 if self._engine._tensors[name][1] is DataType.UINT8 else np.float32
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        _cuda().stand_in_touch(ctypes.c_uint64(self._addresses[name]), ctypes.c_size_t(size))
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self._addresses[name]), kind).reshape(shape)


def _run_if_alive(context: Callable[[], IExecutionContext | None], shapes: dict[str, tuple[int, ...]], _: Any) -> None:
    """Enqueued work does not keep its execution context alive: that is the caller's duty."""
    alive = context()
    if alive is None:
        _cuda().stand_in_violate(b"a kernel ran after its execution context was freed")
    else:
        alive._run(shapes)


class _Allocation:
    """Device memory, as an engine's weights and a context's scratch take: it shows if it outlives the CUDA context."""

    def __init__(self) -> None:
        self._address = ctypes.c_uint64()
        if _cuda().cuMemAlloc_v2(ctypes.byref(self._address), ctypes.c_size_t(256)) != 0:
            raise MemoryError("no CUDA context is current")

    def __del__(self) -> None:
        _cuda().cuMemFree_v2(self._address)


_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_kept: list[Any] = []  # a captured graph may call them at any time


def _cuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _in_context() -> bool:
    """False in the builder's process, which inspects an engine without a CUDA context of ours."""
    context = ctypes.c_void_p()
    _cuda().cuCtxGetCurrent(ctypes.byref(context))
    return bool(context)


def _session(model: bytes) -> Any:
    import onnxruntime

    if b"MDConv" in model and _registry._libraries:
        import onnx

        parsed = onnx.load_from_string(model)
        if not parsed.functions:
            return _PluginSession(parsed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _PluginSession:
    """Runs a model with nodes for the MD-Conv plugin, NumPy in the plugin's place; looks like ONNX Runtime's."""

    def __init__(self, model: Any) -> None:
        from tests.native.plugin_interpreter import PluginInterpreter

        self._interpreter = PluginInterpreter(model)
        self._graph = model.graph

    def get_inputs(self) -> list[Any]:
        return [_argument(value) for value in self._graph.input]

    def get_outputs(self) -> list[Any]:
        return [_argument(value) for value in self._graph.output]

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        (image,) = feeds.values()
        results = self._interpreter.run(image)
        return [results[name] for name in names]


def _argument(value: Any) -> SimpleNamespace:
    kind = value.type.tensor_type
    shape = [dimension.dim_value or dimension.dim_param for dimension in kind.shape.dim]
    names = {1: "tensor(float)", 2: "tensor(uint8)"}  # of onnx.TensorProto
    return SimpleNamespace(name=value.name, shape=shape, type=names[kind.elem_type])


def _shape(shape: list[Any]) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else -1 for d in shape)


def _kind(name: str) -> DataType:
    return {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT}[name]


class IPluginRegistry:
    """Opens libraries, and looks no further: an engine remembers which were there when it was built."""

    def __init__(self) -> None:
        self._libraries: set[str] = set()

    def load_library(self, plugin_path: str) -> Any:
        ctypes.CDLL(plugin_path)
        self._libraries.add(hashlib.sha256(Path(plugin_path).read_bytes()).hexdigest())
        return object()


_registry = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    return _registry
