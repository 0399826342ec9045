"""The daemon's core as a user meets it: reload, sinks, back-pressure, shadow, systemd; each with a real process."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.config import Config, load_config
from edge.daemon import Server
from edge.ledger import Ledger
from edge.parts import make_sinks
from edge.sinks import Sink
from tests.system.daemon import EDGE_INFER, Daemon, json_lines, serving, wait_for


def picture(seed: int) -> bytes:
    image = cv2.resize(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8), (300, 280))
    return cv2.imencode(".png", image)[1].tobytes()


def fill(place: Path, count: int, first: int = 0) -> None:
    (place / "inbox").mkdir(exist_ok=True)
    for seed in range(first, first + count):
        part = place / "inbox" / f"{seed}.part"
        part.write_bytes(picture(seed))
        part.rename(part.with_suffix(".png"))


def settings(place: Path, bundle: Path, more: str = "") -> str:
    (place / "inbox").mkdir(exist_ok=True)
    return f'bundle = "{bundle}"\nbackend = "onnxruntime"\nwatch = ["{place / "inbox"}"]\n{more}'


def test_a_reload_swaps_under_load_and_rolls_back_what_is_bad_or_tampered_with(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Good, bad (self-test), tampered and missing bundles, by command and by signal, while images come in."""
    first, good = (make_bundle(name, calibration={"note": name}) for name in ("first", "good"))
    tampered = make_bundle("tampered")
    bad = make_bundle("bad", golden={"max_probability_difference": -1.0, "mean_probability_difference": 1.0})
    with (tampered / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with serving(tmp_path, settings(tmp_path, first)) as daemon:
        fill(tmp_path, 30)
        daemon.wait_for_results(1)
        for number, (bundle, said) in enumerate(
            [(bad, "the self-test failed"), (tampered, "was altered"), (tmp_path / "none", "no bundle at")]
        ):
            fill(tmp_path, 10, first=100 * (number + 1))
            daemon.write(settings(tmp_path, bundle))
            done = daemon.reload()
            assert done.returncode == 3
            assert said in done.stderr
            assert done.stderr.count("\n") == 1
        fill(tmp_path, 10, first=400)
        daemon.write(settings(tmp_path, good))
        done = daemon.reload()
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("tiny serves (manifest SHA-256 ")
        fill(tmp_path, 10, first=500)
        daemon.wait_for_results(80)
        daemon.write(settings(tmp_path, first))
        daemon.process.send_signal(signal.SIGHUP)
        wait_for(lambda: daemon.log.count("reload: tiny serves") == 2)
        fill(tmp_path, 5, first=600)
        results = daemon.wait_for_results(85)
        assert daemon.stop() == 0
    assert [result["status"] for result in results] == ["done"] * 85
    assert len({result["sha256"] for result in results}) == 85
    assert len({result["bundle"] for result in results}) == 2  # the good ones; whatever was bad made no result
    assert results[-1]["bundle"] == results[0]["bundle"]
    assert daemon.log.count(" stays: ") == 3
    assert "Traceback" not in daemon.log


def test_nothing_answers_a_reload_where_no_daemon_runs(tmp_path: Path) -> None:
    for state in (tmp_path, tmp_path / "none"):
        done = subprocess.run([EDGE_INFER, "reload", "--state", state], capture_output=True, text=True, timeout=60)
        assert done.returncode == 3
        assert "no daemon answers in" in done.stderr
        assert done.stderr.count("\n") == 1


def test_lines_of_json_survive_kills_and_a_place_that_comes_and_goes(
    tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    """Killed at random moments, and with the file's folder away for a while: each result is there, and there once."""
    out = tmp_path / "out"
    more = f'[jsonl]\npath = "{out / "results.jsonl"}"\n'
    moments = random.Random(4)
    daemon = Daemon(tmp_path, settings(tmp_path, tiny_bundle_directory, more))
    try:
        fill(tmp_path, 40)
        daemon.start()
        wait_for(lambda: "did not take" in daemon.log)  # the folder is not there yet
        daemon.kill()
        out.mkdir()
        for _ in range(4):
            daemon.start()
            before = len(json_lines(out / "results.jsonl"))
            wait_for(lambda before=before: len(json_lines(out / "results.jsonl")) in (*range(before + 1, 40), 40))  # type: ignore[misc]
            time.sleep(moments.uniform(0, 0.05))
            daemon.kill()
        daemon.start()
        wait_for(lambda: len(json_lines(out / "results.jsonl")) >= 40)
        assert daemon.stop() == 0
    finally:
        daemon.close()
    lines = json_lines(out / "results.jsonl")
    assert sorted(line["id"] for line in lines) == sorted(result["id"] for result in daemon.results())
    assert len(lines) == 40
    assert list((tmp_path / "state" / "spool").iterdir()) == []


def test_a_full_queue_holds_the_folder_up_and_loses_nothing(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    fill(tmp_path, 60)
    more = "[queue]\nmax_images = 2\n"
    with serving(tmp_path, settings(tmp_path, tiny_bundle_directory, more)) as daemon:
        results = daemon.wait_for_results(60)
        assert daemon.stop() == 0
    assert [result["status"] for result in results] == ["done"] * 60


def test_a_full_disk_makes_it_wait_not_end(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    """The state's disk fills up while it serves; once there is space, it goes on by itself, and nothing is lost."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    state = tmp_path / "state"
    state.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", state], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        daemon = Daemon(tmp_path, settings(tmp_path, tiny_bundle_directory, "[queue]\nmin_free_mb = 1\n"))
        daemon.start()
        fill(tmp_path, 5)
        daemon.wait_for_results(5)
        with (state / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
            while True:
                ballast.write(bytes(4096))
        fill(tmp_path, 20, first=5)
        time.sleep(3)
        assert daemon.process.poll() is None
        assert len(daemon.results()) < 25
        (state / "ballast").unlink()
        results = daemon.wait_for_results(25)
        assert daemon.stop() == 0
        assert [result["status"] for result in results] == ["done"] * 25
    finally:
        daemon.close()
        subprocess.run(["umount", state], check=True)


def test_the_log_can_be_json_and_names_nobody(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "DOE^JANE.png").write_bytes(picture(1))
    (tmp_path / "inbox" / "DOE^JANE.txt").write_text("Mrs Doe, DOE^JANE, born 1970")
    with serving(tmp_path, settings(tmp_path, tiny_bundle_directory, '[log]\nformat = "json"\n')) as daemon:
        daemon.wait_for_results(2)
        assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    assert {"timestamp", "level", "message"} <= lines[0].keys()
    assert any(line["message"].startswith("done ") for line in lines)
    assert "DOE" not in daemon.log


def test_an_image_with_which_the_process_ended_ten_times_is_refused(
    tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with Ledger(state) as ledger:
        hopeless = ledger.receive(picture(1), origin="http").id
        for _ in range(10):
            assert ledger.take() is not None
            with ledger.database.transaction() as connection:  # the process ends, and is started anew
                connection.execute("UPDATE runs SET state = 'received'")
        ledger.receive(picture(2), origin="http")
    with serving(tmp_path, settings(tmp_path, tiny_bundle_directory)) as daemon:
        results = {result["id"]: result for result in daemon.wait_for_results(2)}
        assert daemon.stop() == 0
    assert results[hopeless]["status"] == "refused"
    assert results[hopeless]["reason"].startswith("the daemon ended 10 times while it worked on this image")
    assert sorted(result["status"] for result in results.values()) == ["done", "refused"]
    assert list((state / "spool").iterdir()) == []


def test_what_is_taken_up_again_waits_for_a_sink_that_is_slow_to_load(
    tiny_bundle_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result is owed to the sinks that are there when it is recorded: none may be recorded before."""

    def slowly(config: Config) -> Iterator[Sink]:
        time.sleep(3)
        return make_sinks(config)

    with Ledger(tmp_path / "state") as ledger:
        for seed in range(5):
            ledger.receive(picture(seed), origin="http")
            assert ledger.take() is not None
    monkeypatch.setattr("edge.daemon.make_sinks", slowly)
    flags = {"bundle": tiny_bundle_directory, "state": tmp_path / "state", "backend": "onnxruntime", "drain": True}
    assert Server(load_config(None, {**flags, "jsonl": {"path": tmp_path / "results.jsonl"}})).run() == 0
    assert len(json_lines(tmp_path / "results.jsonl")) == 5


def test_systemd_hears_how_it_is(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    """A stand-in for the service manager: the socket that sd_notify(3) writes to."""
    address = f"\0mdconv-edge-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        environment = {"NOTIFY_SOCKET": "@" + address[1:], "WATCHDOG_USEC": "400000"}
        with serving(tmp_path, settings(tmp_path, tiny_bundle_directory), **environment) as daemon:
            assert manager.recv(4096).decode().splitlines()[0] == "READY=1"
            assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            assert daemon.reload().returncode == 0
            told: list[str] = []
            while "READY=1" not in told:
                told += manager.recv(4096).decode().splitlines()
            assert "RELOADING=1" in told
            assert any(line.startswith("MONOTONIC_USEC=") for line in told)
            assert daemon.stop() == 0
            while "STOPPING=1" not in told:
                told += manager.recv(4096).decode().splitlines()


def test_too_much_memory_ends_it_in_order(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    fill(tmp_path, 3)
    with serving(tmp_path, settings(tmp_path, tiny_bundle_directory, "[memory]\nlimit_mb = 64\n")) as daemon:
        assert daemon.process.wait(60) == 3
    last = daemon.log.splitlines()[-1]
    assert last.startswith("edge-infer: ")
    assert "64 may be (memory.limit_mb): start it again" in last
    assert "Traceback" not in daemon.log


def test_a_wrong_setting_is_one_line(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'bundle = "{tiny_bundle_directory}"\n[http]\nprot = 80\n')
    done = subprocess.run(
        [EDGE_INFER, "serve", "--config", tmp_path / "c.toml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("edge-infer: http")
    assert done.stderr.count("\n") == 1
