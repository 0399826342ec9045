from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.gate import assess, judged, read_labels
from calibration.limits import DEFAULTS, Limits
from edge.errors import UsageError
from edge.gate import CRITERIA

NAMES = ("Mass", "Nodule")
THRESHOLDS = {"Mass": 0.5, "Nodule": 0.5}
TRUTH = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.bool_)
GOOD = np.array([[2.0, -2.0], [1.0, -1.0], [-1.0, 3.0], [-2.0, -3.0]], np.float32)


def model(logits: NDArray[Any]) -> Any:
    """A stand-in for inference: an image's first pixel says which row of `logits` it gets."""
    return lambda images: logits[images[:, 0, 0, 0]]


def batches(count: int = 4, size: int = 2) -> list[NDArray[np.uint8]]:
    images = np.zeros((count, 1, 3, 3), np.uint8)
    images[:, 0, 0, 0] = range(count)
    return [images[i : i + size] for i in range(0, count, size)]


def judge(
    candidate: NDArray[Any], truth: NDArray[np.bool_] | None = TRUTH, limits: Limits = DEFAULTS
) -> dict[str, Any]:
    return assess(model(GOOD), model(candidate), batches(), NAMES, THRESHOLDS, truth, limits)


def test_same_model_passes() -> None:
    result = judge(GOOD)
    assert result["verdict"] == "pass"
    assert result["images"] == 4
    assert result["figures"]["mean_difference"] == result["figures"]["max_difference"] == 0
    areas = {"reference": 1.0, "candidate": 1.0, "drop": 0.0}
    assert result["figures"]["mean_auc"] == {**areas, "interval": None, "findings": 2}  # one Nodule has no spread
    mass = result["figures"]["findings"]["Mass"]
    assert (mass["positives"], mass["auc"]) == (2, {**areas, "interval": [0.0, 0.0]})
    assert mass["sensitivity"] == mass["specificity"] == {"reference": 1.0, "candidate": 1.0}
    assert "DeLong" in result["figures"]["method"]["interval"]
    assert json.loads(json.dumps(result)) == result


def test_differences_are_of_probabilities() -> None:
    shifted = GOOD.copy()
    shifted[0, 0] += 0.5
    figures = judge(shifted)["figures"]
    expected = 1 / (1 + np.exp(-2.5)) - 1 / (1 + np.exp(-2.0))
    assert figures["max_difference"] == pytest.approx(expected, rel=1e-6)
    assert figures["mean_difference"] == pytest.approx(expected / 8, rel=1e-6)


ANYTHING = {"max_auc_drop": 1.0, "max_mean_difference": 1.0, "max_changed_decisions": 1.0, "max_sensitivity_drop": 1.0}
"""Limits that nothing exceeds, by name."""


def changed(*logits: tuple[int, int, float]) -> NDArray[np.float32]:
    """`GOOD` with other logits at (image, finding)."""
    array = GOOD.copy()
    for image, finding, value in logits:
        array[image, finding] = value
    return array


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize(
    ("name", "candidate", "value", "said"),
    [
        # A negative above one of the two positives: AUC of Mass 1 to 0.75, the mean 1 to 0.875.
        ("max_auc_drop", changed((2, 0, 1.5)), 0.125, "mean AUC 1.0000 to 0.8750 over 2 findings: a drop of 0.1250"),
        # Nothing but one probability moves, and stays on its side.
        ("max_mean_difference", changed((0, 0, 4.0)), (sigmoid(4) - sigmoid(2)) / 8, "mean difference of a"),
        # Two of the eight decisions: images that lack Mass are called, and Mass still ranks first.
        ("max_changed_decisions", changed((2, 0, 0.5), (3, 0, 0.5)), 0.25, "share of changed decisions 0.2500"),
        # One of two masses and the only nodule are missed, ranked as before: 1 to 0.5 and 1 to 0.
        ("max_sensitivity_drop", changed((1, 0, -0.5), (2, 1, -0.5)), 0.75, "drop of the mean sensitivity 0.7500"),
    ],
)
def test_each_criterion_fails_alone_and_its_limit_reached_passes(
    name: str, candidate: NDArray[np.float32], value: float, said: str
) -> None:
    below = judge(candidate, limits=Limits(**{**ANYTHING, name: value * 0.99}))
    assert (below["verdict"], below["failed"]) == ("fail", [name])
    assert said in below["reason"] and below["reason"].count("allowed") == 1
    assert f"{value * 0.99:g} allowed" in below["reason"]
    exact = judged(below["figures"])[name]
    assert exact == pytest.approx(value, rel=1e-6)
    reached = judge(candidate, limits=Limits(**{**ANYTHING, name: exact}))
    assert (reached["verdict"], reached["failed"]) == ("pass", [])
    assert reached["limits"] == {**ANYTHING, name: exact}
    assert reached["reason"].count("allowed") == 4  # a pass says all of its figures


def test_every_criterion_that_failed_is_in_the_reason() -> None:
    result = judge(-GOOD)
    assert result["verdict"] == "fail"
    assert result["failed"] == list(CRITERIA) == list(DEFAULTS.to_json())
    assert len(result["reason"].split("; ")) == 4
    assert result["figures"]["changed_decisions"] == 1
    sensitivity = result["figures"]["mean_sensitivity"]
    assert sensitivity == {"reference": 1.0, "candidate": 0.0, "drop": 1.0, "findings": 2}
    assert result["figures"]["mean_specificity"] == sensitivity


