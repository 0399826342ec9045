"""The commands through the TensorRT backend, on the stand-ins: ONNX Runtime's results, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from build_engine.lowering_choice import choose_fastest
from edge.bundle import PLUGIN_LIBRARY, load_bundle, sha256_of, sign_bundle
from edge.interleaved import Timing
from edge.ledger import read_ledger
from tests.stand_ins.build import FOLDER
from tests.stand_ins.places import stand_in_environment
from tests.system.conftest import MAKE_QUICKLY

COUNT = 50


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 gray PNG files of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(17)
    for number in range(COUNT):
        picture = rng.integers(0, 256, (60 + number // 2, 90 - number // 2), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{number:02}.png"), cv2.GaussianBlur(picture, (0, 0), 3))
    return folder


@pytest.fixture
def edge_infer(tmp_path: Path) -> Callable[..., str]:
    """Runs ``edge-infer`` on the stand-ins; returns stdout and checks what the driver saw, once it was used."""
    (tmp_path / "report").mkdir()

    def go(*arguments: str | Path, **settings: str) -> str:
        environment = stand_in_environment(tmp_path / "report", tmp_path / "cache", **settings)
        command = [sys.executable, "-m", "edge", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        reports = [json.loads(path.read_text()) for path in (tmp_path / "report").iterdir()]
        for report in reports:
            assert report["violations"] == []
            assert not any(report["live"].values()), report["live"]
            assert report["threads"] == 1
        assert len(reports) == ("tensorrt" in arguments)
        for path in (tmp_path / "report").iterdir():
            path.unlink()
        return done.stdout

    return go


def by_content(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results by the image's SHA-256, without what differs from run to run."""
    changing = ("id", "time", "timings_ms", "backend", "source")
    return {result["sha256"]: {k: v for k, v in result.items() if k not in changing} for result in results}


