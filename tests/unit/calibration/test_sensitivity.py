"""Effects of layers against NumPy, and the smallest set against all sets there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.quantize import Calibrated, calibrate
from calibration.sensitivity import by_effect, layer_effects, smallest_set
from edge.results import probabilities

SIZE = 8
LAYERS = ("a", "b", "c")
SHAPES = {"a": (6, 1), "b": (5, 6), "c": (5, 5), "last": (2, 5)}
RNG = np.random.default_rng(3)
WEIGHTS = {name: RNG.normal(0, 0.7, shape).astype(np.float32) for name, shape in SHAPES.items()}
WEIGHTS["a"][0] /= 300  # this channel is lost in the steps of the others,
WEIGHTS["b"][:, 0] *= 300  # and its weights leave no steps to those of the others
WEIGHTS["last"] /= 3


class Images:
    digest = "-"
    images = np.random.default_rng(6).integers(0, 256, (12, 1, 1, SIZE, SIZE), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self):
        return iter(self.images)


def network() -> onnx.ModelProto:
    """Three 1x1 convolutions with ReLU, a fourth that stays float32, and the mean over positions."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 19]>
        g (uint8[1, 1, {SIZE}, {SIZE}] image) => (float[1, 2] logits) {{
            gray = Cast<to = 1>(image)
            x = Mul(gray, factor)
            a = Conv(x, a_weight)
            a_relu = Relu(a)
            b = Conv(a_relu, b_weight)
            b_relu = Relu(b)
            c = Conv(b_relu, c_weight)
            c_relu = Relu(c)
            last = Conv(c_relu, last_weight)
            logits = ReduceMean<keepdims = 0>(last, axes)
        }}""")
    for node in model.graph.node:
        node.name = node.output[0]
    constants = {f"{name}_weight": weight[:, :, None, None] for name, weight in WEIGHTS.items()}
    constants |= {"factor": np.array(1 / 128, np.float32), "axes": np.array([2, 3], np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def reference(image: NDArray[np.uint8], scales: dict[str, float], rounded: Sequence[str]) -> NDArray[np.float64]:
    """The logits, layers `rounded` in int8."""
    x = image.reshape(1, -1) / 128
    for name, source in zip(LAYERS, ("x", "a_relu", "b_relu")):
        weight = WEIGHTS[name].astype(np.float64)
        if name in rounded:
            steps = np.abs(weight).max(axis=1, keepdims=True) / 127
            weight = np.rint(weight / steps) * steps
            x = np.clip(np.rint(x / scales[source]), -128, 127) * scales[source]
        x = np.maximum(weight @ x, 0)
    return (WEIGHTS["last"] @ x).mean(axis=1)


@pytest.fixture(scope="module")
def calibrated() -> Calibrated:
    return calibrate(network(), Images(), "minmax")


def test_effects_against_numpy(calibrated: Calibrated) -> None:
    scales = {name: float(scale) for name, scale in calibrated.scales.items()}
    truth = np.random.default_rng(8).random((len(Images.images), 2)) < 0.5
    found = layer_effects(calibrated, Images.images, truth)
    assert tuple(found) == LAYERS == calibrated.layers
    before = np.array([reference(image, scales, ()) for image in Images.images])
    for layer in LAYERS:
        after = np.array([reference(image, scales, [layer]) for image in Images.images])
        difference = np.abs(probabilities(after) - probabilities(before))
        assert found[layer]["mean_difference"] == pytest.approx(difference.mean(), rel=2e-3, abs=1e-6)
        assert found[layer]["max_difference"] == pytest.approx(difference.max(), rel=2e-3, abs=1e-6)
        drop = np.mean([area(truth[:, i], before[:, i]) - area(truth[:, i], after[:, i]) for i in range(2)])
        assert found[layer]["auc_drop"] == pytest.approx(drop, abs=1e-9)
    assert by_effect(found)[0] == "b"


def area(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """How often a positive has the higher score, over all pairs."""
    pairs = list(product(scores[truth], scores[~truth]))
    return float(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))


@pytest.mark.parametrize("truth", [None, np.ones((12, 2), np.bool_)])
def test_without_an_area_there_is_no_drop(calibrated: Calibrated, truth: NDArray[np.bool_] | None) -> None:
    assert [effect["auc_drop"] for effect in layer_effects(calibrated, Images.images, truth).values()] == [None] * 3


def test_a_layer_that_is_left_is_float32(calibrated: Calibrated) -> None:
    model, record = calibrated.quantized(["b"])
    assert list(record["placement"]["weighted"]) == ["a", "c"]
    assert sorted(record["tensors"]) == ["b_relu", "x"]
    inputs = {node.name: list(node.input) for node in model.graph.node}
    assert inputs["b"] == ["a_relu", "b_weight"] and inputs["c"][0] == "b_relu.dequantized"
    everything, _ = calibrated.quantized(LAYERS)
    assert all(node.op_type not in ("QuantizeLinear", "DequantizeLinear") for node in everything.graph.node)


@pytest.mark.parametrize("seed", range(30))
def test_smallest_set_against_all_sets(seed: int) -> None:
    """Where errors add up, as small effects do: the first layers of the order are the best of all sets."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    cost = dict(zip("abcdefgh", np.sort(rng.exponential(size=count))[::-1]))
    limit = rng.uniform(0, sum(cost.values()))
    tried = []

    def passes(left: tuple[str, ...]) -> bool:
        tried.append(left)
        return sum(value for name, value in cost.items() if name not in left) <= limit

    found = smallest_set(list(cost), passes)
    assert found is not None and len(set(tried)) >= len(tried) - 1
    if sum(cost.values()) > limit:  # else none needs to be left, which is not asked
        sizes = [len(left) for n in range(count + 1) for left in combinations(cost, n) if passes(left)]
        assert passes(found) and len(found) == min(sizes)


def test_layers_that_matter_little_are_taken_back() -> None:
    wanted = {"b", "e"}
    found = smallest_set(list("abcdefg"), lambda left: wanted <= set(left))
    assert found == ("b", "e")


@pytest.mark.parametrize("seed", range(30))
def test_no_layer_of_the_set_can_be_taken_back(seed: int) -> None:
    """Whatever passes: errors of layers may cancel, so that fewer layers in float16 are better than more."""
    rng = np.random.default_rng(seed)
    verdicts: dict[tuple[str, ...], bool] = {}

    def passes(left: tuple[str, ...]) -> bool:
        return verdicts.setdefault(tuple(sorted(left)), bool(rng.random() < 0.4))

    left = smallest_set(list("abcdefgh"), passes)
    if left is None:
        assert not passes(tuple("abcdefgh"))
        return
    assert passes(left)
    assert len(left) == 1 or not any(passes(tuple(name for name in left if name != layer)) for layer in left)


def test_no_set_helps() -> None:
    tried = []
    assert smallest_set(list("abcde"), lambda left: tried.append(left) or False) is None
    assert [len(left) for left in tried] == [1, 2, 4, 5]
