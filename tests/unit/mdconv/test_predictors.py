"""One network as checkpoint, ONNX file and bundle: the same answers, against the network written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from build_engine.export import export_onnx
from build_engine.precision import to_float16
from calibration.quantize import quantize
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import PORTABLE_MODEL, load_bundle, sha256_of
from edge.errors import UsageError
from edge.labels import CHESTXRAY14
from edge.results import probabilities
from mdconv.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdconv.networks import build, normalise
from mdconv.predictors import Prediction, open_predictor
from tests.unit.build_engine.random_networks import random_images, randomise

SIZE = 64
TWO = ("Normal", "Pneumonia")
IMAGES = random_images(5, SIZE)


def written(path: Path, network: str, labels: tuple[str, ...], *, exclusive: bool = False, **config: Any) -> Checkpoint:
    """A random network at `path`, read back."""
    torch.manual_seed(1)
    config = {"labels": len(labels), **config}
    model = build(network, **config)
    randomise(model)
    thresholds = {label: 0.3 + 0.01 * i for i, label in enumerate(labels)}
    save_checkpoint(
        Checkpoint(model, network, config, labels, SIZE, thresholds, "for a test", exclusive=exclusive), path
    )
    return load_checkpoint(path)


def answers(path: Path) -> Prediction:
    with open_predictor(path) as predictor:
        return predictor.predict(IMAGES)


def test_a_checkpoint_and_its_onnx_file_answer_as_the_network_does(tmp_path: Path) -> None:
    path, exported = tmp_path / "a.safetensors", tmp_path / "a.onnx"
    checkpoint = written(path, "mobilenet_v2", CHESTXRAY14)
    export_onnx(checkpoint, exported)
    network: Any = checkpoint.model
    with torch.inference_mode():
        pixels = normalise(torch.from_numpy(IMAGES))
        logits = network(pixels).numpy()
        cam = torch.nn.functional.conv2d(network.features(pixels), network.classifier.weight[:, :, None, None]).numpy()
    for file, kind in ((path, "checkpoint"), (exported, "onnx")):
        with open_predictor(file) as predictor:
            found = predictor.predict(IMAGES)
            assert predictor.labels == CHESTXRAY14 and predictor.input_size == SIZE
            assert predictor.thresholds == checkpoint.thresholds and predictor.notice == "for a test"
            assert predictor.identity == {
                "kind": kind,
                "file": file.name,
                "sha256": sha256_of(file),
                "precision": "fp32",
                "network": "mobilenet_v2",
            }
        assert found.cam is not None and found.logits.dtype == found.cam.dtype == np.float32
        np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
        np.testing.assert_allclose(found.cam, cam, rtol=1e-4, atol=1e-4 * np.abs(cam).max())


def test_labels_that_exclude_each_other_become_log_odds(tmp_path: Path) -> None:
    path, exported = tmp_path / "two.safetensors", tmp_path / "two.onnx"
    checkpoint = written(path, "mobilenet_v2", TWO, exclusive=True)
    export_onnx(checkpoint, exported)
    network: Any = checkpoint.model
    with torch.inference_mode():
        expected = torch.softmax(network(normalise(torch.from_numpy(IMAGES))), dim=1).numpy()
    bias = network.classifier.bias.detach().numpy()
    for file in (path, exported):
        found = answers(file)
        np.testing.assert_allclose(probabilities(found.logits), expected, atol=1e-4)
        assert found.cam is not None
        mean = found.cam.mean(axis=(2, 3)) + (bias - bias[::-1])
        np.testing.assert_allclose(mean, found.logits, atol=1e-4 * np.abs(found.cam).max())


def test_three_labels_that_exclude_each_other_have_no_maps(tmp_path: Path) -> None:
    checkpoint = written(tmp_path / "three.safetensors", "mobilenet_v2", ("a", "b", "c"), exclusive=True)
    found = answers(tmp_path / "three.safetensors")
    with torch.inference_mode():
        outputs = checkpoint.model(normalise(torch.from_numpy(IMAGES)))
    assert found.cam is None
    np.testing.assert_allclose(probabilities(found.logits), torch.softmax(outputs, dim=1).numpy(), atol=1e-6)


def test_a_head_that_is_not_linear_has_no_maps(tmp_path: Path) -> None:
    path, exported = tmp_path / "v3.safetensors", tmp_path / "v3.onnx"
    checkpoint = written(path, "mobilenet_v3", CHESTXRAY14, in_channels=1)
    export_onnx(checkpoint, exported)
    with torch.inference_mode():
        expected = checkpoint.model(normalise(torch.from_numpy(IMAGES), 1)).numpy()
    for file in (path, exported):
        found = answers(file)
        assert found.cam is None
        np.testing.assert_allclose(found.logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_a_bundle_answers_as_its_backend_does_and_says_what_it_is(tiny_bundle_directory: Path) -> None:
    bundle = load_bundle(tiny_bundle_directory)
    assert len(IMAGES) > bundle.batch, "more than one run"
    with OnnxRuntimeBackend(bundle) as backend:
        expected = backend.infer(IMAGES[: bundle.batch]), backend.infer(IMAGES[bundle.batch :])
    with open_predictor(tiny_bundle_directory, "onnxruntime") as predictor:
        found = predictor.predict(IMAGES)
        assert (predictor.labels, predictor.input_size) == (bundle.labels, bundle.input_size)
        assert (predictor.thresholds, predictor.notice) == (bundle.thresholds, bundle.notice)
        assert predictor.identity["sha256"] == bundle.sha256 and predictor.identity["backend"] == "onnxruntime"
    np.testing.assert_array_equal(found.logits, np.concatenate([part.logits for part in expected]))
    np.testing.assert_array_equal(found.cam, np.concatenate([part.cam for part in expected]))


class Calibration:
    """The images, one after the other."""

    digest = "0" * 64

    def __len__(self) -> int:
        return len(IMAGES)

    def __iter__(self) -> Any:
        return iter(IMAGES[:, None])


def test_the_precision_of_an_onnx_file_is_what_is_in_it(tmp_path: Path) -> None:
    """Whatever it is called; and what a conversion keeps of the file's own description is enough to run it."""
    checkpoint = written(tmp_path / "a.safetensors", "mobilenet_v2", CHESTXRAY14)
    export_onnx(checkpoint, tmp_path / "fp32.onnx")
    model = onnx.load(tmp_path / "fp32.onnx")
    onnx.save(to_float16(model), tmp_path / "fp16.onnx")
    onnx.save(quantize(model, Calibration())[0], tmp_path / "int8.onnx")
    for precision in ("fp32", "fp16", "int8"):
        with open_predictor(tmp_path / f"{precision}.onnx") as predictor:
            assert predictor.identity["precision"] == precision
            assert predictor.thresholds == checkpoint.thresholds


def test_what_is_no_model_is_refused(tmp_path: Path, tiny_bundle_directory: Path) -> None:
    (tmp_path / "notes.txt").write_text("no network")
    for path, said in (
        (tmp_path / "absent.onnx", "no model at"),
        (tmp_path / "notes.txt", "is no model: name a checkpoint"),
        (tiny_bundle_directory / PORTABLE_MODEL, "does not name its labels: export it by"),
    ):
        with pytest.raises(UsageError, match=said):
            open_predictor(path)