def assert_same(results: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    found, wanted = by_content(results), by_content(expected)
    assert found.keys() == wanted.keys() and len(found) == COUNT
    for key, result in found.items():
        for label, finding in result["findings"].items():
            reference = wanted[key]["findings"][label]
            assert finding["probability"] == pytest.approx(reference["probability"], abs=1e-6)
            assert finding["positive"] == reference["positive"]
    assert {result["backend"] for result in results} == {"tensorrt"}
    assert {result["backend"] for result in expected} == {"onnxruntime"}
    assert all(result["timings_ms"]["infer"] > 0 for result in results)


@pytest.mark.parametrize(("batch", "integrated"), [(1, "1"), (4, "0")], ids=["graph-integrated", "batches-discrete"])
def test_classify_and_serve_give_onnx_runtimes_results(
    make_bundle: Callable[..., Path],
    edge_infer: Callable[..., str],
    folder: Path,
    tmp_path: Path,
    batch: int,
    integrated: str,
) -> None:
    bundle = make_bundle(size=32, batch=batch)
    files = sorted(folder.iterdir())
    classified = {}
    for backend in ("onnxruntime", "tensorrt"):
        lines = edge_infer(
            "classify", *files, "--json", "--bundle", bundle, "--backend", backend, STAND_IN_INTEGRATED=integrated
        )
        classified[backend] = [json.loads(line) for line in lines.splitlines()]
    assert_same(classified["tensorrt"], classified["onnxruntime"])
    edge_infer(
        *("serve", "--drain", "--watch", folder, "--state", tmp_path / "state"),
        *("--bundle", bundle, "--backend", "tensorrt"),
        STAND_IN_INTEGRATED=integrated,
    )
    served = read_ledger(tmp_path / "state")
    assert_same(served.results, classified["onnxruntime"])


def test_auto_takes_tensorrt_where_it_works(make_bundle: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    environment = stand_in_environment(tmp_path, tmp_path / "cache")
    command = [sys.executable, "-m", "edge", "classify", folder / "00.png", "--json", "--bundle", make_bundle(size=32)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["backend"] == "tensorrt"
    assert "it is built here, once" in done.stderr


def test_the_benchmark_builds_twice_and_reads_the_first_build_s_timings(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.footprint", make_bundle(size=32), "engine"]
    environment = stand_in_environment(tmp_path, tmp_path / "cache")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split("timing cache ")[1] for line in done.stdout.splitlines() if "timing cache " in line][:2] == [
        "started",
        "read",
    ]
    assert "ok: the second build reads the first one's timing cache" in done.stdout


def test_the_gate_is_repeated_with_the_engine_of_this_machine(
    make_bundle: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    bundle = make_bundle(size=32, gate={"verdict": "pass", "reason": "r", "ran_on": "onnxruntime"})
    command = [sys.executable, "-m", "calibration.regate", bundle, "--gate-data", folder]
    environment = stand_in_environment(tmp_path, tmp_path / "cache")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    gate = load_bundle(bundle).manifest["gate"]
    assert (gate["verdict"], gate["ran_on"], gate["backend"]["engine"]) == ("not assessed", "tensorrt", "built here")
    assert gate["images"] == COUNT and gate["figures"]["max_difference"] < 1e-6
    assert gate["replaces"]["ran_on"] == "onnxruntime"


def test_an_engine_that_the_device_builds_leaves_a_signed_bundle_as_it_is(
    make_bundle: Callable[..., Path], edge_infer: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    bundle, key, public = make_bundle(size=32), Ed25519PrivateKey.generate(), tmp_path / "key.pub.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    sign_bundle(bundle, key)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    for _ in ("built here", "from the cache"):
        edge_infer("classify", folder / "00.png", "--bundle", bundle, "--backend", "tensorrt", "--public-key", public)
        assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert list((tmp_path / "cache" / "engines").glob("*.engine"))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """Runs ``make.py --backend tensorrt`` on the stand-ins, at 96 pixels; returns the manifest and what was said.

    The "plugin library" is a shared library that loads; what it would do, the stand-in of TensorRT does in NumPy.
    """
    plugin = tmp_path / "plugin.so"
    shutil.copyfile(FOLDER / "driver" / "libcuda.so.1", plugin)
    (tmp_path / "report").mkdir()

    def go(*arguments: str, **settings: str) -> tuple[dict[str, Any], str]:
        settings = {"MDCONV_PLUGIN": str(plugin), **settings}
        environment = stand_in_environment(tmp_path / "report", tmp_path / "cache", **settings)
        given = ("--backend", "tensorrt", "--input-size", "96", "--calibration-images", "8", "--no-gate")
        command = [sys.executable, MAKE_QUICKLY, *given, *arguments, "--output", tmp_path / "bundle"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        for path in (tmp_path / "report").iterdir():
            report = json.loads(path.read_text())
            assert report["violations"] == []
            assert not any(report["live"].values()), report["live"]
        return load_bundle(tmp_path / "bundle").manifest, done.stderr

    return go


def test_auto_builds_every_lowering_times_it_and_keeps_the_fastest(
    make: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    manifest, said = make("--fp32")
    lowering = manifest["lowering"]
    rows = {row["kind"]: row for row in lowering["comparison"]}
    assert list(rows) == ["padded", "split", "plugin"]
    timings = {kind: Timing(row["median_ms"], row["p10_ms"], row["p90_ms"], row["runs"]) for kind, row in rows.items()}
    assert lowering["kind"] == choose_fastest(timings)
    assert all(row["runs"] == 40 and row["builder"] == "TensorRT 10.3.0" for row in rows.values())
    assert lowering["timed_on"]["device"] == manifest["platform"]["device"]
    # Of the others nothing is left: the engine is that of the model that the manifest names.
    chosen = tmp_path / "bundle" / lowering["builder_model"]
    assert manifest["platform"]["onnx_sha256"] == sha256_of(chosen)
    assert [name for name in manifest["files"] if name.startswith("model.fp32.")] == [chosen.name]
    assert (PLUGIN_LIBRARY in manifest["files"]) == (lowering["kind"] == "plugin")
    assert said.count("building the tensorrt engine") == 3
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert [row["kind"] for row in report["lowerings"]["rows"]] == list(rows)
    assert report["backend"]["engine"] == "bundle"


def test_auto_leaves_the_plugin_out_where_there_is_none_and_says_why(
    make: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    manifest, said = make("--fp32", MDCONV_PLUGIN="/nowhere/plugin.so")
    lowering = manifest["lowering"]
    assert lowering["kind"] in ("padded", "split")
    why = "MDCONV_PLUGIN names /nowhere/plugin.so, which is missing"
    assert lowering["comparison"][2]["left_out"].startswith(why)
    assert f"lowering plugin is left out: {why}" in said


def test_an_int8_bundle_with_the_plugin_runs_with_it(
    make: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    manifest, _ = make("--int8", "--lowering", "plugin")
    lowering = manifest["lowering"]
    digest = sha256_of(tmp_path / "plugin.so")
    assert lowering["plugin"] == {"sha256": digest, "origin": "MDCONV_PLUGIN"}
    assert manifest["files"][PLUGIN_LIBRARY]["sha256"] == manifest["platform"]["plugin_sha256"] == digest
    assert manifest["files"].keys() >= {"model.int8.plugin.onnx", "model.int8.padded.onnx"}
    assert "note" not in lowering and "comparison" not in lowering
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert report["backend"]["plugin"] == {"sha256": digest, "origin": "MDCONV_PLUGIN"}
    assert report["backend"]["engine"] == "bundle"
