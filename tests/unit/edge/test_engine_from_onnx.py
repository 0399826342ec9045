"""Building engines with NVIDIA's own parser and builder (TensorRT-RTX needs no GPU), and how they fail."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.engine_build_process import layers_of_log
from edge.engine_from_onnx import RTX_COMPUTE_CAPABILITIES, build_engine
from edge.errors import MachineError, UsageError
from edge.progress import ProgressLine

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (it has wheels for x86-64 only)",
)


def classifier(batch: int | str = 1, extra: onnx.NodeProto | None = None) -> onnx.ModelProto:
    """uint8 (N, 1, 32, 32) -> Q/DQ, convolution with int8 weights -> 1x1 convolution = cam, mean = logits; seeded."""
    rng = np.random.default_rng(3)
    constants = {
        "scale": np.float32(1 / 255),
        "W": rng.integers(-127, 127, (8, 1, 5, 5)).astype(np.int8),
        "w_scale": np.full(8, 0.01, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "x_scale": np.float32(1 / 127),
        "zero": np.int8(0),
        "C": rng.normal(size=(3, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["W", "w_scale", "w_zero"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="stem", pads=[2] * 4),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Conv", ["r", "C"], ["cam"], name="head"),
        helper.make_node("ReduceMean", ["cam"], ["logits"], axes=[2, 3], keepdims=0),
        *([extra] if extra else []),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 1, 32, 32])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3]),
            helper.make_tensor_value_info("cam", TensorProto.FLOAT, [batch, 3, 32, 32]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def to_file(**changes: object) -> Path:
        onnx.save(classifier(**changes), tmp_path / "model.onnx")  # type: ignore[arg-type]
        return tmp_path / "model.onnx"

    return to_file


@needs_rtx
@pytest.mark.parametrize(("batch", "declared"), [(1, 1), (3, 3), (4, "N")])
def test_rtx_builds_an_engine(save: Callable[..., Path], tmp_path: Path, batch: int, declared: int | str) -> None:
    model = save(batch=declared)
    seen: list[tuple[str, int, int]] = []
    facts = build_engine(
        model,
        tmp_path / "model.engine",
        target="tensorrt-rtx",
        batch=batch,
        workspace_mb=64,
        progress=lambda *what: seen.append(what),
    )
    plan = (tmp_path / "model.engine").read_bytes()
    assert facts["sha256"] == hashlib.sha256(plan).hexdigest() and facts["size"] == len(plan) > 1000
    assert facts["onnx_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert facts["compute_capabilities"] == list(RTX_COMPUTE_CAPABILITIES)
    assert facts["tensorrt"].startswith("1.")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.engine"}
    assert seen and all(0 <= done <= steps for _, done, steps in seen)
    tensors = [tensor for layer in facts["layers"] for tensor in layer["Inputs"] + layer["Outputs"]]
    images = next(tensor for tensor in tensors if tensor["Name"] == "image")
    assert images["Datatype"] == "UInt8"
    assert images["Dimensions"] == [-1 if declared == "N" else batch, 1, 32, 32]
    assert {"logits", "cam"} <= {tensor["Name"] for tensor in tensors}
    assert facts["layers_source"] == "builder log"


@needs_rtx
def test_rtx_builds_for_the_capabilities_asked_for(save: Callable[..., Path], tmp_path: Path) -> None:
    for capabilities in (["86"], ["86", "89", "120"]):
        facts = build_engine(
            save(), tmp_path / "model.engine", target="tensorrt-rtx", compute_capabilities=capabilities
        )
        assert facts["compute_capabilities"] == capabilities
    with pytest.raises(MachineError, match="capability 87 is not among 75, 80, 86"):
        build_engine(save(), tmp_path / "no.engine", target="tensorrt-rtx", compute_capabilities=["87"])


@needs_rtx
def test_every_error_of_the_parser_is_told_in_one_line(save: Callable[..., Path], tmp_path: Path) -> None:
    model = save(extra=helper.make_node("Nope", ["logits"], ["nope"], name="no_such", domain="nowhere"))
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"an older engine")
    with pytest.raises(MachineError, match=r"parser refuses .*Nope no_such: .*Plugin not found") as raised:
        build_engine(model, engine, target="tensorrt-rtx")
    assert "\n" not in str(raised.value)
    assert engine.read_bytes() == b"an older engine"
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.engine"}


@needs_rtx
@pytest.mark.parametrize("content", [b"", b"no ONNX at all " * 100])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(MachineError) as raised:
        build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", target="tensorrt-rtx")
    assert "\n" not in str(raised.value)


@needs_rtx
def test_a_batch_of_another_size_is_refused(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"image is \(1, 1, 32, 32\), expected a batch of 2"):
        build_engine(save(), tmp_path / "model.engine", target="tensorrt-rtx", batch=2)


@needs_rtx
def test_a_plugin_library_that_is_none_is_refused(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"plugin library .*x\.so"):
        build_engine(save(), tmp_path / "model.engine", target="tensorrt-rtx", plugin=tmp_path / "x.so")


@needs_rtx
def test_running_out_of_memory_is_one_line_and_this_process_lives_on(tmp_path: Path) -> None:
    """144 MB of weights, and an address space that the library fits in, but not the copies that a build makes."""
    weights = np.random.default_rng(0).standard_normal((6000, 6000), np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "W"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 6000])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 6000])],
        [numpy_helper.from_array(weights, "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    script = """
        import resource, sys
        from pathlib import Path
        from edge.engine_from_onnx import build_engine
        from edge.errors import MachineError
        resource.setrlimit(resource.RLIMIT_AS, (800 << 20, 800 << 20))
        try:
            build_engine(Path(sys.argv[1]), Path(sys.argv[2]), target="tensorrt-rtx", compute_capabilities=["86"])
        except MachineError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), tmp_path / "model.onnx", tmp_path / "model.engine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "free memory" in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("way", ["no model", "no folder", "a folder in the way"])
