"""A worker without Ray: what it answers is what the pipeline says; what it cannot do, it says once for all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.archive.scorer import Scorer, Settings
from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bundle import Bundle, load_bundle
from edge.preprocess import Preprocess, load_image
from edge.results import findings


def settings(of: Bundle, **changes: Any) -> Settings:
    facts = {"bundle": of.directory, "bundle_sha256": of.sha256, "backend": "onnxruntime", "guard": True}
    return Settings(**{**facts, "threads": 1, **changes})


def answers(scorer: Scorer, paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(answer) for answer in scorer({"path": [os.fsencode(path) for path in paths]})["answer"]]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(3)
    paths = [tmp_path / f"{number}.png" for number in range(11)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (int(rng.integers(40, 200)), 100), dtype=np.uint8))
    return paths


def test_a_block_is_answered_in_order_by_one_backend_for_all_blocks(
    tiny_bundle: Bundle, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no image")
    paths = [*images[:7], tmp_path / "text", tmp_path / "missing", *images[7:]]
    scorer = Scorer(settings(tiny_bundle))
    found = answers(scorer, paths)
    assert answers(scorer, paths[::-1])[::-1][0]["findings"] == found[0]["findings"]
    with OnnxRuntimeBackend(tiny_bundle) as backend:
        for path, answer in zip(paths, found):
            assert answer["source"] is None, "a name may be a patient's"
            if path in images:
                pixels = load_image(path, Preprocess(tiny_bundle.input_size))
                logits = backend.infer(pixels[None, None]).logits[0]
                expected = findings(tiny_bundle.labels, tiny_bundle.thresholds, logits)
                for label, entry in expected.items():
                    assert answer["findings"][label] == pytest.approx(entry, abs=1e-6)
    assert [answer["status"] for answer in found] == ["done"] * 7 + ["refused"] * 2 + ["done"] * 4
    assert "text, expected DICOM" in found[7]["reason"] and found[7]["sha256"]
    assert (found[8]["reason"], found[8]["sha256"]) == ("no such file: check the path", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundle_sha256": "0" * 64}, "is another bundle"),
        ({"bundle": Path("/nowhere")}, "no bundle at /nowhere"),
        ({"backend": "unheard-of"}, "backend 'unheard-of' is none of"),
    ],
)
def test_what_no_worker_could_do_better_is_said_and_not_raised(
    changes: dict[str, Any], said: str, tiny_bundle: Bundle, images: list[Path]
) -> None:
    found = answers(Scorer(settings(tiny_bundle, **changes)), images[:3])
    assert len(found) == 3 and all(said in answer["failure"] for answer in found)


def test_a_bundle_that_fails_its_self_test_scores_nothing(make_bundle: Callable[..., Path], images: list[Path]) -> None:
    directory = make_bundle(golden={"max_probability_difference": -1.0, "mean_probability_difference": 1.0})
    (answer,) = answers(Scorer(settings(load_bundle(directory))), images[:1])
    assert "the self-test failed" in answer["failure"]
