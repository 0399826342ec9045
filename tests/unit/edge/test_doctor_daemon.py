"""``edge-infer doctor --config``: real files, ports and locks."""

from __future__ import annotations

import fcntl
import socket
from pathlib import Path

import pytest

from edge.cli import main
from edge.config import Config, load_config
from edge.doctor import Finding
from edge.doctor_daemon import _clock, examine_daemon
from tests.unit.edge.http.test_http_access import write_certificate


def settings(place: Path, text: str = "", top: str = "") -> Config:
    file = place / "edge.toml"
    file.write_text(f'bundle = "{place}"\nstate = "{place / "state"}"\n{top}\n{text}')
    return load_config(file, {})


def found(config: Config) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine_daemon(config)}


def test_a_taken_port_is_told_unless_a_daemon_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = settings(tmp_path, f"[http]\nport = {taken.getsockname()[1]}\n[dicom]\nport = 0\n")
        assert not found(config)["http port"].ok
        assert found(config)["dicom port"].ok
        assert not config.state.exists()  # looking made nothing
        config.state.mkdir()
        with (config.state / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            findings = found(config)
        assert "a daemon runs with it" in findings["state"].detail
        assert "http port" not in findings


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    config = settings(tmp_path, "[queue]\nmin_free_mb = 1000000000\n", f'watch = ["{tmp_path}", "{tmp_path / "none"}"]')
    findings = found(config)
    told = {what: findings[what].ok for what in ("watched folder 1", "watched folder 2", "state")}
    assert told == {"watched folder 1": True, "watched folder 2": False, "state": False}


def test_certificate_and_key_must_belong_together(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, key = write_certificate(tmp_path, "a")
    _, other = write_certificate(tmp_path / "other", "b")
    for used, good in ((key, True), (other, False)):
        config = settings(tmp_path, f'[http]\nport = 0\ncertificate = "{certificate}"\nkey = "{used}"\n')
        assert found(config)["http TLS"].ok is good


def test_peers_and_tokens(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"curl:{'0' * 64}\n")
    with socket.create_server(("127.0.0.1", 0)) as broker:
        address = f'host = "127.0.0.1"\nport = {broker.getsockname()[1]}\n'
        text = f'[mqtt]\n{address}[http]\naddress = "0.0.0.0"\nport = 0\ntokens = "{tokens}"\n'
        config = settings(tmp_path, text)
        tokens.chmod(0o600)
        findings = found(config)
        assert findings["mqtt"].ok
        assert findings["http tokens"].ok
        assert not findings["http in clear"].ok
    tokens.chmod(0o622)
    findings = found(config)
    assert not findings["mqtt"].ok
    assert not findings["http tokens"].ok


def test_a_clock_that_was_never_set_is_told() -> None:
    assert not _clock(0.0).ok


def test_settings_that_cannot_be_used_are_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edge.toml").write_text('bundle = "b"\n[http]\nprot = 1\n')
    assert main(["doctor", "--config", str(tmp_path / "edge.toml")]) == 3
    assert "http.prot is no setting" in capsys.readouterr().out
