"""Which of a bundle's models ONNX Runtime runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from build_engine.bundle_writer import write_manifest
from edge.backends.onnxruntime import OnnxRuntimeBackend, model_to_run, own_model
from edge.bundle import Bundle, load_bundle
from edge.errors import BundleError
from tests.conftest import tiny_network

LOWERED = "model.fp32.lowered.onnx"


@pytest.fixture
def lowered(make_bundle: Callable[..., Path]) -> Callable[[str], Bundle]:
    """A bundle of a lowering whose file holds another network than the portable one, so that one can tell which ran."""

    def make(kind: str) -> Bundle:
        directory = make_bundle(kind)
        onnx.save(tiny_network(64, seed=6), directory / LOWERED)
        manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
        facts = {key: value for key, value in manifest.items() if key not in ("format", "created", "files")}
        write_manifest(directory, {**facts, "lowering": {"kind": kind, "builder_model": LOWERED}})
        return load_bundle(directory)

    return make


@pytest.mark.parametrize(("kind", "name"), [("padded", LOWERED), ("split", LOWERED), ("plugin", "model.onnx")])
def test_it_runs_the_lowered_model_but_for_the_plugins(
    lowered: Callable[[str], Bundle], kind: str, name: str, make_bundle: Callable[..., Path]
) -> None:
    bundle = lowered(kind)
    with OnnxRuntimeBackend(bundle) as backend, OnnxRuntimeBackend(load_bundle(make_bundle("plain"))) as plain:
        assert backend.facts["model"] == name
        images = np.full((1, 1, 64, 64), 90, np.uint8)
        same = np.array_equal(backend.infer(images).logits, plain.infer(images).logits)
    assert same == (kind == "plugin")


def test_a_model_that_files_does_not_list_is_refused(lowered: Callable[[str], Bundle]) -> None:
    bundle = lowered("padded")
    bundle.manifest["lowering"]["builder_model"] = "other.onnx"
    shutil.copyfile(bundle.directory / LOWERED, bundle.directory / "other.onnx")
    with pytest.raises(BundleError, match=r"names other\.onnx, which files does not list"):
        model_to_run(bundle)


@pytest.mark.parametrize("kind", ["padded", "plugin"])
def test_its_own_form_comes_first(lowered: Callable[[str], Bundle], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But where ONNX Runtime would compute some of it wrongly."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.26.0")
    bundle = lowered(kind)
    bundle.manifest["lowering"]["onnxruntime_model"] = LOWERED
    with OnnxRuntimeBackend(bundle) as backend:
        assert backend.facts["model"] == LOWERED
    bundle.manifest["lowering"]["onnxruntime_model"] = "gone.onnx"
    with pytest.raises(BundleError, match=r"names gone\.onnx, which files does not list"):
        own_model(bundle)
    monkeypatch.setattr(onnxruntime, "__version__", "1.25.1")
    assert own_model(bundle) == model_to_run(bundle)
