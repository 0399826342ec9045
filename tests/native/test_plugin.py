"""The TensorRT plugin's whole life on a CPU, through TensorRT's own interfaces, with the shipped kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.native import reference
from tests.native.host_kernel import tactic_count
from tests.native.layer import DTYPES, Layer, Operands, random_operands
from tests.native.layouts import pack, padded_channels, unpack
from tests.native.plugin_harness import (
    CHAR,
    FLOAT32,
    FORMATS,
    INT32,
    INT64,
    RUNTIME,
    TYPES,
    Plugin,
    Tensor,
    Value,
    create,
    creator_identity,
    field_names,
    floats,
    ints,
    set_logger,
    take_messages,
    text,
)

FLOATS: Mapping[str, Value] = {
    "kernel_sizes": ints(3, 5),
    "channel_splits": ints(20, 13),
    "stride": ints(1),
    "activation": text("relu6"),
}
INT8: Mapping[str, Value] = {**FLOATS, "x_scale": floats(0.02), "y_scale": floats(0.03)}

SIZES = "expected 1 to 8 kernel sizes, each 3, 5 or 7"
SPLITS = "expected as many channel counts as kernel_sizes has, each at least 1"
STRIDE = "expected 1 or 2"
ACTIVATION = "expected none, relu, relu6 or hardswish"
SCALE = "expected a finite number above 0, for int8 only and then both x_scale and y_scale"


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """The plugin has a logger, and every message of it is expected by the test."""
    set_logger(True)
    take_messages()
    yield
    assert take_messages() == []


def made(fields: Mapping[str, Value], **changes: Value) -> Plugin:
    plugin = create({**fields, **changes})
    assert plugin is not None, take_messages()
    return plugin


def said() -> str:
    """The one message that the plugin logged."""
    (message,) = take_messages()
    return message


# ---- attributes


def test_it_is_found_under_the_name_version_and_namespace_of_the_nodes() -> None:
    assert creator_identity() == ("MDConv", "1", "mdconv") == made(FLOATS).identity()
    numbers, characters = INT32, CHAR
    assert field_names() == {
        "kernel_sizes": numbers,
        "channel_splits": numbers,
        "stride": numbers,
        "activation": characters,
        "x_scale": FLOAT32,
        "y_scale": FLOAT32,
    }


def test_integers_come_in_either_width_and_texts_with_or_without_their_end() -> None:
    wide = {
        "kernel_sizes": ints(3, 5, kind=INT64),
        "channel_splits": ints(20, 13, kind=INT64),
        "stride": ints(1, kind=INT64),
        "activation": text("relu6\0"),
        "plugin_version": text("1"),
        "group": ints(33),
    }
    expected = "kernel_sizes=[3, 5] channel_splits=[20, 13] stride=1 activation=relu6"
    assert made(wide).metadata() == made(FLOATS).metadata() == expected
    assert made({**FLOATS, "x_scale": floats(0), "y_scale": floats(0)}).metadata() == expected


@pytest.mark.parametrize(
    ("attribute", "value", "came", "allowed"),
    [
        ("kernel_sizes", None, "missing", SIZES),
        ("kernel_sizes", ints(), "[]", SIZES),
        ("kernel_sizes", ints(3, 4), "[3, 4]", SIZES),
        ("kernel_sizes", ints(9, kind=INT64), "[9]", SIZES),
        ("kernel_sizes", ints(*[3] * 9), "[3, 3, 3, 3, 3, 3, 3, 3, 3]", SIZES),
        ("kernel_sizes", ints(3 + 2**32, 5, kind=INT64), "[4294967299, 5]", SIZES),
        ("kernel_sizes", floats(3, 5), "of field type 1", SIZES),
        ("channel_splits", None, "missing", SPLITS),
        ("channel_splits", ints(33), "[33]", SPLITS),
        ("channel_splits", ints(33, 0), "[33, 0]", SPLITS),
        ("channel_splits", ints(34, -1), "[34, -1]", SPLITS),
        ("channel_splits", ints(2**31 - 1, 1), "[2147483647, 1]", SPLITS),
        ("channel_splits", text("20"), "of field type 6", SPLITS),
        ("stride", None, "missing", STRIDE),
        ("stride", ints(), "[]", STRIDE),
        ("stride", ints(3), "3", STRIDE),
        ("stride", ints(0), "0", STRIDE),
        ("stride", ints(1, 1), "[1, 1]", STRIDE),
        ("stride", ints(1 + 2**32, kind=INT64), "4294967297", STRIDE),
        ("activation", None, "missing", ACTIVATION),
        ("activation", text(""), '""', ACTIVATION),
        ("activation", text("relu7"), '"relu7"', ACTIVATION),
        ("activation", text("Relu"), '"Relu"', ACTIVATION),
        ("activation", ints(1), "of field type 5", ACTIVATION),
        ("x_scale", floats(-0.5), "-0.5", SCALE),
        ("x_scale", floats(float("nan")), "nan", SCALE),
        ("y_scale", floats(float("inf")), "inf", SCALE),
        ("y_scale", floats(0.1, 0.2), "[0.1, 0.2]", SCALE),
        ("y_scale", ints(1), "of field type 5", SCALE),
        ("y_scale", None, "missing or 0", SCALE),
        ("x_scale", floats(0), "missing or 0", SCALE),
    ],
)
def test_a_bad_attribute_is_refused_by_name_value_and_what_is_allowed(
    attribute: str, value: Value | None, came: str, allowed: str
) -> None:
    fields = {name: given for name, given in {**INT8, attribute: value}.items() if given is not None}
    assert create(fields) is None
    assert said() == f"node node: attribute {attribute} is {came}, {allowed}"


def test_without_a_logger_it_speaks_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    set_logger(False)
    assert create({**FLOATS, "stride": ints(3)}) is None
    assert capfd.readouterr().err == "MDConv: node node: attribute stride is 3, expected 1 or 2\n"


# ---- types and shapes


@pytest.mark.parametrize(
    ("fields", "inputs"),
    [
        (FLOATS, ("float32", "float32", "float32")),
        (FLOATS, ("float16", "float16", "float16")),
        (INT8, ("int8", "int8", "float32", "float32")),
    ],
)
def test_y_has_the_type_of_x(fields: Mapping[str, Value], inputs: tuple[str, ...]) -> None:
    plugin = made(fields)
    assert plugin.output_count() == 1
    assert plugin.output_type(*inputs) == inputs[0]


THREE = "X, W, B and Y; an int8 node has w_scale and the attributes x_scale and y_scale"


@pytest.mark.parametrize(
    ("fields", "inputs", "message"),
    [
        (FLOATS, ["bf16"] * 3, "input X is TensorRT's type 7, expected float32, float16 or int8"),
        (FLOATS, ["float32", "float16", "float32"], "input W is float16, expected float32 where X is float32"),
        (FLOATS, ["float16", "float16", "float32"], "input B is float32, expected float16 where X is float16"),
        (FLOATS, ["int8"] * 3, "input X is int8, expected float32 or float16; int8 needs x_scale and y_scale"),
        (FLOATS, ["float32"] * 4, f"the node has 4 inputs and 1 outputs, expected {THREE}"),
        (
            INT8,
            ["int8"] * 3,
            "the node has 3 inputs and 1 outputs, expected X, W, B, w_scale and Y, since it has x_scale",
        ),
        (INT8, ["float32"] * 4, "input X is float32, expected int8, since attribute x_scale is set"),
        (INT8, ["int8", "float32", "float32", "float32"], "input W is float32, expected int8 where X is int8"),
        (INT8, ["int8", "int8", "int8", "float32"], "input B is int8, expected float32 where X is int8"),
        (INT8, ["int8", "int8", "float32", "float16"], "input w_scale is float16, expected float32 where X is int8"),
    ],
)
def test_other_types_are_refused(fields: Mapping[str, Value], inputs: list[str], message: str) -> None:
    assert made(fields).output_type(*inputs) is None
    assert said() == message


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 8), (113, 56)])
@pytest.mark.parametrize("dynamic", [(), (0,), (0, 2, 3)])
def test_y_s_shape_is_worked_out_for_batch_and_size_that_are_known_later(
    stride: int, height: int, width: int, dynamic: tuple[int, ...]
) -> None:
    plugin = made(FLOATS, stride=ints(stride))
    found = plugin.output_shape([(3, 33, height, width), (33, 1, 5, 5), (33,)], dynamic)
    assert found == ((3, 33, -(-height // stride), -(-width // stride)), set(dynamic))


def test_x_of_another_rank_is_refused() -> None:
    assert made(FLOATS).output_shape([(33, 8, 8), (33, 1, 5, 5), (33,)]) is None
    assert said() == "input X has 3 dimensions, expected 4"


def tensors_of(layer: Layer) -> list[Tensor]:
    c, k = layer.channels, layer.largest
    bias = "float32" if layer.dtype == "int8" else layer.dtype
    inputs = [
        Tensor(layer.x_shape, layer.dtype, layer.layout),
        Tensor((c, 1, k, k), layer.dtype),
        Tensor((c,), bias),
        *([Tensor((c,))] if layer.dtype == "int8" else []),
    ]
    return [*inputs, Tensor(layer.y_shape, layer.dtype, layer.layout)]


OFFERED = {
    ("float32", "linear"),
    ("float16", "linear"),
    ("float16", "hwc8"),
    ("int8", "linear"),
    ("int8", "chw4"),
    ("int8", "chw32"),
}
"""The types and formats of X and Y that README's table names."""


