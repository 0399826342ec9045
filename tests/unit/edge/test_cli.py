from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge import __version__, cli, measure_commands
from edge.backends import CHOICES
from edge.bench import SCENARIOS
from edge.cli import main
from edge.errors import BundleError, InputRefusedError, MachineError, UsageError
from edge.places import default_state

COMMANDS = (
    *("classify", "serve", "reload", "token", "unit", "bench", "report", "selftest", "doctor", "passport", "sign"),
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["classify"], "--bundle, FILE"),
        (["classify", "--bundle", "b"], "FILE"),
        (["classify", "a.png", "--bundle", "b", "--backend", "torch"], "invalid choice: 'torch'"),
        (["classify", "a.png", "--bundle", "b", "--colour"], "unrecognized arguments: --colour"),
        (["serve", "--bundle", "b"], "--watch"),
        (["token"], "NAME"),
        (["bench", "--bundle", "b", "--duration", "0"], "no positive number of seconds"),
        (["bench", "--bundle", "b", "--duration", "long"], "--duration"),
        (["bench", "--bundle", "b", "--duration", "nan"], "no positive number of seconds"),
        (["bench", "--bundle", "b", "--scenario", "all"], "invalid choice: 'all'"),
        (["report"], "--state"),
        (["passport"], "--bundle"),
        (["sign", "--bundle", "b"], "--key"),
    ],
)
def test_wrong_use_is_one_line_that_names_the_help_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("edge-infer: ")
    assert said in line
    assert "--help`" in line


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_names_the_exit_statuses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*([command] if command else []), "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "0 done; 1 some inputs were refused" in text
    assert not command or "--verbose" in text


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"edge-infer {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "a.png", "--bundle", "nowhere"],
        ["serve", "--watch", ".", "--state", "s", "--bundle", "nowhere"],
        ["bench", "--bundle", "nowhere"],
        ["selftest", "--bundle", "nowhere"],
        ["passport", "--bundle", "nowhere"],
    ],
)
def test_a_missing_bundle_is_one_line_and_status_3(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "edge-infer: no bundle at nowhere: make one with `python build_engine/make.py`, or check --bundle"
    ) or line.startswith(f"edge-infer: no bundle at {tmp_path}/nowhere")
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputRefusedError("a\nb"), 1, "a b"),
        (UsageError("wrong"), 2, "wrong"),
        (BundleError("torn"), 3, "torn"),
        (MachineError("old"), 3, "old"),
        (PermissionError(13, "Permission denied", "/x"), 3, "Permission denied (/x): grant permission"),
        (OSError(28, "No space left on device"), 3, "No space left on device: free space"),
        (MemoryError(), 3, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_each_error_has_its_status_and_one_line(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(options: argparse.Namespace) -> Any:
        raise error

    monkeypatch.setattr(cli, "_doctor", fails)
    assert main(["doctor"]) == status
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"edge-infer: {line}")


def test_choices_that_are_named_without_importing_their_module_are_that_modules() -> None:
    assert tuple(SCENARIOS) == measure_commands.SCENARIOS
    assert CHOICES[0] == "auto"


def test_the_ledgers_default_place_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/someone")
    assert default_state() == Path("/var/lib/someone/mdconv-edge")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_state() == Path.home() / ".local/state/mdconv-edge"


def test_selftest_and_bench_run_a_bundle(
    tiny_bundle_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = ["--bundle", str(tiny_bundle_directory), "--backend", "onnxruntime"]
    assert main(["selftest", *bundle]) == 0
    captured = capsys.readouterr()
    assert "backend onnxruntime: self-test passed" in captured.out
    assert captured.err == "edge-infer: random weights, for tests only\n"
    assert main(["bench", *bundle, "--duration", "0.2", "--report", str(tmp_path / "report")]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == str(tmp_path / "report" / "report.html")
    assert "infer" in captured.out
    assert captured.err.count("random weights, for tests only") == 1


def test_a_token_is_made_with_the_line_by_which_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "modality-1"]) == 0
    token, line = (text.rsplit(": ", 1)[1] for text in capsys.readouterr().out.splitlines())
    assert line == f"modality-1:{hashlib.sha256(token.encode()).hexdigest()}"
    assert main(["token", "no good name"]) == 2
    assert "the token's name has other characters" in capsys.readouterr().err


def test_the_unit_names_this_installation_and_is_hardened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """systemd's own judgement, where it is installed: an exposure of 2.5 or less, of 10."""
    assert main(["unit", "--config", "/etc/x.toml"]) == 0
    text = capsys.readouterr().out
    assert f"ExecStart={Path(sys.executable).parent}/edge-infer serve --config /etc/x.toml\n" in text
    assert "Type=notify\n" in text
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    (tmp_path / "edge-infer.service").write_text(text)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", tmp_path / "edge-infer.service"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert float(re.search(r"exposure level for edge-infer.service: ([\d.]+)", said)[1]) <= 2.5  # type: ignore[index]
