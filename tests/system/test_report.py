"""``edge-infer bench`` and ``report`` as a user runs them: real processes, real files."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from tests.system.conftest import edge_infer


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(11)
    for index in range(3):
        assert cv2.imwrite(str(folder / f"Doe^Jane {index}.png"), rng.integers(0, 256, (70, 90), dtype=np.uint8))
    return folder


def check_report(directory, *, kind, notice):
    report = json.loads((directory / "report.json").read_text())
    page = (directory / "report.html").read_text()
    assert report["schema_version"] == 2
    assert report["kind"] == kind
    assert {"decode", "preprocess", "infer", "postprocess", "total"} <= set(report["stages"])
    assert all(figures["count"] > 0 and figures["mean"] >= 0 for figures in report["stages"].values())
    assert notice in page
    assert "<svg" in page
    for name in ("Doe", "Jane"):
        assert name not in page
        assert name not in json.dumps(report)
    return report


def test_bench_leaves_a_report(tiny_bundle, tiny_bundle_directory, pictures, tmp_path):
    run = edge_infer(
        *("bench", "--bundle", tiny_bundle_directory, "--backend", "onnxruntime", "--duration", "0.5"),
        *("--images", *sorted(pictures.iterdir()), "--report", tmp_path / "report"),
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(tmp_path / "report" / "report.html")
    report = check_report(tmp_path / "report", kind="bench", notice=tiny_bundle.notice)
    assert report["bundle"]["sha256"] == tiny_bundle.sha256
    assert report["counts"]["refused"] == 0


def test_the_daemons_work_can_be_reported(tiny_bundle, tiny_bundle_directory, pictures, tmp_path):
    (pictures / "broken.png").write_text("no image")
    state = tmp_path / "state"
    serve = edge_infer(
        *("serve", "--bundle", tiny_bundle_directory, "--backend", "onnxruntime"),
        *("--watch", pictures, "--state", state, "--drain"),
        cwd=tmp_path,
    )
    assert "Traceback" not in serve.stderr
    run = edge_infer("report", "--state", state, "--report", tmp_path / "report", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    report = check_report(tmp_path / "report", kind="ledger", notice=tiny_bundle.notice)
    assert report["counts"] == {"done": 3, "refused": 1}
    assert report["stages"]["total"]["p90"] is None


@pytest.mark.parametrize("missing", ["state", "bundle"])
def test_what_is_missing_is_one_line(tmp_path, missing):
    place = tmp_path / "nowhere"
    run = edge_infer(
        *(("report", "--state", place) if missing == "state" else ("bench", "--bundle", place)), cwd=tmp_path
    )
    assert run.returncode == 3
    assert len(run.stderr.splitlines()) == 1
    assert str(place) in run.stderr
    assert not place.exists()


def test_a_report_that_cannot_be_written_is_one_line(tiny_bundle_directory, tmp_path):
    (tmp_path / "file").write_text("")
    run = edge_infer(
        *("bench", "--bundle", tiny_bundle_directory, "--backend", "onnxruntime", "--duration", "0.1"),
        *("--report", tmp_path / "file" / "report"),
        cwd=tmp_path,
    )
    assert run.returncode == 3
    assert "cannot be written" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
