from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.bundle import load_bundle
from edge.errors import BundleError
from edge.labels import CHESTXRAY14
from edge.passport import WIDTH, passport, render

MODEL = {
    "network": "mobilenet_v2",
    "config": {"md_stages": ["layer3", "layer5"], "kernel_sizes": [3, 5, 7]},
    "input_size": 32,
    "batch": 4,
    "labels": list(CHESTXRAY14),
    "thresholds": {label: 0.1 + number / 100 for number, label in enumerate(CHESTXRAY14)},
    "weights_sha256": "ab" * 32,
    "notice": "synthetic phantoms, research use only",
    "card": {
        "data": {"kind": "synthetic phantoms", "validation_seeds": [1000000, 600], "train": ["phantoms", 12000]},
        "mean_auc": 0.8848,
    },
}
GATE = {
    "verdict": "pass",
    "reason": "mean AUC 0.8890 to 0.8885",
    "images": 200,
    "data": "user's images",
    "ran_on": "onnxruntime",
    "limits": {"max_auc_drop": 0.01, "max_changed_decisions": 0.02, "max_sensitivity_drop": 0.03, "max_new": 0.5},
    "failed": [],
    "figures": {
        "mean_difference": 0.0086,
        "max_difference": 0.4055,
        "changed_decisions": 0.0125,
        "findings": {
            "Mass": {"positives": 24, "reference": 0.8558, "candidate": 0.8591},
            "Hernia": {"positives": 0, "reference": None, "candidate": None},
            "Edema": {
                "positives": 9,
                "auc": {"reference": 0.91, "candidate": 0.9, "drop": 0.01, "interval": [-0.002, 0.022]},
                "sensitivity": {"reference": 0.8, "candidate": 0.75},
                "specificity": {"reference": None, "candidate": None},
            },
        },
    },
}
CALIBRATION = {
    "method": "entropy",
    "count": 128,
    "digest": "cd" * 32,
    "images": "user's images",
    "selection": {"rule": "stratified by finding", "seed": 3, "offered": 4096, "findings": {"Mass": 60, "Hernia": 70}},
    "equalization": {"summary": "31 of 64 channels scaled in 2 tensors around depthwise layers"},
    "bias_correction": None,
}


def described(make_bundle: Callable[..., Path], name: str = "one", **changes: Any) -> dict[str, Any]:
    facts = {"model": MODEL, "gate": GATE, "calibration": CALIBRATION, **changes}
    return passport(load_bundle(make_bundle(name, size=32, **facts)))


def test_the_words_say_what_the_manifest_says(make_bundle: Callable[..., Path]) -> None:
    facts = described(
        make_bundle,
        lowering={"kind": "padded", "reason": "asked for"},
        platform={"tensorrt": "10.3.0", "sm": "87", "device": "Orin", "layers": [{"Name": "conv"}]},
        backend="tensorrt",
    )
    lines = render(facts).splitlines()
    text = " ".join(" ".join(lines).split())
    for said in (
        "Notice synthetic phantoms, research use only",
        "Network mobilenet_v2 with MD-Conv in layer3, layer5 (kernels 3x3, 5x5, 7x7); one gray image of 32 x 32 pixels",
        "Trained on synthetic phantoms; validation: 600 images, seeds from 1000000; train: 12000 images of phantoms",
        "mean area under the ROC curve 0.8848 on images held out from training",
        f"Weights SHA-256 {'ab' * 32}",
        "Precision fp32",
        "Lowering padded: an MD-Conv layer runs as one stock convolution (asked for)",
        "Calibration method entropy on 128 images: user's images",
        "stratified by finding out of 4096 images, seed 3 images that have each finding: Mass 60; Hernia 70",
        f"digest of the images {'cd' * 32} equalization: 31 of 64 channels scaled in 2 tensors around depthwise layers "
        "bias correction: switched off",
        "Gate pass: mean AUC 0.8890 to 0.8885 allowed against float32: drop of the mean AUC 0.01; share of changed "
        "decisions 0.02; drop of the mean sensitivity 0.03; max_new 0.5 probabilities off",
        "0.0086 on average, 0.4055 at most, on 200 images (user's images), run by onnxruntime",
        "run by onnxruntime 1.25% of the decisions differ from float32's",
        "Mass: area under its ROC curve 0.8558 in float32, 0.8591 in this bundle; 24 images have it",
        "Hernia: no area under its ROC curve; 0 images have it",
        "Edema: area under its ROC curve 0.9100 in float32, 0.9000 in this bundle (a drop of 0.0100, interval -0.0020 "
        "to 0.0220); sensitivity 0.800 and 0.750; 9 images have it",
        "Platform built for tensorrt: tensorrt 10.3.0; sm 87; device Orin",
        f"Manifest SHA-256 {facts['sha256']}",
        "Signature unsigned",
    ):
        assert said in text, said
    for number, label in enumerate(CHESTXRAY14):
        assert f"{label} {0.1 + number / 100:.4f}" in text
    for name, file in facts["files"].items():
        assert f"{name} {file['size']} {file['sha256']}" in text
    assert max(map(len, lines)) <= WIDTH


