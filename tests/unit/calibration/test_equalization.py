"""Equalization: what it may touch, that the function stays, and that it undoes what was done to a network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from build_engine.export import to_onnx
from calibration.equalization import column_sizes, doublings, equalize, find_junctions, survey
from calibration.graph import MDCONV, attributes, initializers
from edge.errors import UsageError
from mdconv.checkpoint import Checkpoint
from mdconv.networks import build, normalise
from tests.unit.build_engine.random_networks import random_images, randomise, run
from tests.unit.calibration.test_quantize import Images, tiny_model

CHANNELS = 8
INF = math.inf


def model_of(nodes: str, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """image (1, 1, 8, 8) uint8 -> x (1, 8, 8, 8) -> `nodes`, each named after its output.

    Weights ``w...`` are dense 1x1 convolutions, ``d...`` depthwise 3x3 ones, ``b...`` biases.
    """
    rng = np.random.default_rng(3)
    text = f"""
        <ir_version: 9, opset_import: ["" : 19]>
        g (uint8[1, 1, 8, 8] image) => ({", ".join(f"float {name}" for name in outputs)}) {{
            gray = Cast<to = 1>(image)
            x = Conv(gray, stem)
            {nodes}
        }}"""
    model = onnx.parser.parse_model(text)
    constants: dict[str, NDArray[Any]] = {"zero": np.float32(0), "six": np.float32(6), "one": np.float32(1)}  # type: ignore[dict-item]
    shapes = {"s": (CHANNELS, 1, 1, 1), "w": (CHANNELS, CHANNELS, 1, 1), "d": (CHANNELS, 1, 3, 3), "b": (CHANNELS,)}
    made = {node.output[0] for node in model.graph.node} | {"image"}
    for node in model.graph.node:
        node.name = node.output[0]
        for name in node.input:
            if name in made or name in initializers(model.graph):
                continue
            values = constants.get(name)
            if values is None:
                values = (rng.normal(0, 0.3, shapes[name[0]]) * (0.01 if name == "stem" else 1)).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return model


DEPTHWISE = "Conv<group = 8, kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"


@pytest.mark.parametrize(
    ("nodes", "found", "left"),
    [
        (f"d = {DEPTHWISE}(x, d1, b1)\n y = Conv(d, w1, b2)", {"x": INF, "d": INF}, {}),
        (f"r = Relu(x)\n d = {DEPTHWISE}(r, d1)\n c = Clip(d, zero, six)\n y = Conv(c, w1)", {"r": INF, "c": 6}, {}),
        (f"d = {DEPTHWISE}(x, d1)\n e = {DEPTHWISE}(d, d2)\n y = Conv(e, w1)", {"x": INF, "d": INF, "e": INF}, {}),
        (f"h = HardSwish(x)\n d = {DEPTHWISE}(h, d1)\n y = Conv(d, w1)", {"d": INF}, {"h": "HardSwish"}),
        (f"c = Clip(x, one, six)\n d = {DEPTHWISE}(c, d1)\n y = Conv(d, w1)", {"d": INF}, {"c": "not from 0"}),
        (f"d = {DEPTHWISE}(x, d1)\n y = Add(d, x)", {}, {"x": "Add reads it", "d": "Add reads it"}),
        (f"d = {DEPTHWISE}(x, d1)\n y = GlobalAveragePool(d)", {"x": INF}, {"d": "GlobalAveragePool reads it"}),
        (f"m = Abs(x)\n y = {DEPTHWISE}(m, d1)", {}, {"m": "from Abs", "y": "nothing reads"}),
        (f"d = {DEPTHWISE}(x, d1)\n e = {DEPTHWISE}(d, d1)", {}, {"x": "its own", "d": "its own", "e": "nothing"}),
        ("c = Conv(x, w1)\n y = Conv(c, w2)", {}, {}),
    ],
)
def test_what_may_be_scaled(nodes: str, found: dict[str, float], left: dict[str, str]) -> None:
    junctions = find_junctions(model_of(nodes).graph)
    assert {junction.tensor: junction.bound for junction in junctions.found} == found
    assert junctions.left.keys() == left.keys()
    assert all(reason in junctions.left[tensor] for tensor, reason in left.items()), junctions.left


def test_what_is_read_before_its_activation_or_put_out_is_left() -> None:
    nodes = f"r = Relu(x)\n d = {DEPTHWISE}(r, d1)\n e = Conv(d, w1)\n y = Add(e, x)"
    assert "before its activation" in find_junctions(model_of(nodes).graph).left["r"]
    nodes = f"d = {DEPTHWISE}(x, d1)\n y = Conv(d, w1)"
    assert "an output of the network" in find_junctions(model_of(nodes, ("y", "d")).graph).left["d"]


@pytest.mark.parametrize("bound", [6.0, math.inf])
def test_channels_that_depthwise_layers_read_are_made_equal(bound: float) -> None:
    peaks = np.array([5.0, 2.9, 1.6, 0.3, 0.004, 0.0, min(bound, 7.0)], np.float32)
    found = doublings(peaks, bound)
    scaled = np.ldexp(peaks, found)
    limit = 3.0 if math.isfinite(bound) else 7.0
    for before, after, times in zip(peaks, scaled, found):
        if before == 0 or before > limit:
            assert times == 0
        else:
            assert times >= 0 and limit / 2 < after <= limit


def test_no_channel_is_made_larger_than_the_largest() -> None:
    peaks = np.array([0.5, 0.01, 0.2], np.float32)
    assert np.ldexp(peaks, doublings(peaks, 6.0)).max() == np.float32(0.5)
    assert doublings(np.array([1, 1e-30], np.float32), math.inf).tolist() == [0, 16]
    assert not doublings(np.zeros(4, np.float32), 6.0).any()


def test_a_dense_reader_shares_the_burden() -> None:
    """Equation 11: a channel a hundred times smaller, under weights as large as the others', is magnified by ten."""
    found = doublings(np.array([1, 1e-2], np.float32), math.inf, np.array([1.0, 1.0]))
    assert found.tolist() == [0, 3]  # sqrt(100), rounded in its logarithm
    # If its weights make up for its size, by all of it.
    assert doublings(np.array([1, 2**-7], np.float32), math.inf, np.array([1.0, 2.0**7])).tolist() == [0, 7]
    # Large channels under small weights are made smaller, unless ReLU6 would then clip too late.
    peaks, columns = np.array([2, 2], np.float32), np.array([1.0, 2.0**-8])
    assert doublings(peaks, math.inf, columns).tolist() == [0, -4]
    assert doublings(peaks, 6.0, columns).tolist() == [0, 0]
    # A dead channel's weights do not take the range of their rows.
    assert doublings(np.array([1, 0], np.float32), 6.0, np.array([1.0, 64.0])).tolist() == [0, 6]
    assert doublings(np.array([1, 0], np.float32), 6.0, np.array([1.0, 0.5])).tolist() == [0, 0]


