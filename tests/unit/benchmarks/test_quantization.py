"""The comparison of quantizers, small: the demo network at 64 pixels on a few phantoms."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from benchmarks.modelopt_environment import is_ready, last_line, prepare
from benchmarks.quantization import (
    ACCEPTED,
    DEFAULT_METHOD,
    PEERS,
    REFUSED,
    UNSEEN_SEEDS,
    Judges,
    Row,
    compare,
    main,
    prepare_source,
    table,
    taken_by_tensorrt,
    verdict,
)
from benchmarks.quantization_ways import Source
from build_engine.images import CALIBRATION_SEED, GATE_PHANTOMS, GATE_SEED
from build_engine.lowering import lower
from calibration.quantize import quantize
from edge.backends.onnxruntime import open_session
from edge.errors import MachineError
from mdconv.checkpoint import load_checkpoint
from mdconv.data.phantom import TRAIN_SEEDS, VALIDATION_SEEDS, labels_of, render
from mdconv.weights import DEMO_CHECKPOINT

SIZE, COUNT = 64, 8
SEEDS = UNSEEN_SEEDS[:COUNT]
MODELOPT = Path(__file__).parents[3] / "out" / "benchmarks" / "modelopt-venv"

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (it has wheels for x86-64 only)",
)


@pytest.fixture(scope="module")
def source() -> Iterator[Source]:
    with tempfile.TemporaryDirectory() as scratch:
        yield prepare_source(load_checkpoint(DEMO_CHECKPOINT), SIZE, COUNT, MODELOPT, Path(scratch))


@pytest.fixture(scope="module")
def judges(source: Source) -> Judges:
    images = np.stack([render(seed, SIZE).image[None] for seed in SEEDS])
    truth = np.array([labels_of(seed) for seed in SEEDS])
    return Judges(load_checkpoint(DEMO_CHECKPOINT), source.padded, images, truth)


def chances(model: Path) -> NDArray[np.float64]:
    """Probabilities (COUNT, 14) of the unseen phantoms, with sums in the order in which the benchmark has them."""
    session = open_session(model, 1)
    images = [render(seed, SIZE).image[None, None] for seed in SEEDS]
    logits = np.concatenate([session.run(["logits"], {"image": image})[0] for image in images])
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def mean_area(scores: NDArray[np.float64]) -> float:
    """The share of pairs of a positive and a negative that are in order, averaged over findings that have both."""
    truth = np.array([labels_of(seed) for seed in SEEDS])
    areas = []
    for present, score in zip(truth.T, scores.T):
        pairs = list(itertools.product(score[present], score[~present]))
        if pairs:
            areas.append(np.mean([1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs]))
    return float(np.mean(areas))


def check_figures(row: Row, source: Source, model: Path) -> None:
    """The row's figures are those of `model`, counted here."""
    exact, found = chances(source.padded), chances(model)
    assert row.figures is not None and row.seconds > 0
    assert row.figures["mean_difference"] == pytest.approx(np.abs(found - exact).mean(), rel=1e-5)
    assert row.figures["max_difference"] == pytest.approx(np.abs(found - exact).max(), rel=1e-5)
    assert row.figures["mean_auc"]["candidate"] == pytest.approx(mean_area(found))
    assert row.figures["mean_auc"]["drop"] == pytest.approx(mean_area(exact) - mean_area(found))


def test_ours_is_what_make_py_does(source: Source, judges: Judges, tmp_path: Path) -> None:
    (row,) = compare(["percentile"], source, judges, tmp_path)
    quantized, _ = quantize(source.portable, source.images, "percentile", equalization=True, bias_correction=True)
    onnx.save(lower(quantized, "padded"), tmp_path / "expected.onnx")
    assert (tmp_path / "percentile.onnx").read_bytes() == (tmp_path / "expected.onnx").read_bytes()
    check_figures(row, source, tmp_path / "expected.onnx")