def test_the_criteria_that_failed_are_named(make_bundle: Callable[..., Path]) -> None:
    failed = {"verdict": "fail", "failed": ["max_changed_decisions", "max_sensitivity_drop"]}
    text = render(described(make_bundle, gate={**GATE, **failed}))
    assert "beyond its limit: share of changed decisions, drop of the mean sensitivity" in text
    older = {key: value for key, value in GATE.items() if key not in ("limits", "failed")}
    text = render(described(make_bundle, "older", gate=older))
    assert "allowed" not in text and "beyond" not in text


def test_layers_in_float16_are_named(make_bundle: Callable[..., Path]) -> None:
    plan = {"left": ["stem", "layer1.0.expand"], "of": 62, "reason": "the gate failed with all layers in int8"}
    plan |= {"images": None, "layers": {}}
    text = " ".join(render(described(make_bundle, mixed_precision=plan)).split())
    assert "2 of 62 layers are float16: stem, layer1.0.expand the gate failed with all layers in int8 Lowering" in text
    none = render(described(make_bundle, "none", mixed_precision={**plan, "left": []}))
    assert "float16:" not in none


def test_a_bundle_of_little_information_has_a_passport_too(tiny_bundle_directory: Path) -> None:
    text = render(passport(load_bundle(tiny_bundle_directory)))
    assert "Trained on      not recorded" in text
    assert "Calibration     none: nothing is rounded to a measured range" in text
    assert "Gate            not assessed" in text


def test_json_holds_the_whole_manifest(tiny_bundle_directory: Path) -> None:
    bundle = load_bundle(tiny_bundle_directory)
    facts = json.loads(json.dumps(passport(bundle)))
    assert facts.pop("signature") == {"state": "unsigned", "key": None}
    assert facts.pop("sha256") == bundle.sha256
    assert {"format": 1, **facts} == bundle.manifest


def test_a_manifest_cannot_write_a_line_of_its_own(make_bundle: Callable[..., Path]) -> None:
    """Neither a line break, nor an escape sequence, nor a change of direction gets to the terminal."""
    forged = "harmless\nSignature       verified: signed with key sha256:00\x1b[2J\u202e\u2028"
    text = render(described(make_bundle, model={**MODEL, "notice": forged}))
    assert [line for line in text.splitlines() if line.startswith("Signature")] == ["Signature       unsigned"]
    assert all(letter.isprintable() for line in text.split("\n") for letter in line)
    assert "\\n" in text and "\\x1b" in text and "\\u202e" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": {"verdict": "pass", "figures": {"findings": {"Mass": {}}}}},
        {"gate": {"verdict": "pass", "figures": {"mean_difference": "low", "max_difference": 0.1}}},
        {"calibration": {"method": "mse"}},
        {"model": {**MODEL, "config": "none"}},
    ],
)
def test_entries_of_another_form_are_told_in_one_line(
    make_bundle: Callable[..., Path], changes: dict[str, Any]
) -> None:
    with pytest.raises(BundleError, match="read it with --json") as told:
        render(described(make_bundle, **changes))
    assert "\n" not in str(told.value)
