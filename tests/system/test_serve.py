"""``edge-infer serve`` as a service: real processes, a real folder, signals and kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

EDGE_INFER = Path(sys.executable).with_name("edge-infer")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path


def command(bundle: Path, place: Path, *more: str) -> list[str | Path]:
    serve = [EDGE_INFER, "serve", "--bundle", bundle, "--backend", "onnxruntime"]
    return [*serve, "--watch", place / "inbox", "--state", place / "state", *more]


def drain(bundle: Path, place: Path, *more: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{f"EDGE_INFER_{name.upper()}": value for name, value in settings.items()}}
    return subprocess.run(
        command(bundle, place, "--drain", *more), capture_output=True, text=True, timeout=120, env=environment
    )


@contextmanager
def serving(bundle: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    with (place / "log").open("w") as log, subprocess.Popen(command(bundle, place), stderr=log, text=True) as process:
        try:
            wait_for(lambda: "serving: watching" in (place / "log").read_text() or process.poll() is not None)
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def rows(place: Path) -> list[tuple[str, str | None, dict[str, Any] | None]]:
    """State, SHA-256 and result of every run, read as a user would."""
    with closing(sqlite3.connect(place / "state" / "ledger.sqlite")) as ledger:
        found = ledger.execute("SELECT state, sha256, result FROM runs ORDER BY received, id").fetchall()
    return [(state, sha256, result and json.loads(result)) for state, sha256, result in found]


def finished(place: Path) -> int:
    try:
        return sum(result is not None for _, _, result in rows(place))
    except sqlite3.OperationalError:  # not made yet
        return 0


def picture(seed: int) -> bytes:
    image = cv2.resize(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8), (300, 280))
    return cv2.imencode(".png", image)[1].tobytes()


def fill(place: Path, count: int, first: int = 0) -> None:
    for seed in range(first, first + count):
        (place / "inbox" / f"DOE^JANE {seed}.png").write_bytes(picture(seed))


def contents(place: Path) -> dict[Path, tuple[bytes, int, int]]:
    """Content, time and mode of every file in the folder."""
    files = [path for path in (place / "inbox").rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in files}


def test_what_is_in_the_folder_is_done_and_stays_there(tiny_bundle_directory: Path, place: Path) -> None:
    fill(place, 6)
    (place / "inbox" / "sub").mkdir()
    (place / "inbox" / "sub" / "deep.png").write_bytes(picture(100))
    before = contents(place)
    done = drain(tiny_bundle_directory, place)
    assert done.returncode == 0, done.stderr
    assert [state for state, _, _ in rows(place)] == ["done"] * 7
    assert contents(place) == before
    classify = [
        EDGE_INFER,
        "classify",
        *before,
        "--json",
        "--bundle",
        tiny_bundle_directory,
        "--backend",
        "onnxruntime",
    ]
    named = subprocess.run(classify, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    expected = {result["sha256"]: result["findings"] for result in map(json.loads, named)}
    assert {sha256: result["findings"] for _, sha256, result in rows(place) if result} == expected


def test_refused_files_are_recorded_with_their_reason(tiny_bundle_directory: Path, place: Path) -> None:
    fill(place, 2)
    (place / "inbox" / "notes.txt").write_text("call Mr Roe")
    (place / "inbox" / "empty.png").touch()
    done = drain(tiny_bundle_directory, place)
    assert done.returncode == 1
    reasons = [result["reason"] for state, _, result in rows(place) if state == "refused" and result]
    assert len(reasons) == 2
    assert "Roe" not in "".join(reasons)
    assert all(
        any(reason in line for reason in reasons) for line in done.stderr.splitlines() if "WARNING refused" in line
    )
    assert sum("WARNING refused" in line for line in done.stderr.splitlines()) == 2


def test_a_restart_runs_only_what_is_new(tiny_bundle_directory: Path, place: Path) -> None:
    fill(place, 4)
    drain(tiny_bundle_directory, place)
    first = rows(place)
    fill(place, 2, first=50)
    (place / "inbox" / "same again.png").write_bytes(picture(0))
    done = drain(tiny_bundle_directory, place)
    assert done.returncode == 0
    assert rows(place)[:4] == first
    assert len(rows(place)) == 6
    assert "the same image again, not run twice" in done.stderr


def test_file_names_are_kept_only_if_wanted(tiny_bundle_directory: Path, place: Path) -> None:
    fill(place, 3)
    (place / "inbox" / "DOE^JANE.txt").write_text("no image")
    done = drain(tiny_bundle_directory, place, "--verbose")
    kept = b"".join(path.read_bytes() for path in (place / "state").rglob("*") if path.is_file())
    with closing(sqlite3.connect(place / "state" / "ledger.sqlite")) as ledger:
        assert "DOE" not in "\n".join(ledger.iterdump())
    assert "DOE" not in done.stderr
    assert done.stdout == ""
    assert kept
    shutil.rmtree(place / "state")
    assert "DOE" not in drain(tiny_bundle_directory, place, "--keep-names").stderr
    assert sorted(result["source"] for _, _, result in rows(place) if result) == [
        *(f"DOE^JANE {seed}.png" for seed in range(3)),
        "DOE^JANE.txt",
    ]


def test_files_that_arrive_are_taken_when_complete_and_a_signal_drains(
    tiny_bundle_directory: Path, place: Path
) -> None:
    """One file is moved in, one is written slowly; then SIGTERM comes while more wait: what was taken is finished."""
    with serving(tiny_bundle_directory, place) as process:
        (place / "whole.png").write_bytes(picture(1))
        (place / "whole.png").rename(place / "inbox" / "whole.png")
        content = picture(2)
        with (place / "inbox" / "slow.png").open("wb") as slow:
            slow.write(content[:100])
            slow.flush()
            wait_for(lambda: finished(place) == 1)
            time.sleep(2)  # unchanged for long enough, but its writer still holds it
            assert finished(place) == 1
            slow.write(content[100:])
        wait_for(lambda: finished(place) == 2)
        fill(place, 40, first=10)
        wait_for(lambda: finished(place) > 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    states = [state for state, _, _ in rows(place)]
    assert set(states) <= {"done", "received"}
    log = (place / "log").read_text()
    assert "stopping: finishing what is under way" in log
    assert "Traceback" not in log
    assert drain(tiny_bundle_directory, place).returncode == 0
    assert [state for state, _, _ in rows(place)] == ["done"] * 42


def test_killed_again_and_again_it_loses_and_doubles_nothing(tiny_bundle_directory: Path, place: Path) -> None:
    fill(place, 60)
    (place / "inbox" / "bad.png").write_bytes(b"bad")
    moments = random.Random(8)
    seen: dict[str, str] = {}
    for _ in range(6):
        with serving(tiny_bundle_directory, place) as process:
            before = finished(place)
            wait_for(lambda before=before: finished(place) > before or finished(place) == 61)  # type: ignore[misc]
            time.sleep(moments.uniform(0, 0.02))
            process.kill()
        for state, _, result in rows(place):
            if result is not None:
                assert state == result["status"]
                assert seen.setdefault(result["id"], json.dumps(result)) == json.dumps(result)  # never recorded anew
    assert drain(tiny_bundle_directory, place).returncode in (0, 1)  # 1 if it is this session that refuses the bad one
    states = [state for state, _, _ in rows(place)]
    assert sorted(states) == ["done"] * 60 + ["refused"]
    assert len({sha256 for _, sha256, _ in rows(place)}) == 61


def test_a_second_daemon_is_refused_its_place(tiny_bundle_directory: Path, place: Path) -> None:
    with serving(tiny_bundle_directory, place):
        second = drain(tiny_bundle_directory, place)
    assert second.returncode == 3
    assert second.stderr.count("\n") == 1
    assert "another edge-infer serve uses" in second.stderr


def test_a_bundle_that_fails_its_self_test_serves_nothing(make_bundle: Callable[..., Path], place: Path) -> None:
    fill(place, 1)
    bundle = make_bundle(golden={"max_probability_difference": -1.0, "mean_probability_difference": 1.0})
    done = drain(bundle, place)
    assert done.returncode == 3
    assert "the self-test failed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert rows(place) == []


def test_a_folder_that_goes_away_is_waited_for(tiny_bundle_directory: Path, place: Path) -> None:
    """A share that is not there for a while: the daemon says so once, serves on, and takes what is in it later."""

    def log() -> str:
        return (place / "log").read_text()

    with serving(tiny_bundle_directory, place) as process:
        (place / "inbox").rmdir()
        wait_for(lambda: "its files wait until it can be listed again" in log())
        time.sleep(1.5)
        (place / "elsewhere").mkdir()
        for seed in range(2):
            (place / "elsewhere" / f"{seed}.png").write_bytes(picture(seed))
        (place / "elsewhere").rename(place / "inbox")
        wait_for(lambda: finished(place) == 2)
        process.terminate()
        assert process.wait(60) == 0
    assert log().count("No such file or directory") == 1
    assert log().count("can be listed again") == 2
    assert "Traceback" not in log()


@pytest.mark.parametrize("missing", ["inbox", "bundle"])
def test_what_is_missing_is_named(tiny_bundle_directory: Path, tmp_path: Path, missing: str) -> None:
    if missing == "bundle":
        (tmp_path / "inbox").mkdir()
        done = drain(tmp_path / "nowhere", tmp_path)
        assert done.returncode == 3
    else:
        done = drain(tiny_bundle_directory, tmp_path)
        assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_full_disk_stops_it_and_nothing_that_was_recorded_is_lost(tiny_bundle_directory: Path, place: Path) -> None:
    """The state lies on a small file system; when it fills up, the daemon ends, and goes on once there is space."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    (place / "state").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place / "state"]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        fill(place, 3)
        assert drain(tiny_bundle_directory, place, queue__min_free_mb="0").returncode == 0
        before = [result["id"] for _, _, result in rows(place) if result]
        fill(place, 150, first=3)
        full = drain(tiny_bundle_directory, place, queue__min_free_mb="0")
        assert full.returncode == 3
        assert "free space" in full.stderr.splitlines()[-1]
        assert "Traceback" not in full.stderr
        told = {*before} | {
            line.split(" done ")[1].split()[0] for line in full.stderr.splitlines() if " INFO done " in line
        }
        subprocess.run(["mount", "-o", "remount,size=64m", place / "state"], check=True)
        recorded = {result["id"]: result for state, _, result in rows(place) if state == "done" and result}
        assert len(before) == 3
        assert told <= recorded.keys()  # whatever it said was done, is
        assert drain(tiny_bundle_directory, place, queue__min_free_mb="0").returncode == 0
        after = {result["id"]: result for state, _, result in rows(place) if state == "done" and result}
        assert len(after) == 153
        assert all(after[id] == result for id, result in recorded.items())
    finally:
        subprocess.run(["umount", place / "state"], check=True)


def test_the_ledger_gives_a_report(tiny_bundle_directory: Path, place: Path) -> None:
    fill(place, 5)
    drain(tiny_bundle_directory, place)
    report = [EDGE_INFER, "report", "--state", place / "state", "--report", place / "report"]
    done = subprocess.run(report, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(place / "report" / "report.html")
    figures = json.loads((place / "report" / "report.json").read_text())
    assert figures["counts"] == {"done": 5, "refused": 0}
    assert figures["stages"]["total"]["count"] == 5
    assert figures["wall_seconds"] > 0
