from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from build_engine.lowering import OPSET, lower, mdconv_function, mdconv_node
from calibration.graph import attributes, consumers, initializers, producers
from calibration.insertion import quantize_weight, scale_of
from calibration.observers import METHODS
from calibration.placement import activations, place
from calibration.quantize import observe, quantize
from edge.errors import UsageError

SIZE = 24


class Images:
    """Calibration images from memory."""

    digest = "d" * 64

    def __init__(self, count: int = 6, size: int = SIZE, order: Any = None) -> None:
        self.images = np.random.default_rng(5).integers(0, 256, (count, 1, size, size), dtype=np.uint8)
        self.order = range(count) if order is None else order

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self.images[i : i + 1] for i in self.order)


def tiny_model(spoil: str = "") -> onnx.ModelProto:
    """image -> normalise -> stem, relu6 -> expand, relu6 -> MDConv -> project -> + stem's -> second MDConv -> cam.

    The addition's skip comes from `stem.relu6`. `spoil` names a weight to fill with NaN.
    """
    rng = np.random.default_rng(2)
    shapes = {
        "stem": (8, 1, 3, 3),
        "expand": (16, 8, 1, 1),
        "md": (16, 1, 5, 5),
        "project": (8, 16, 1, 1),
        "last": (8, 1, 5, 5),
        "cam": (2, 8, 1, 1),
    }
    constants = {"mean": np.float32(120), "factor": np.float32(1 / 60), "low": np.float32(0), "high": np.float32(6)}
    values: dict[str, NDArray[Any]] = {name: np.asarray(value) for name, value in constants.items()}
    for name, shape in shapes.items():
        # Channels of very different size, as batch norm folding leaves them.
        gain = rng.uniform(0.2, 3, (shape[0], 1, 1, 1)) / np.sqrt(np.prod(shape[1:]))
        values[f"{name}.weight"] = (rng.normal(size=shape) * gain).astype(np.float32)
        values[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    if spoil:
        values[spoil] = np.full_like(values[spoil], np.nan)

    def conv(name: str, x: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [name], name=name, **attributes)

    def clip(x: str) -> onnx.NodeProto:
        return helper.make_node("Clip", [x, "low", "high"], [f"{x}.relu6"], name=f"{x}.relu6")

    def md(name: str, x: str, splits: tuple[int, int]) -> onnx.NodeProto:
        inputs = (x, f"{name}.weight", f"{name}.bias")
        facts: dict[str, Any] = {"kernel_sizes": (3, 5), "stride": 1, "activation": "relu6"}
        return mdconv_node(name, inputs, name, channel_splits=splits, **facts)

    nodes = [
        helper.make_node("Cast", ["image"], ["gray"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["gray", "mean"], ["centred"], name="subtract"),
        helper.make_node("Mul", ["centred", "factor"], ["normalised"], name="scale"),
        conv("stem", "normalised", strides=[2, 2], pads=[1] * 4),
        clip("stem"),
        conv("expand", "stem.relu6"),
        clip("expand"),
        md("md", "expand.relu6", (8, 8)),
        conv("project", "md"),
        helper.make_node("Add", ["stem.relu6", "project"], ["add"], name="add"),
        md("last", "add", (4, 4)),
        conv("cam", "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("cam", TensorProto.FLOAT, [1, 2, SIZE // 2, SIZE // 2])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid("mdconv", 1)]
    model = helper.make_model(graph, functions=[mdconv_function("relu6")], opset_imports=domains, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(["cam"], {"image": image})[0]
    return result


def test_where_pairs_sit() -> None:
    quantized, _ = quantize(tiny_model(), Images(), "minmax")
    onnx.checker.check_model(quantized, full_check=True)
    graph = quantized.graph
    kinds = [(node.op_type, node.name) for node in graph.node if "Linear" in node.op_type]
    assert kinds == [
        ("QuantizeLinear", "normalised.quantized"),
        ("DequantizeLinear", "normalised.dequantized"),
        ("DequantizeLinear", "stem.weight.dequantized"),
        ("QuantizeLinear", "stem.relu6.quantized"),
        ("DequantizeLinear", "stem.relu6.dequantized"),
        ("DequantizeLinear", "expand.weight.dequantized"),
        ("QuantizeLinear", "expand.relu6.quantized"),
        ("DequantizeLinear", "expand.relu6.dequantized"),
        ("DequantizeLinear", "md.weight.dequantized"),
        ("QuantizeLinear", "md.quantized"),
        ("DequantizeLinear", "md.dequantized"),
        ("DequantizeLinear", "project.weight.dequantized"),
        ("QuantizeLinear", "add.quantized"),
        ("DequantizeLinear", "add.dequantized"),
        ("DequantizeLinear", "last.weight.dequantized"),
    ]
    inputs = {node.name: list(node.input) for node in graph.node}
    assert inputs["stem"] == ["normalised.dequantized", "stem.weight.dequantized", "stem.bias"]
    assert inputs["md"] == ["expand.relu6.dequantized", "md.weight.dequantized", "md.bias"]
    assert inputs["add"] == ["stem.relu6.dequantized", "project"]  # on the skip alone
    assert inputs["cam"] == ["last", "cam.weight", "cam.bias"]  # the last convolution stays float32
    read_by = consumers(graph)
    assert [node.name for node in read_by["stem"]] == ["stem.relu6"]  # nothing between it and its activation
    assert [node.name for node in read_by["project"]] == ["add"]
    assert len(quantized.functions) == 1


def test_skip_may_be_either_input() -> None:
    model = tiny_model()
    add = next(node for node in model.graph.node if node.op_type == "Add")
    add.input[:] = ["project", "stem.relu6"]
    assert place(model.graph).skips == (("add", 1),)


def test_addition_of_a_convolution_that_others_read_stays_float() -> None:
    model = tiny_model()
    last = next(node for node in model.graph.node if node.name == "last")
    last.input[0] = "project"  # so that it cannot be computed inside the addition's kernel alone
    assert place(model.graph).skips == ()


def test_types_of_constants() -> None:
    quantized, _ = quantize(tiny_model(), Images(), "minmax")
    constants, made_by = initializers(quantized.graph), producers(quantized.graph)
    for node in quantized.graph.node:
        if "Linear" not in node.op_type:
            continue
        scale, zero = (constants[name] for name in node.input[1:])
        assert scale.data_type == TensorProto.FLOAT
        assert zero.data_type == TensorProto.INT8
        assert not numpy_helper.to_array(zero).any()
        if node.input[0] in constants:
            weight = constants[node.input[0]]
            assert weight.data_type == TensorProto.INT8
            assert attributes(node)["axis"] == 0
            assert list(scale.dims) == list(zero.dims) == [weight.dims[0]]
        else:
            # Scalars: with shape (1,) TensorRT takes them for scales of an axis and computes in float.
            assert list(scale.dims) == list(zero.dims) == []
    for name in ("stem", "md", "project", "last", "cam"):
        assert constants[f"{name}.bias"].data_type == TensorProto.FLOAT
    assert "stem.weight" not in constants  # no float copy left behind
    assert constants["cam.weight"].data_type == TensorProto.FLOAT
    assert "normalised" in made_by


@pytest.mark.parametrize("method", METHODS)
def test_close_to_float32(method: str) -> None:
    model, images = tiny_model(), Images()
    quantized, record = quantize(model, images, method)
    for image in images:
        expected, found = run(model, image), run(quantized, image)
        error = np.abs(found - expected).mean() / expected.std()
        assert 0 < error < 0.05
    assert record["method"] == method
    assert record["count"] == 6
    assert record["digest"] == images.digest
    assert list(record["tensors"]) == ["normalised", "stem.relu6", "expand.relu6", "md", "add"]
    for facts in record["tensors"].values():
        assert facts["scale"] == pytest.approx(facts["range"] / 127)
        assert facts["range"] <= max(-facts["low"], facts["high"])


@pytest.mark.parametrize("method", METHODS)
def test_order_of_images_does_not_matter(method: str) -> None:
    first, record = quantize(tiny_model(), Images(), method)
    second, other = quantize(tiny_model(), Images(order=[3, 1, 5, 0, 2, 4]), method)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert record == other


REPAIRS = {"equalization": True, "bias_correction": True}


class Batches(Images):
    """The same images, some at a time."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self.images[start : start + self.batch] for start in range(0, len(self.images), self.batch))


def in_bytes(quantized: onnx.ModelProto, record: dict[str, Any]) -> tuple[bytes, str]:
    """What a bundle would hold: the model and the text of ``calibration.json``."""
    return quantized.SerializeToString(deterministic=True), json.dumps(record)


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_repeated_gives_the_same_bytes(method: str) -> None:
    first = in_bytes(*quantize(tiny_model(), Images(), method, **REPAIRS))  # type: ignore[arg-type]
    again = in_bytes(*quantize(tiny_model(), Images(), method, **REPAIRS))  # type: ignore[arg-type]
    shuffled = Images(order=[3, 1, 5, 0, 2, 4])
    other = in_bytes(*quantize(tiny_model(), shuffled, method, **REPAIRS))  # type: ignore[arg-type]
    assert first == again == other


@pytest.mark.parametrize("batch", [2, 4, 6])
@pytest.mark.parametrize("method", METHODS)
def test_how_many_images_run_together_does_not_matter(method: str, batch: int) -> None:
    model = tiny_model()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    one = in_bytes(*quantize(model, Images(), method, **REPAIRS))  # type: ignore[arg-type]
    some = in_bytes(*quantize(model, Batches(batch), method, **REPAIRS))  # type: ignore[arg-type]
    assert one == some


@pytest.mark.parametrize("repairs", [{}, REPAIRS])
def test_a_range_that_the_last_image_widens_is_exact(repairs: dict[str, bool]) -> None:
    images = Images()
    images.images = np.concatenate([images.images // 16 + 112, images.images[:1]])  # dull ones before a real one
    images.order = range(7)
    model = tiny_model()
    _, record = quantize(model, images, "minmax", **repairs)  # type: ignore[arg-type]
    gray = images.images.astype(np.float32)
    largest = np.abs((gray - np.float32(120)) * np.float32(1 / 60)).max()
    assert record["tensors"]["normalised"]["range"] == float(largest)
    if not repairs:
        watched = onnx.ModelProto.FromString(model.SerializeToString())
        watched.graph.output.append(onnx.ValueInfoProto(name="add"))
        session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
        (last,) = session.run(["add"], {"image": images.images[-1:]})
        assert record["tensors"]["add"]["range"] == float(np.abs(last).max())


def test_repairs_are_recorded_only_where_they_were_done() -> None:
    _, plain = quantize(tiny_model(), Images())
    assert plain["equalization"] is None and plain["bias_correction"] is None
    _, record = quantize(tiny_model(), Images(), equalization=True)
    assert list(record["equalization"]["tensors"]) == ["expand.relu6", "md", "last"]
    assert list(record["equalization"]["left"]) == ["add"]
    assert record["bias_correction"] is None


def test_ranges_are_what_the_float_model_does() -> None:
    model, images = tiny_model(), Images()
    tensors = activations(model.graph, place(model.graph))
    histograms = observe(model, tensors, images)
    gray = images.images.astype(np.float64)
    normalised = (gray - 120) / 60
    assert histograms["normalised"].low == pytest.approx(normalised.min(), rel=1e-6)
    assert histograms["normalised"].high == pytest.approx(normalised.max(), rel=1e-6)
    assert histograms["md"].zeros + histograms["md"].counts.sum() == 6 * 16 * (SIZE // 2) ** 2
    assert histograms["md"].low >= 0
    assert histograms["md"].high <= 6


def test_weights() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(6, 3, 3, 3)) * np.logspace(-4, 2, 6).reshape(-1, 1, 1, 1)).astype(np.float32)
    weight[2] = 0
    codes, scales = quantize_weight(weight)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max(axis=(1, 2, 3)).tolist() == [127, 127, 0, 127, 127, 127]
    steps = scales.reshape(-1, 1, 1, 1)
    assert (np.abs(codes * steps - weight) <= 0.5001 * steps).all()
    assert scales[2] == 1
    assert scale_of(0.0) == 1


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    quantize(tiny_model(), Images(3), "minmax", lambda phase, done, steps: told.append((phase, done, steps)))
    assert told == [("calibrating", 1, 3), ("calibrating", 2, 3), ("calibrating", 3, 3)]
    told.clear()
    progress: Any = lambda *step: told.append(step)  # noqa: E731
    quantize(tiny_model(), Images(1), "minmax", progress, equalization=True, bias_correction=True)
    assert [phase for phase, _, _ in told] == ["equalizing", "equalizing", "calibrating", "correcting biases"]


def test_refusals() -> None:
    with pytest.raises(UsageError, match="'median' is none of entropy, minmax, percentile, mse"):
        quantize(tiny_model(), Images(), "median")
    with pytest.raises(UsageError, match="no calibration image"):
        quantize(tiny_model(), Images(0), "minmax")
    with pytest.raises(UsageError, match=r"calibration image is \(1, 1, 32, 32\), the model takes \(1, 1, 24, 24\)"):
        quantize(tiny_model(), Images(size=32), "minmax")
    with pytest.raises(UsageError, match=r"stem\.relu6 on calibration image 1: values are not finite"):
        quantize(tiny_model(spoil="stem.weight"), Images(), "minmax")


@pytest.mark.parametrize("kind", ["function", "padded", "split"])
def test_tensorrt_rtx_computes_in_int8(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from edge.engine_from_onnx import build_engine

    quantized, _ = quantize(tiny_model(), Images(), "mse")
    onnx.save(quantized if kind == "function" else lower(quantized, kind), tmp_path / "model.onnx")
    facts = build_engine(
        tmp_path / "model.onnx", tmp_path / "engine", target="tensorrt-rtx", compute_capabilities=["86"]
    )
    convolutions = [
        (layer["Name"].split("_")[0], layer["Inputs"][0]["Datatype"])
        for layer in facts["layers"]
        if layer["LayerType"] == "correlation"
    ]
    assert [name for name, type_in in convolutions if type_in != "Int8"] == ["cam"], convolutions
    assert len(convolutions) == (8 if kind == "split" else 6)
