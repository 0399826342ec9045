"""What follows from a bundle's gate: one that failed is refused by every command, unless forced, and then says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edge.bundle import load_bundle
from edge.cli import main
from edge.doctor import examine
from edge.errors import BundleError
from edge.gate import gate_notes, gate_verdict, notice_of, require_gate
from edge.ledger import read_ledger
from tests.conftest import NOTICE

REASON = "mean AUC 0.9 to 0.7: a drop of 0.2, 0.01 allowed"
FAILED = {"verdict": "fail", "reason": REASON}
SAID = f"FAILED ITS ACCURACY GATE; {NOTICE}"
NOTE = f"the bundle's accuracy gate: fail ({REASON})"


@pytest.fixture
def failed(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle("failed", gate=FAILED)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8))
    (folder / "broken.png").write_text("no image")
    return folder


def arguments_of(command: str, bundle: Path, images: Path, state: Path) -> list[str]:
    own = {
        "classify": [str(images / "a.png"), str(images / "broken.png"), "--json"],
        "serve": ["--watch", str(images), "--state", str(state), "--drain"],
        "bench": ["--duration", "0.1", "--report", str(state / "report")],
        "selftest": [],
    }[command]
    return [command, *own, "--bundle", str(bundle), "--backend", "onnxruntime"]


def test_whoever_signs_a_failed_bundle_is_told(
    failed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert main(["sign", "--bundle", str(failed), "--key", str(key)]) == 0
    assert capsys.readouterr().err == f"edge-infer: {SAID}\n"


@pytest.mark.parametrize("command", ["classify", "serve", "bench", "selftest"])
def test_a_failed_bundle_is_refused(
    command: str, failed: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments_of(command, failed, images, tmp_path / "state")) == 3
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"edge-infer: tiny failed its accuracy gate ({REASON}): ")
    assert "--allow-failed-gate" in line
    assert captured.out == ""
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("verdict", ["pass", "not assessed"])
def test_others_run_and_their_results_name_the_verdict(
    verdict: str,
    make_bundle: Callable[..., Path],
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = make_bundle("good", gate={"verdict": verdict, "reason": "r"})
    assert main(arguments_of("classify", bundle, images, tmp_path)) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["gate"] for line in captured.out.splitlines()] == [verdict, verdict]
    assert "GATE" not in captured.err


def test_forced_every_result_says_so(
    failed: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    assert main([*arguments_of("classify", failed, images, state), "--allow-failed-gate"]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["gate"] for line in captured.out.splitlines()] == ["fail", "fail"]
    assert captured.err.splitlines()[0] == f"edge-infer: {SAID}"

    without_json = [word for word in arguments_of("classify", failed, images, state) if word != "--json"]
    assert main([*without_json, "--allow-failed-gate"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("[this bundle failed its accuracy gate]")

    assert main([*arguments_of("bench", failed, images, state), "--allow-failed-gate"]) == 0
    report = json.loads((state / "report" / "report.json").read_text())
    assert (report["bundle"]["gate"], report["notice"]) == ("fail", SAID)
    assert NOTE in report["notes"]
    assert SAID in (state / "report" / "report.html").read_text()
    assert f"edge-infer: {SAID}" in capsys.readouterr().err


def test_a_daemon_by_force_says_so_in_its_ledger_and_report(
    failed: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    assert main([*arguments_of("serve", failed, images, state), "--allow-failed-gate"]) == 1
    assert SAID in caplog.text
    results = list(read_ledger(state).results)
    assert sorted(result["status"] for result in results) == ["done", "refused"]
    assert {result["gate"] for result in results} == {"fail"}
    assert main(["report", "--state", str(state)]) == 0
    report = json.loads((state / "report" / "report.json").read_text())
    assert report["notice"] == SAID and NOTE in report["notes"]


def test_doctor_names_it(failed: Path, make_bundle: Callable[..., Path]) -> None:
    (finding,) = [finding for finding in examine(failed) if finding.what == "bundle"]
    assert finding.needed and not finding.ok
    assert REASON in finding.detail
    (finding,) = [finding for finding in examine(make_bundle("good")) if finding.what == "bundle"]
    assert finding.ok and "accuracy gate: not assessed" in finding.detail


@pytest.mark.parametrize("verdict", ["Fail", "passed", None, 1])
def test_a_verdict_that_is_none_is_refused(verdict: Any, make_bundle: Callable[..., Path]) -> None:
    """Else a failed bundle would run for a slip of the pen."""
    with pytest.raises(BundleError, match="none of pass, fail, not assessed"):
        load_bundle(make_bundle("odd", gate={"verdict": verdict}))


def test_what_a_manifest_says() -> None:
    manifest: dict[str, Any] = {"name": "n", "gate": {}, "model": {"notice": ""}}
    assert gate_verdict(manifest) == "not assessed"
    assert (notice_of(manifest), notice_of(manifest, "default")) == ("", "default")
    assert gate_notes(manifest) == ["the bundle's accuracy gate: not assessed (no reason given)"]
    assert gate_notes({**manifest, "gate": {"verdict": "pass", "reason": "r"}}) == []
    require_gate(manifest)
    manifest["gate"] = {"verdict": "fail"}
    assert notice_of(manifest, "default") == "FAILED ITS ACCURACY GATE; default"
    with pytest.raises(BundleError, match="no reason given"):
        require_gate(manifest)
    require_gate(manifest, allow_failed=True)