def test_files_that_cannot_be_used_are_one_line(save: Callable[..., Path], tmp_path: Path, way: str) -> None:
    model, engine = save(), tmp_path / "model.engine"
    if way == "no model":
        model = tmp_path / "none.onnx"
    elif way == "no folder":
        engine = tmp_path / "none" / "model.engine"
    else:
        engine = Path("/proc/model.engine")  # where nobody can write
    with pytest.raises(MachineError, match=r"cannot build model\.engine: .*: .*check the path|grant permission"):
        build_engine(model, engine, target="tensorrt-rtx")


@needs_rtx
def test_the_builder_does_not_outlive_who_started_it(save: Callable[..., Path], tmp_path: Path) -> None:
    """The parent is killed, so nothing of it can clean up; the builder is halted, so that it cannot just be done."""
    code = (
        "import sys; from pathlib import Path; from edge.engine_from_onnx import build_engine\n"
        "build_engine(Path(sys.argv[1]), Path(sys.argv[2]), target='tensorrt-rtx')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, save(), tmp_path / "model.engine"])
    child = int(wait_for(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text).split()[0])
    try:
        # NVIDIA's library is loaded after the builder has asked to die with its parent.
        wait_for(lambda: "tensorrt_rtx" in Path(f"/proc/{child}/maps").read_text())
        os.kill(child, signal.SIGSTOP)
        parent.kill()
        parent.wait()
        wait_for(lambda: state(child) in ("gone", "Z"))
    finally:
        parent.kill()
        if state(child) != "gone":
            os.kill(child, signal.SIGKILL)


def state(process: int) -> str:
    """The process's state as in proc(5), "gone" if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


def wait_for(what: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return found


def test_a_target_that_does_not_exist_is_wrong_use(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt, tensorrt-rtx"):
        build_engine(save(), tmp_path / "e", target="tensorflow")  # type: ignore[arg-type]


def test_importing_it_imports_no_tensorrt() -> None:
    script = "import sys, edge.engine_from_onnx; print([m for m in sys.modules if 'tensorrt' in m or 'cuda' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_layers_are_read_from_the_builders_log() -> None:
    tensor = (
        "{{ Name: {}, Dimensions: [1,2,4], Strides: [8,4,1], StrideOrder: [2,1,0], "
        "Datatype: {}, Format: (Linear) a b }}"
    )
    x, y, k, z = (tensor.format(*what) for what in (("x", "Int8"), ("y", "Half"), ("k", "Float"), ("z", "Float")))
    line = (
        f"Name: a, b + c, LayerType: kgen, Inputs: [ {x}, {y}], Constants: [ {k}], Outputs: [ {z}], "
        "TacticName: t1, StreamId: 0"
    )
    (layer,) = layers_of_log(f"Layers:\n{line}\n\nI/O Tensors:\n Name: x, IOMode: Input\n")
    assert (layer["Name"], layer["LayerType"], layer["TacticName"]) == ("a, b + c", "kgen", "t1")
    assert [(t["Name"], t["Datatype"], t["Dimensions"]) for t in layer["Inputs"]] == [
        ("x", "Int8", [1, 2, 4]),
        ("y", "Half", [1, 2, 4]),
    ]
    assert [(t["Name"], t["Format"]) for t in layer["Outputs"]] == [("z", "(Linear) a b")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with ProgressLine("building", stream) as progress:
            progress("one", 1, 4)
            progress("two", 2, 4)  # too soon after the first: not shown
    assert terminal.getvalue() == "\r\x1b[Kbuilding [######..................] one\r\x1b[K"
    assert pipe.getvalue() == "building: one 1/4\n"
