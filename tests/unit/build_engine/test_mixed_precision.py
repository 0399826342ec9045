"""What a build leaves in float16, judged by the real self-test and gate on a network with one layer that int8 ruins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from build_engine.lowering import KINDS, lower
from build_engine.mixed_precision import Trial, first_plan, mixed_model, next_plan
from calibration.graph import initializers
from calibration.limits import Limits
from calibration.quantize import calibrate
from edge.preprocess import Preprocess
from tests.unit.calibration.test_sensitivity import SIZE, Images, network

LABELS = ("Mass", "Nodule")
STRICT = {"max": 2e-3, "mean": 1e-3}
LOOSE = {"max": 1.0, "mean": 1.0}


def trial(golden_limit: dict[str, float], gate: Path | None = None, **limits: float) -> Trial:
    return Trial(
        calibrate(network(), Images(), "minmax"),
        golden=list(Images.images[:4]),
        golden_limit=golden_limit,
        gate=gate,
        preprocess=Preprocess(SIZE),
        labels=LABELS,
        thresholds=dict.fromkeys(LABELS, 0.5),
        limits=Limits(**limits),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gate")
    for number, image in enumerate(np.random.default_rng(1).integers(0, 256, (10, SIZE, SIZE), dtype=np.uint8)):
        cv2.imwrite(str(directory / f"{number}.png"), image)
    return directory


def test_all_in_int8_where_that_is_good_enough() -> None:
    plan = first_plan(trial(LOOSE), "auto")
    assert plan == {
        **{"left": [], "of": 3, "tried": 0, "images": None, "layers": {}},
        "reason": "the self-test passes with all layers in int8",
    }


def test_the_layer_that_fails_the_self_test_is_left() -> None:
    found = trial(STRICT)
    assert not found.self_test(())
    plan = first_plan(found, "auto")
    assert plan["left"] == ["b"] and plan["images"] == 4 and list(plan["layers"]) == ["a", "b", "c"]
    assert plan["tried"] == 1 and "the self-test failed" in plan["reason"]
    assert found.self_test(plan["left"])


def test_the_layer_that_fails_the_gate_is_left(folder: Path) -> None:
    found = trial(LOOSE, folder, max_mean_difference=1e-3)
    plan = first_plan(found, "auto")
    assert plan["left"] == [] and not found.passes(())
    second = next_plan(found, plan, "the gate failed")
    assert second is not None and second["left"] == ["b"] and second["images"] == 10
    assert found.passes(second["left"])


def test_effects_are_measured_when_asked_for_and_nothing_is_left_when_switched_off() -> None:
    measured = first_plan(trial(LOOSE), "measure")
    assert measured["left"] == [] and list(measured["layers"]) == ["a", "b", "c"]
    off = first_plan(trial(STRICT), "off")
    assert off["left"] == [] and off["layers"] == {} and off["reason"] == "switched off"


def test_what_float16_cannot_mend_is_said() -> None:
    found = trial({"max": 0.0, "mean": 0.0})
    plan = first_plan(found, "auto")
    assert plan["left"] == [] and plan["reason"] == "not even float16 in all layers helps"
    assert next_plan(found, plan, "the gate failed") is None


def test_a_layer_that_is_left_is_float16_with_its_activation() -> None:
    model = mixed_model(trial(STRICT).calibrated, ["b"])
    onnx.checker.check_model(model, full_check=True)
    constants = initializers(model.graph)
    assert constants["b_weight.float16"].data_type == onnx.TensorProto.FLOAT16 and "b_weight" not in constants
    types: dict[str, Any] = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    half = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16}
    assert half == {"a_relu.float16", "b", "b_relu"}
    assert [node.name for node in model.graph.node if node.op_type == "Cast"] == [
        "gray",
        "a_relu.to_float16",
        "b_relu.to_float32",
    ]
    assert all(not lower(model, kind).functions for kind in KINDS if kind != "plugin")


def test_a_weight_beyond_float16_does_not_end_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    """Layer `a`, the first of the order, cannot be left: sets that have it fail, and the reason is said."""
    found = trial(STRICT)
    weight = initializers(found.calibrated.model.graph)["a_weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[-1] = 7e4
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    effects = {name: {"mean_difference": size} for name, size in (("a", 3.0), ("b", 2.0), ("c", 1.0))}
    plan = next_plan(found, {"left": [], "of": 3, "images": 4, "layers": effects}, "the self-test failed")
    assert plan is None
    assert "a_weight reaches 7e+04, float16 ends at 65504" in capsys.readouterr().err


def test_images_are_spread_over_a_sorted_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("build_engine.mixed_precision.MOST_IMAGES", 4)
    images = trial(LOOSE, folder).images
    assert images is not None
    wanted = [cv2.imread(str(folder / f"{number}.png"), cv2.IMREAD_GRAYSCALE) for number in (0, 3, 6, 9)]
    np.testing.assert_array_equal(np.concatenate(images.pixels)[:, 0], wanted)