@pytest.mark.parametrize("way", ["onnxruntime-minmax", "onnxruntime-percentile"])
def test_onnxruntime_is_set_up_as_tensorrt_wants_it(source: Source, judges: Judges, tmp_path: Path, way: str) -> None:
    (row,) = compare([way], source, judges, tmp_path)
    check_figures(row, source, tmp_path / f"{way}.onnx")
    graph = onnx.load(tmp_path / f"{way}.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert not any(tensor.data_type == TensorProto.INT32 for tensor in graph.initializer)
    pairs = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert pairs and not any(constants[node.input[2]].any() for node in pairs)
    made_by = {output: node for node in graph.node for output in node.output}
    weights = [made_by[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert len(weights) == 53 and all(constants[node.input[1]].ndim == 1 for node in weights)
    if way == "onnxruntime-minmax":
        (scale,) = [constants[node.input[1]] for node in pairs if node.input[0] == "normalised"]
        mean, factor = (constants[f"normalise.{name}"] for name in ("mean", "factor"))
        reach = np.abs((source.pixels.astype(np.float32) - mean) * factor).max()
        assert scale == pytest.approx(reach / 127, rel=1e-6), "of the calibration images"


@needs_rtx
def test_what_tensorrt_says(source: Source, judges: Judges, tmp_path: Path) -> None:
    plain, ours = compare(["onnxruntime-plain", "minmax"], source, judges, tmp_path)
    assert plain.tensorrt.startswith(f"{REFUSED}: ") and "zero point" in plain.tensorrt
    assert str(tmp_path) not in plain.tensorrt, "the table is the same wherever it was made"
    assert ours.tensorrt == f"{ACCEPTED}, 52 of 53 convolutions in INT8"
    assert taken_by_tensorrt(source.padded) == f"{ACCEPTED}, 0 of 53 convolutions in INT8"


@pytest.mark.skipif(not is_ready(MODELOPT), reason=f"no {MODELOPT.name}: python -m benchmarks.quantization makes it")
@pytest.mark.parametrize("way", ["modelopt-entropy", "modelopt-max"])
def test_modelopt_runs_in_its_own_environment(source: Source, judges: Judges, tmp_path: Path, way: str) -> None:
    (row,) = compare([way], source, judges, tmp_path)
    check_figures(row, source, tmp_path / f"{way}.onnx")
    model = onnx.load(tmp_path / f"{way}.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 53
    assert not any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)


def test_a_way_that_cannot_run_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ModelOpt's environment would lie in a file; the others run all the same."""
    (tmp_path / "file").touch()
    small = ["--size", str(SIZE), "--images", str(COUNT), "--calibration-images", "4"]
    places = ["--environment", str(tmp_path / "file" / "venv"), "--output", str(tmp_path / "table.md")]
    assert main([*small, *places, "--ways", "modelopt-max", "onnxruntime-minmax"]) == 3
    text = capsys.readouterr().out
    assert "| ModelOpt, max | not run: cannot make a virtual environment in " in text
    assert "| ONNX Runtime for TensorRT, MinMax (its default) | 0." in text
    assert (tmp_path / "table.md").read_text() == text
    assert "No verdict" in text.splitlines()[-1]


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(MachineError, match="no virtual environment"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_what_pip_says_last() -> None:
    said = "WARNING: slow\nERROR: No matching distribution found for torch==2.13.0\n\n[notice] A new release of pip\n"
    assert last_line(said) == "ERROR: No matching distribution found for torch==2.13.0"
    assert last_line("one\ntwo\n") == "two"
    assert last_line("") == ""


def test_judged_by_unseen_phantoms() -> None:
    gate, calibration = range(GATE_SEED, GATE_SEED + GATE_PHANTOMS), range(CALIBRATION_SEED, 4_000_000)
    for seen in (TRAIN_SEEDS, VALIDATION_SEEDS, gate, calibration):
        assert not set(UNSEEN_SEEDS[:5000]) & set(seen)


def made(way: str, drop: float, difference: float, tensorrt: str = ACCEPTED) -> Row:
    mean = {"reference": 0.9, "candidate": 0.9 - drop, "drop": drop, "interval": [drop - 0.001, drop + 0.001]}
    figures = {"mean_auc": mean, "mean_difference": difference, "max_difference": 0.1}
    return Row(way, seconds=61.4, figures=figures, tensorrt=tensorrt)


def test_the_verdict_is_by_both_figures() -> None:
    ours = made(DEFAULT_METHOD, 0.001, 0.004)
    assert " is at least as accurate as" in verdict([ours, made("modelopt-max", 0.002, 0.005)])
    for drop, difference in ((0.0009, 0.005), (0.002, 0.0039)):
        assert " is NOT at least as accurate as" in verdict([ours, made("modelopt-max", drop, difference)])
    refused = made("onnxruntime-plain", 0.0, 0.0, f"{REFUSED}: zero point")
    said = verdict([ours, made("modelopt-entropy", 0.002, 0.005), refused])
    assert " is at least" in said and "0.0050 (ModelOpt, entropy (its default))" in said
    assert verdict([ours, refused]).startswith("No verdict")
    assert verdict([made(way, 0, 0) for way in PEERS]).startswith("No verdict")


def test_the_table_has_a_line_a_way() -> None:
    rows = [made(DEFAULT_METHOD, 0.001, 0.004), Row("modelopt-max", problem="pip cannot")]
    ours, modelopt = table(rows).splitlines()[2:]
    assert "| 0.8990 | 0.0010 (0.0000 to 0.0020) | 0.0040, 0.100 | 61 | accepted |" in ours
    assert modelopt == "| ModelOpt, max | not run: pip cannot | | | | |"


def test_wrong_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--checkpoint", str(tmp_path / "none.safetensors")]) != 0
    assert "none.safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--ways", "guess"])
