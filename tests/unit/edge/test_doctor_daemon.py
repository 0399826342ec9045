"""``edge-infer doctor --config``: real files, ports and locks."""

from __future__ import annotations

import fcntl
import socket
import threading
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from edge.cli import main
from edge.config import Config, load_config
from edge.doctor import Finding
from edge.doctor_daemon import _clock, examine_daemon
from edge.ledger import Ledger
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
        finding = found(config)["http TLS"]
        assert finding.needed is not good
        assert ("belong together" in finding.detail) is good


def test_a_certificate_that_ends_soon_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = write_certificate(tmp_path, "a")  # ends in an hour
    config = settings(tmp_path, f'[http]\nport = 0\ncertificate = "{certificate}"\nkey = "{key}"\n')
    assert not found(config)["http TLS"].ok
    monkeypatch.setattr("edge.doctor_network.EXPIRY_DAYS", 0)
    finding = found(config)["http TLS"]
    assert finding.ok
    assert f"to {datetime.now(timezone.utc) + timedelta(hours=1):%Y-%m-%d}" in finding.detail


def test_files_of_the_sinks_must_be_usable(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "no.pem").write_text("none")
    for section, what, said in (
        (f'[mqtt]\nhost = "127.0.0.1"\nuser = "u"\npassword_file = "{tmp_path / "empty"}"', "mqtt", "is empty"),
        (f'[mqtt]\nhost = "127.0.0.1"\ntls = true\nca = "{tmp_path / "no.pem"}"', "mqtt", "do not fit"),
        (f'[pacs]\nurl = "http://127.0.0.1:9"\ntoken_file = "{tmp_path / "none"}"', "pacs", "cannot be read"),
        (f'[pacs]\nhost = "127.0.0.1"\ntls = true\nca = "{tmp_path / "no.pem"}"', "pacs", "do not fit"),
    ):
        finding = found(settings(tmp_path, section))[what]
        assert finding.needed
        assert said in finding.detail


def test_a_ledger_of_another_version_is_told(tmp_path: Path) -> None:
    with Ledger(tmp_path / "state") as ledger, ledger.database.reading() as connection:
        connection.execute("PRAGMA user_version = 999")
    finding = found(settings(tmp_path))["state"]
    assert finding.needed
    assert "is of version 999, this program reads" in finding.detail


def test_video_addresses_are_tried_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "DOE^JANE.avi"
    file.touch()
    addresses = (str(file), str(tmp_path / "none"), "/dev/video99", "rtsp://user:secret@camera/stream")
    text = "".join(f'[[video]]\naddress = "{address}"\n' for address in addresses)
    findings = [found(settings(tmp_path, text))[f"video {number}"] for number in range(1, 5)]
    assert [finding.ok for finding in findings] == [True, False, False, True]
    said = "".join(finding.detail for finding in findings)
    assert "DOE" not in said
    assert "secret" not in said
    assert "rtsp://camera" in said


def test_a_memory_limit_above_the_machine_is_told(tmp_path: Path) -> None:
    for limit, good in ((300, True), (10_000_000, False)):
        assert found(settings(tmp_path, f"[memory]\nlimit_mb = {limit}\n"))["memory limit"].ok is good


@pytest.mark.parametrize("known", [True, False])
def test_a_pacs_is_asked_whether_it_knows_us(tmp_path: Path, known: bool) -> None:
    """Against pynetdicom's server: C-ECHO, and the titles of both sides."""
    pacs = AE("PACS")
    pacs.add_supported_context(Verification)
    pacs.require_calling_aet = ["MDCONV_EDGE" if known else "OTHER"]
    server = pacs.start_server(("127.0.0.1", 0), block=False)
    try:
        finding = found(settings(tmp_path, f'[pacs]\nhost = "127.0.0.1"\nport = {server.server_address[1]}\n'))["pacs"]
    finally:
        server.shutdown()
    assert finding.ok is known
    assert ("answered C-ECHO" if known else "rejected the association") in finding.detail


@pytest.mark.parametrize(("status", "good"), [(200, True), (404, True), (401, False)])
def test_a_web_pacs_is_asked_whether_it_knows_us(tmp_path: Path, status: int, good: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
        finding = found(settings(tmp_path, f'[pacs]\nurl = "{url}"\n'))["pacs"]
    assert finding.ok is good
    assert f"answered with status {status}" in finding.detail


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
