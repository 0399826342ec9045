"""The library that nvcc builds, in NVIDIA's own parser and builder (TensorRT-RTX needs no GPU for that)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.engine_from_onnx import build_engine
from edge.errors import MachineError
from edge.plugin_library import why_unfit
from tests.native.plugin_harness import HEADERS
from tests.native.real_plugin import configure, real_plugin

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (it has wheels for x86-64 only)",
)

CHANNELS = 32


def model(precision: str, bias: Any = np.float32, operands: int | None = None, **changes: Any) -> onnx.ModelProto:
    """float32 x (N, 32, 28, 30) -> to the precision -> MDConv -> float32 y; batch and size are only known when run.

    `bias` is the type of B; of the node's inputs only the first `operands` are given; `changes` replace attributes.
    """
    attributes = {
        "kernel_sizes": [3, 5],
        "channel_splits": [20, 12],
        "stride": 2,
        "activation": "relu6",
        "plugin_version": "1",
        "plugin_namespace": "mdconv",
    }
    rng = np.random.default_rng(4)
    weight = rng.integers(-127, 127, (CHANNELS, 1, 5, 5))
    if precision == "int8":
        attributes.update(x_scale=0.02, y_scale=0.03)
        into = helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["before"])
        out = helper.make_node("DequantizeLinear", ["after", "y_scale", "zero"], ["y"])
        inputs = ["before", "W", "B", "w_scale"]
    else:
        kind = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}[precision]
        into = helper.make_node("Cast", ["x"], ["before"], to=kind)
        out = helper.make_node("Cast", ["after"], ["y"], to=TensorProto.FLOAT)
        inputs = ["before", "W", "B"]
        bias = {"fp32": bias, "fp16": np.float16}[precision]
    attributes.update(changes)
    node = helper.make_node("MDConv", inputs[:operands], ["after"], "md", domain="mdconv", **attributes)
    constants = {
        "W": weight.astype({"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[precision]),
        "B": np.zeros(CHANNELS, bias),
        "w_scale": np.full(CHANNELS, 1e-3, np.float32),
        "x_scale": np.float32(0.02),
        "y_scale": np.float32(0.03),
        "zero": np.int8(0),
    }
    graph = helper.make_graph(
        [into, node, out],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, 28, 30])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CHANNELS, 14, 15])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("mdconv", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def build(directory: Path, onnx_model: onnx.ModelProto) -> dict[str, Any]:
    onnx.save(onnx_model, directory / "model.onnx")
    return build_engine(
        directory / "model.onnx",
        directory / "model.engine",
        target="tensorrt-rtx",
        batch=4,
        plugin=real_plugin(),
        compute_capabilities=["86"],
    )


@needs_rtx
@pytest.mark.parametrize(("precision", "kind"), [("fp32", "Float"), ("fp16", "Half"), ("int8", "Int8")])
def test_a_node_becomes_the_plugin_with_its_own_types(tmp_path: Path, precision: str, kind: str) -> None:
    facts = build(tmp_path, model(precision))
    (plugin,) = (layer for layer in facts["layers"] if layer["Name"].startswith("md"))
    assert plugin["LayerType"] == "custom_layer"
    (x, *_), (y,) = plugin["Inputs"], plugin["Outputs"]
    assert x["Datatype"] == y["Datatype"] == kind
    assert (x["Dimensions"], y["Dimensions"]) == ([-1, CHANNELS, 28, 30], [-1, CHANNELS, 14, 15])
    assert x["Format"] == y["Format"]
    others = [layer["Name"] for layer in facts["layers"] if "conv" in layer["LayerType"].lower()]
    assert others == []
    assert len(facts["plugin_sha256"]) == 64
    assert (tmp_path / "model.engine").stat().st_size > 1000


@needs_rtx
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (model("fp32", stride=3), "node md: attribute stride is 3, expected 1 or 2"),
        (model("fp32", kernel_sizes=[3, 9]), r"attribute kernel_sizes is \[3, 9\], expected 1 to 8 kernel sizes"),
        (model("fp16", channel_splits=[32]), r"attribute channel_splits is \[32\], expected as many"),
        (model("fp16", activation="gelu"), 'attribute activation is "gelu", expected none, relu, relu6 or hardswish'),
        (model("int8", y_scale=-1.0), "attribute y_scale is -1, expected a finite number above 0"),
        (model("int8", operands=3), "the node has 3 inputs and 1 outputs, expected X, W, B, w_scale and Y"),
        (model("fp32", bias=np.float16), "input B is float16, expected float32 where X is float32"),
        (model("fp32", x_scale=0.1, y_scale=0.1, operands=3), "the node has 3 inputs"),
        (model("int8", x_scale=0.0, y_scale=0.0, operands=3), "input X is int8, expected float32 or float16"),
        (model("fp32", channel_splits=[20, 13]), r"input X has dimensions \[any, 32, 28, 30\], expected \[any, 33"),
    ],
)
def test_what_the_plugin_refuses_is_told_with_its_reason(tmp_path: Path, given: onnx.ModelProto, message: str) -> None:
    with pytest.raises(MachineError, match=message) as raised:
        build(tmp_path, given)
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}


def test_the_library_shows_two_functions_and_needs_neither_cuda_nor_tensorrt() -> None:
    library = real_plugin()
    assert why_unfit(library) == ""
    shown = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    strong = {line.split()[2] for line in shown.splitlines() if line.split()[1] == "T"}
    assert strong == {"getCreators", "setLoggerFinder"}
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in needed
    assert "nvinfer" not in needed and "cuda" not in needed


def test_without_headers_cmake_names_the_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_plugin()  # skips where there is no nvcc
    monkeypatch.delenv("TENSORRT_INCLUDE", raising=False)
    with pytest.raises(RuntimeError) as raised:
        configure(tmp_path, "-DTENSORRT_INCLUDE=")
    said = " ".join(str(raised.value).split())
    assert "in none of three places" in said
    for place in ("libnvinfer-headers-dev", "TENSORRT_INCLUDE", "pip install --no-deps kernel-lens==2.0.1"):
        assert place in said


def test_cmake_finds_the_headers_in_the_python_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_plugin()  # skips where there is no nvcc
    monkeypatch.delenv("TENSORRT_INCLUDE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(HEADERS.parents[2]))
    configure(tmp_path, f"-DPython3_EXECUTABLE={sys.executable}")
    found = f"headers:PATH={HEADERS}"
    assert found in (tmp_path / "CMakeCache.txt").read_text()