def test_more_true_positives_are_no_drop() -> None:
    truth = np.ones_like(TRUTH)
    result = judge(GOOD + 10, truth, Limits(**{**ANYTHING, "max_sensitivity_drop": 0}))
    assert result["figures"]["mean_sensitivity"]["drop"] < 0
    assert result["failed"] == []


def test_finding_without_both_classes_is_left_out_of_the_mean() -> None:
    truth = TRUTH.copy()
    truth[:, 1] = False
    figures = judge(GOOD, truth)["figures"]
    nodule = figures["findings"]["Nodule"]
    assert nodule["auc"] == {"reference": None, "candidate": None, "drop": None, "interval": None}
    assert nodule["positives"] == 0
    assert nodule["sensitivity"] == {"reference": None, "candidate": None}
    assert figures["mean_auc"]["reference"] == 1.0
    assert figures["mean_auc"]["findings"] == 1


def test_without_labels_only_agreement() -> None:
    result = judge(GOOD + 0.01, truth=None)
    assert result["verdict"] == "not assessed"
    assert result["reason"].startswith("agreement only")
    assert result["figures"]["mean_difference"] > 0
    assert "mean_auc" not in result["figures"]


def test_without_labels_disagreement_fails() -> None:
    result = judge(changed((0, 0, -2.0)), truth=None, limits=Limits(**{**ANYTHING, "max_changed_decisions": 0.1}))
    assert (result["verdict"], result["failed"]) == ("fail", ["max_changed_decisions"])
    assert result["reason"] == (
        "agreement only, since there are no labels: share of changed decisions 0.1250, 0.1 allowed"
    )


def test_labels_that_tell_nothing() -> None:
    result = judge(GOOD, np.zeros_like(TRUTH))
    assert result["verdict"] == "not assessed"
    assert "agreement only: no finding is both present and absent" in result["reason"]
    failed = judge(-GOOD, np.zeros_like(TRUTH))
    assert (failed["verdict"], failed["failed"]) == ("fail", ["max_mean_difference", "max_changed_decisions"])
    assert failed["reason"].startswith("agreement only, since no finding is both present and absent")


def test_all_images_have_a_finding_that_is_missed() -> None:
    """There is no area, yet what is missed is known."""
    limits = Limits(**{**ANYTHING, "max_sensitivity_drop": 0.1})
    failed = judge(changed((0, 0, -2.0)), np.array([[1, 0]] * 4, np.bool_), limits)
    assert (failed["verdict"], failed["failed"]) == ("fail", ["max_sensitivity_drop"])


def test_output_that_is_no_number_fails() -> None:
    broken = GOOD.copy()
    broken[3, 1] = np.nan
    for truth in (TRUTH, None):
        result = judge(broken, truth)
        assert result["verdict"] == "fail"
        assert result["figures"]["max_difference"] is None
        assert (result["failed"], result["limits"]) == ([], DEFAULTS.to_json())
        assert result["reason"] == "a model's output is not a finite number"


def test_no_image_and_wrong_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="no image to judge"):
        assess(model(GOOD), model(GOOD), [], NAMES, THRESHOLDS, TRUTH)
    with pytest.raises(UsageError, match="one row an image"):
        judge(GOOD, TRUTH[:3])


def labelled(directory: Path, rows: str, header: str = "Image Index,Finding Labels,Patient ID") -> Path:
    for name in ("a.png", "b.png"):
        (directory / name).touch()
    (directory / "labels.csv").write_text(f"{header}\n{rows}", encoding="utf-8")
    return directory


def test_reads_labels(tmp_path: Path) -> None:
    rows = "a.png,Nodule|Mass,1\nb.png,No Finding,2\n"
    for header in ("Image Index,Finding Labels,Patient ID", "\ufeffImage Index,Finding Labels,Patient ID"):
        found = read_labels(labelled(tmp_path, rows, header), NAMES)
        assert found.paths == (tmp_path / "a.png", tmp_path / "b.png")
        np.testing.assert_array_equal(found.truth, [[True, True], [False, False]])
        assert found.patients == ("1", "2")


def test_an_image_without_a_patient_is_its_own(tmp_path: Path) -> None:
    found = read_labels(labelled(tmp_path, "a.png,Mass\nb.png,Mass\n", "Image Index,Finding Labels"), NAMES)
    assert found.patients == ("a.png", "b.png")
    assert read_labels(labelled(tmp_path, "a.png,Mass,\n"), NAMES).patients == ("a.png",)


def test_findings_that_the_network_does_not_know_are_absent(tmp_path: Path) -> None:
    found = read_labels(labelled(tmp_path, "a.png,Hernia|Nodule,1\n"), NAMES)
    np.testing.assert_array_equal(found.truth, [[False, True]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,Mass,1\nc.png,Mass,1\n", r"row 3: no file .*c\.png"),
        ("a.png,Mass,1\na.png,Nodule,1\n", r"row 3: a\.png was listed before"),
        ("a.png,Mas,1\n", r"row 2: unknown finding Mas"),
        ("a.png\n", r"row 2: image 'a\.png' and findings None"),
        (",Mass,1\n", r"row 2: image ''"),
        ("", r"lists no image"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_labels(labelled(tmp_path, rows), NAMES)
    assert "labels.csv" in str(caught.value)


def test_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"labels\.csv"):
        read_labels(tmp_path, NAMES)
    with pytest.raises(UsageError, match="no column 'Finding Labels'"):
        read_labels(labelled(tmp_path, "a.png,Mass\n", "Image Index,Labels"), NAMES)
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no CSV text"):
        read_labels(tmp_path, NAMES)