@pytest.mark.parametrize("fields", [FLOATS, INT8], ids=["floats", "int8"])
def test_the_formats_are_those_of_the_table_and_no_others(fields: Mapping[str, Value]) -> None:
    plugin = made(fields)
    quantized = "x_scale" in fields
    every = list(itertools.product(TYPES, FORMATS))
    for x in every:
        offered = x in OFFERED and (x[0] == "int8") == quantized
        tensors = tensors_of(Layer(*x, (20, 13), (3, 5), 9, 9))
        if not quantized:
            tensors = [*tensors[:3], tensors[-1]]
        elif len(tensors) == 4:
            tensors.insert(3, Tensor((33,)))
        assert plugin.supports(0, tensors) == offered, x
        if not offered:
            continue
        beside = "float32" if quantized else x[0]
        wanted = [x, (x[0], "linear"), (beside, "linear"), *([("float32", "linear")] if quantized else []), x]
        for position, (kind, layout) in itertools.product(range(1, len(tensors)), every):
            changed = list(tensors)
            changed[position] = Tensor(tensors[position].dims, kind, layout)
            assert plugin.supports(position, changed) == ((kind, layout) == wanted[position]), (
                x,
                position,
                kind,
                layout,
            )


SMALL = Layer("int8", "chw4", (20, 13), (3, 5), 9, 8, x_scale=0.02, y_scale=0.03)
ANY = -1