@pytest.mark.parametrize("groups", [1, 2])
def test_column_sizes_by_loops(groups: int) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(6, 8 // groups, 3, 3)).astype(np.float32)
    peaks = rng.uniform(0.1, 3, 8).astype(np.float32)
    expected = np.zeros(8)
    for row in range(6):
        channels = [row // (6 // groups) * (8 // groups) + i for i in range(8 // groups)]
        magnitudes = [float(np.abs(weight[row, i]).max()) for i in range(8 // groups)]
        contribution = max(m * float(peaks[c]) for m, c in zip(magnitudes, channels))
        for magnitude, channel in zip(magnitudes, channels):
            expected[channel] = max(expected[channel], magnitude / contribution)
    np.testing.assert_allclose(column_sizes(weight, groups, peaks), expected, rtol=1e-12)


def test_peaks_are_the_models_own() -> None:
    model, images = tiny_model(), Images()
    found = survey(model, ["expand.relu6", "md"], images)
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("expand.relu6", "md"))
    values = [run(watched, image, "expand.relu6", "md") for image in images]
    for index, name in enumerate(("expand.relu6", "md")):
        expected = np.abs(np.concatenate([one[index] for one in values])).max(axis=(0, 2, 3))
        np.testing.assert_array_equal(found.peaks[name], expected)
    with pytest.raises(UsageError, match=r"tensor expand\.relu6 on a calibration image: values are not finite"):
        survey(tiny_model(spoil="expand.weight"), ["expand.relu6"], images)


def network_of(name: str) -> tuple[Any, onnx.ModelProto, NDArray[np.uint8]]:
    torch.manual_seed(5)
    network = build(name, labels=3).eval()
    randomise(network)
    labels = ("a", "b", "c")
    model = to_onnx(Checkpoint(network, name, {"labels": 3}, labels, 64, dict.fromkeys(labels, 0.5), ""))
    return network, model, random_images(4, 64)


@pytest.mark.parametrize(
    ("name", "tensors", "left"),
    [
        ("mobilenet", 26, 0),
        ("mobilenet_v2", 34, 0),
        ("mobilenet_v3", 8, 22),
        ("shufflenet", 16, 16),
        ("shufflenet_v2", 35, 3),
    ],
)
def test_every_network_keeps_its_function(name: str, tensors: int, left: int) -> None:
    """To the last bit on the calibration images; and it is still the one that PyTorch computes."""
    network, model, images = network_of(name)
    equalized, record = equalize(model, np.split(images, len(images)))
    onnx.checker.check_model(equalized, full_check=True)
    assert (len(record["tensors"]), len(record["left"])) == (tensors, left)
    assert record["difference"] == 0
    with torch.inference_mode():
        expected = network(normalise(torch.from_numpy(images))).numpy()
    for image, logits in zip(np.split(images, len(images)), expected):
        (before,), (after,) = run(model, image, "logits"), run(equalized, image, "logits")
        np.testing.assert_array_equal(after, before)
        np.testing.assert_allclose(after[0], logits, rtol=0, atol=1e-4 * max(1, np.abs(logits).max()))
    changed = sum(facts["scaled"] for facts in record["tensors"].values())
    assert changed > 0
    for facts in record["tensors"].values():
        assert facts["spread"]["after"] <= max(2.0, facts["spread"]["before"])


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_networks_without_depthwise_layers_are_left_alone(name: str) -> None:
    labels = ("a", "b", "c")
    network = build(name, labels=3).eval()
    model = to_onnx(Checkpoint(network, name, {"labels": 3}, labels, 32, dict.fromkeys(labels, 0.5), ""))
    equalized, record = equalize(model, [])
    assert equalized == model and record == {"difference": 0.0, "tensors": {}, "left": {}}


def spread(model: onnx.ModelProto, exponents: dict[str, NDArray[np.int64]]) -> onnx.ModelProto:
    """The same function with channels of other sizes, by loops over channels."""
    other = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = {node.name: node for node in other.graph.node}
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in other.graph.initializer}
    for junction in find_junctions(other.graph).found:
        for channel, exponent in enumerate(exponents[junction.tensor]):
            factor = np.float32(2.0**exponent)
            for name in nodes[junction.writer].input[1:]:
                values[name][channel] *= factor
            for reader in junction.readers:
                dense = nodes[reader].op_type != MDCONV and attributes(nodes[reader]).get("group", 1) == 1
                values[nodes[reader].input[1]][(slice(None), channel) if dense else channel] /= factor
    for tensor in other.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return other


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v2"])
def test_it_undoes_a_spread_of_channels(name: str) -> None:
    """Channels up to 1:1024 apart, none beyond ReLU6's bound: the equalized network is the same, bit for bit."""
    _, model, images = network_of(name)
    batches = np.split(images, len(images))
    junctions = find_junctions(model.graph).found
    peaks = survey(model, [junction.tensor for junction in junctions], batches).peaks
    rng = np.random.default_rng(2)
    exponents = {}
    for junction in junctions:
        seen = peaks[junction.tensor]
        chosen = -rng.integers(0, 11, len(seen))
        # Of what the bound leaves alone, and of the largest, which the others are measured by, nothing changes.
        held = (seen > junction.bound / 2) | (seen >= seen[seen <= junction.bound / 2].max(initial=0)) | (seen == 0)
        # Nor of channels that are so small already that they would be taken for dead.
        chosen = np.maximum(chosen, np.ceil(-15 - np.log2(np.maximum(seen, 1e-30) / seen.max())).astype(int))
        chosen[held | (chosen > 0)] = 0
        exponents[junction.tensor] = chosen
    hard = spread(model, exponents)
    assert np.mean([np.abs(chosen).max() for chosen in exponents.values()]) > 9
    (before,), (after,) = run(model, batches[0], "logits"), run(hard, batches[0], "logits")
    np.testing.assert_array_equal(after, before)
    mended, record = equalize(hard, batches)
    expected, _ = equalize(model, batches)
    assert max(facts["spread"]["before"] for facts in record["tensors"].values()) > 1000
    constants = initializers(expected.graph)
    for tensor in mended.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(constants[tensor.name]))


def test_beyond_twice_what_was_seen_a_channel_is_cut_off() -> None:
    """What the record's difference of 0 does not say: ReLU6 clips a magnified channel earlier on other images."""
    model = model_of(f"c = Clip(x, zero, six)\n d = {DEPTHWISE}(c, d1, b1)\n r = Relu(d)\n y = Conv(r, w1)")
    stem = np.full((CHANNELS, 1, 1, 1), 0.001, np.float32)
    stem[0] = 0.03
    initializers(model.graph)["stem"].CopyFrom(numpy_helper.from_array(stem, "stem"))
    dim = [np.full((1, 1, 8, 8), 90, np.uint8)]  # channels at 2.7 and 0.09
    equalized, record = equalize(model, dim)
    assert record["tensors"]["c"]["doublings"] == [0] + [4] * 7
    for level, same in ((90, True), (180, True), (255, True)):
        image = np.full((1, 1, 8, 8), level, np.uint8)
        assert (run(equalized, image)[0] == run(model, image)[0]).all() == same
    stem[1:] = 0.0015
    darker = [np.full((1, 1, 8, 8), 60, np.uint8)]  # the same channels at 1.8 and 0.09, before an image of four times
    initializers(model.graph)["stem"].CopyFrom(numpy_helper.from_array(stem, "stem"))
    initializers(model.graph)["six"].CopyFrom(numpy_helper.from_array(np.float32(2.5), "six"))
    equalized, _ = equalize(model, darker)
    image = np.full((1, 1, 8, 8), 255, np.uint8)
    assert (run(equalized, image)[0] != run(model, image)[0]).any()
