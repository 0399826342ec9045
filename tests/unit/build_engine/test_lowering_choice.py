"""How a lowering is chosen; the whole command is driven in tests/system."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from build_engine.export import export_onnx
from build_engine.lowered_files import Engines, Lowered
from build_engine.lowering import KINDS
from build_engine.lowering_choice import apply_lowering, check_lowering, choose_fastest
from calibration.judge import portable_runner
from edge.bundle import GOLDEN, PORTABLE_MODEL
from edge.errors import MachineError, UsageError
from edge.interleaved import Timing
from edge.labels import CHESTXRAY14
from edge.preprocess import Preprocess
from tests.unit.build_engine.random_networks import random_checkpoint, random_images
from tests.unit.build_engine.test_int8_lowerings import quantized

HERE = Engines("onnxruntime", "fp32", 1, None, None)


def make_directory(directory: Path, **config: Any) -> Path:
    """What `build_bundle` has written when it comes to lowering."""
    directory.mkdir()
    export_onnx(random_checkpoint(**config), directory / PORTABLE_MODEL)
    images = random_images(3, 64)
    logits, cam = portable_runner(directory / PORTABLE_MODEL)(images)
    np.savez(directory / GOLDEN, images=images, logits=logits, cam=cam)
    return directory


def describe(lowered: Lowered) -> Mapping[str, Any]:
    return {
        "name": "random",
        "model": {
            "network": "mobilenet_v2",
            "input_size": 64,
            "batch": 1,
            "labels": list(CHESTXRAY14),
            "thresholds": dict.fromkeys(CHESTXRAY14, 0.5),
        },
        "preprocess": Preprocess(64).to_manifest(),
        "precision": "fp32",
        "lowering": lowered.entry,
        "backend": "onnxruntime",
        "platform": {},
        "calibration": {},
        "golden": {"max_probability_difference": 1e-3, "mean_probability_difference": 1e-3},
        "gate": {},
    }


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.mark.parametrize(
    ("medians", "best"),
    [
        ({"padded": 10.0, "split": 8.0, "plugin": 3.0}, "plugin"),
        ({"padded": 10.0, "split": 11.0}, "padded"),
        ({"padded": 10.2, "split": 10.0}, "padded"),  # 2 %: noise, so the simpler one
        ({"padded": 10.4, "split": 10.0}, "split"),
        ({"plugin": 10.0, "split": 10.2}, "split"),
        ({"plugin": 5.0}, "plugin"),
    ],
)
def test_the_fastest_wins_and_the_simpler_of_equals(medians: dict[str, float], best: str) -> None:
    assert choose_fastest({kind: Timing(ms, ms, ms, 40) for kind, ms in medians.items()}) == best


def test_auto_times_what_onnx_runtime_offers(tmp_path: Path, scratch: Path) -> None:
    directory = make_directory(tmp_path / "bundle")
    lowered = apply_lowering("auto", directory, HERE, describe, scratch)
    kind, entry = lowered.entry["kind"], lowered.entry
    assert kind in ("padded", "split")
    assert entry["builder_model"] == f"model.fp32.{kind}.onnx"
    onnx.checker.check_model(onnx.load(directory / entry["builder_model"]), full_check=True)
    assert sorted(path.name for path in directory.iterdir()) == sorted([GOLDEN, PORTABLE_MODEL, entry["builder_model"]])
    assert not any(path.is_symlink() for path in directory.iterdir())
    padded, split, plugin = entry["comparison"]
    for row, name in ((padded, "padded"), (split, "split")):
        assert row["kind"] == name
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["runs"] == 40
        assert row["builder"].startswith("ONNX Runtime ")
    assert plugin == {"kind": "plugin", "left_out": "ONNX Runtime has no plugins"}
    assert entry["timed_on"]["cores"] == len(os.sched_getaffinity(0))
    assert "timed here" in entry["reason"] and f": {kind} is " in entry["reason"]


def test_auto_does_not_time_the_same_graph_twice(tmp_path: Path, scratch: Path) -> None:
    directory = make_directory(tmp_path / "bundle", kernel_sizes=(5,), ratios=(1,))
    entry = apply_lowering("auto", directory, HERE, describe, scratch).entry
    assert entry["kind"] == "padded"
    assert "same as padded" in entry["comparison"][1]["left_out"]
    assert entry["comparison"][0]["median_ms"] > 0


def test_auto_has_nothing_to_choose_without_mdconv(tmp_path: Path, scratch: Path) -> None:
    directory = make_directory(tmp_path / "bundle", md_stages=())
    entry = apply_lowering("auto", directory, HERE, describe, scratch).entry
    assert entry == {
        "kind": "padded",
        "reason": "the network has no MD-Conv, so all lowerings are the same",
        "builder_model": "model.fp32.padded.onnx",
    }


def test_a_lowering_that_fails_its_self_test_is_left_out(tmp_path: Path, scratch: Path) -> None:
    """Both compute another network than the golden outputs are of, so none is left."""
    directory = make_directory(tmp_path / "bundle")
    export_onnx(random_checkpoint(seed=4), directory / PORTABLE_MODEL)
    with pytest.raises(MachineError, match="the self-test failed"):
        apply_lowering("auto", directory, HERE, describe, scratch)


def test_a_plugin_bundle_for_a_device_needs_no_library(tmp_path: Path, scratch: Path) -> None:
    directory = make_directory(tmp_path / "bundle")
    check_lowering("plugin", "onnxruntime")
    entry = apply_lowering("plugin", directory, HERE, describe, scratch).entry
    assert (entry["kind"], entry["reason"]) == ("plugin", "asked for")
    assert entry["builder_model"] == "model.fp32.plugin.onnx"
    assert entry["fallback_model"] == "model.fp32.padded.onnx"
    assert "plugin" not in entry and "kept_padded" not in entry
    assert "ONNX Runtime has no plugins" in entry["note"]
    types = [node.op_type for node in onnx.load(directory / entry["builder_model"]).graph.node]
    assert types.count("MDConv") == 3
    assert "MDConv" not in [node.op_type for node in onnx.load(directory / entry["fallback_model"]).graph.node]


@pytest.mark.parametrize("kind", KINDS)
def test_of_int8_onnx_runtime_gets_a_form_of_its_own(tmp_path: Path, scratch: Path, kind: str) -> None:
    model = quantized((3, 5), (4, 4), 1, "relu6", exact=True)
    onnx.save(model, tmp_path / "model.int8.onnx")
    engines = dataclasses.replace(HERE, precision="int8")
    entry = apply_lowering(kind, tmp_path, engines, describe, scratch).entry
    assert entry["onnxruntime_model"] == "model.int8.onnxruntime.onnx"
    types = [node.op_type for node in onnx.load(tmp_path / entry["onnxruntime_model"]).graph.node]
    assert types.count("QLinearConv") == (2 if kind == "split" else 1) and "MDConv" not in types
    if kind == "plugin":
        assert "in model.int8.onnxruntime.onnx, and so it was verified" in entry["note"]


def test_nodes_that_the_plugin_cannot_have_are_named(
    tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_directory(tmp_path / "bundle")
    model = onnx.load(directory / PORTABLE_MODEL)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.name == "layer5.1.depthwise" and attribute.name == "kernel_sizes":
                attribute.ints[:] = [1, 5]
    onnx.save(model, directory / PORTABLE_MODEL)
    entry = apply_lowering("plugin", directory, HERE, describe, scratch).entry
    reason = "kernel size 1: the plugin has 3, 5 and 7"
    assert entry["kept_padded"] == [{"node": "layer5.1.depthwise", "reason": reason}]
    assert f"layer5.1.depthwise stays a padded convolution, not the plugin's: {reason}" in capsys.readouterr().err


def test_a_network_of_which_the_plugin_can_have_nothing_is_refused(tmp_path: Path, scratch: Path) -> None:
    directory = make_directory(tmp_path / "bundle", kernel_sizes=(1, 3))
    with pytest.raises(UsageError, match=r"layer5\.0\.depthwise: kernel size 1: the plugin has 3, 5 and 7"):
        apply_lowering("plugin", directory, HERE, describe, scratch)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("MDCONV_PLUGIN", "/nowhere/libmdconv_plugin.so")
    with pytest.raises(MachineError, match=r"/nowhere/libmdconv_plugin\.so, which is missing"):
        check_lowering("plugin", backend)
    for kind in ("auto", "padded", "split"):
        check_lowering(kind, backend)
    with pytest.raises(UsageError, match="'fused' is none of"):
        check_lowering("fused", backend)


def test_tensorrt_rtx_is_not_timed_and_says_so(tmp_path: Path, scratch: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    directory = make_directory(tmp_path / "bundle")
    lowered = apply_lowering("auto", directory, Engines("tensorrt-rtx", "fp32", 1, None, None), describe, scratch)
    assert lowered.entry["kind"] == "padded"
    assert "not timed" in lowered.entry["reason"]
    assert "comparison" not in lowered.entry
    assert lowered.engine is not None