@pytest.mark.parametrize(
    ("index", "dims", "message"),
    [
        (0, (1, 32, 9, 8), "input X has dimensions [1, 32, 9, 8], expected [any, 33, any, any]"),
        (0, (33, 9, 8), "input X has dimensions [33, 9, 8], expected [any, 33, any, any]"),
        (1, (33, 1, 3, 3), "input W has dimensions [33, 1, 3, 3], expected [33, 1, 5, 5]"),
        (1, (33, 5, 5), "input W has dimensions [33, 5, 5], expected [33, 1, 5, 5]"),
        (2, (1, 33), "input B has dimensions [1, 33], expected [33]"),
        (3, (1,), "input w_scale has dimensions [1], expected [33]"),
        (4, (1, 33, 5, 4), "output Y has dimensions [1, 33, 5, 4], expected [1, 33, 9, 8]"),
    ],
)
def test_tensors_of_other_dimensions_are_refused_when_built_and_when_run(
    index: int, dims: tuple[int, ...], message: str
) -> None:
    plugin, tensors = made(INT8), tensors_of(SMALL)
    tensors[index] = tensors[index]._replace(dims=dims)
    assert not plugin.configure(tensors)
    assert said() == message
    assert not plugin.change_shape(tensors)
    assert said() == message


def test_dimensions_may_be_unknown_when_built() -> None:
    tensors = tensors_of(SMALL)
    tensors[0] = tensors[0]._replace(dims=(ANY, 33, ANY, ANY))
    tensors[-1] = tensors[-1]._replace(dims=(ANY, 33, ANY, ANY))
    assert made(INT8).configure(tensors)


def test_a_shape_that_the_kernels_cannot_run_is_refused_with_their_reason() -> None:
    plugin = made(INT8)
    tensors = tensors_of(replace(SMALL, height=70_000))
    assert not plugin.change_shape(tensors)
    begin = "input X of dimensions [1, 33, 70000, 8] cannot be run: batch, channels, height and width must be at most"
    assert said().startswith(begin)
    assert not plugin.change_shape(tensors_of(replace(SMALL, width=2**33)))
    assert said() == "input X has dimensions [1, 33, 9, 8589934592], expected each below 2^31"


def test_a_format_that_was_not_offered_is_refused() -> None:
    tensors = tensors_of(replace(SMALL, layout="hwc16"))
    plugin = made(INT8)
    assert not plugin.configure(tensors) and not plugin.change_shape(tensors)
    assert take_messages() == ["input X came in a format that was not offered"] * 2


# ---- identity


def test_the_timing_id_tells_all_attributes_and_the_kernels() -> None:
    others = [
        made(FLOATS),
        made(INT8),
        made(INT8, kernel_sizes=ints(5, 3)),
        made(INT8, channel_splits=ints(13, 20)),
        made(INT8, stride=ints(2)),
        made(INT8, activation=text("relu")),
        made(INT8, x_scale=floats(np.nextafter(np.float32(0.02), np.float32(1)))),
        made(INT8, y_scale=floats(0.031)),
    ]
    ids = [plugin.timing_id() for plugin in others]
    assert len(set(ids)) == len(ids)
    assert made(INT8).timing_id() == ids[1] == made(INT8).clone().timing_id()
    assert all(name.endswith(" kernels=host") for name in ids)


def test_what_is_serialized_makes_the_same_plugin_again() -> None:
    for fields in (
        FLOATS,
        {**INT8, "kernel_sizes": ints(7), "channel_splits": ints(5), "activation": text("hardswish")},
    ):
        plugin = made(fields)
        again = create(plugin.serialized(), RUNTIME)
        assert again is not None
        assert again.metadata() == plugin.metadata()
        assert again.serialized() == plugin.serialized()


# ---- running


def run(plugin: Plugin, layer: Layer, operands: Operands) -> NDArray[Any]:
    """Y (N, C, H', W') of an enqueue on operands in the layer's layout."""
    tensors = tensors_of(layer)
    inputs = [pack(operands.x, layer.layout, 77), operands.weight, operands.bias, operands.weight_scale]
    n, c, h, w = layer.y_shape
    y = aligned(np.zeros(n * padded_channels(c, layer.layout) * h * w, DTYPES[layer.dtype]))
    given = [aligned(array) for array in inputs if array is not None]
    assert plugin.enqueue(tensors, given, y), take_messages()
    return unpack(y, layer.layout, layer.y_shape)[0]


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A copy at an address that a GPU's allocator would give."""
    memory = np.empty(array.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def assert_right(y: NDArray[Any], layer: Layer, operands: Operands) -> None:
    if layer.dtype == "int8":
        np.testing.assert_array_equal(y, reference.int8(layer, operands))
        return
    expected, magnitudes = reference.exact(layer, operands)
    tolerance = {"float32": 1e-5, "float16": 2e-3}[layer.dtype]
    assert (np.abs(y.astype(np.float64) - expected) <= tolerance * magnitudes + 1e-6).all()


def fields_of(layer: Layer) -> dict[str, Value]:
    scales = {"x_scale": floats(layer.x_scale), "y_scale": floats(layer.y_scale)}
    return {
        "kernel_sizes": ints(*layer.kernel_sizes),
        "channel_splits": ints(*layer.channel_splits),
        "stride": ints(layer.stride),
        "activation": text(layer.activation),
        **(scales if layer.dtype == "int8" else {}),
    }


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("dtype", "layout"), sorted(OFFERED))
def test_a_life_from_the_builder_to_results(dtype: str, layout: str, stride: int) -> None:
    """Built, tuned over every tactic, serialized; made again, attached to two contexts, run at two shapes in turn."""
    layer = Layer(dtype, layout, (20, 13), (3, 5), 9, 21, stride, "hardswish", 2, 0.02, 0.03)
    rng = np.random.default_rng(8)
    operands = random_operands(layer, rng)
    built = made(fields_of(layer))
    assert built.configure(tensors_of(layer))
    tactics = built.tactics()
    assert tactics == list(range(1, tactic_count(dtype, layout) + 1)) and tactics
    timed = built.clone()
    assert timed.change_shape(tensors_of(layer))
    for tactic in tactics:
        assert timed.set_tactic(tactic)
        assert_right(run(timed, layer, operands), layer, operands)

    loaded = create(built.serialized(), RUNTIME)
    assert loaded is not None and loaded.set_tactic(tactics[-1])
    contexts = [loaded.attach(), loaded.attach()]
    del loaded, built, timed
    smaller = replace(layer, batch=1, height=5, width=6)
    shapes = [(layer, operands), (smaller, random_operands(smaller, rng))]
    for at, given in [*shapes, *shapes]:
        for context in contexts:
            assert context.change_shape(tensors_of(at))
            assert_right(run(context, at, given), at, given)


def test_an_enqueue_needs_no_tactic_and_no_call_before_it() -> None:
    operands = random_operands(SMALL, np.random.default_rng(1))
    assert_right(run(made(fields_of(SMALL)), SMALL, operands), SMALL, operands)


def test_a_failed_launch_is_an_error_that_says_why() -> None:
    plugin = made(fields_of(SMALL))
    tensors, operands = tensors_of(SMALL), random_operands(SMALL, np.random.default_rng(2))
    inputs = [aligned(a) for a in (pack(operands.x, "chw4", 0), operands.weight, operands.bias, operands.weight_scale)]
    y = aligned(np.full(SMALL.batch * 36 * 9 * 8, 99, np.int8))
    assert plugin.set_tactic(60)
    assert not plugin.enqueue(tensors, inputs, y)
    assert said().startswith("tactic 60 on X of dimensions [1, 33, 9, 8] was not launched: ")
    assert plugin.set_tactic(1)
    assert not plugin.enqueue(tensors, [*inputs[:2], None, inputs[3]], y)
    assert said().startswith("tactic 1 on X of dimensions [1, 33, 9, 8] was not launched: ")
    assert (y == 99).all()
    assert not plugin.set_tactic(-1)
    assert said() == "tactic -1 was set, expected 0 or more"
