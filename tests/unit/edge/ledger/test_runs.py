"""Runs in the ledger: from received to finished, each once, whatever is killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from edge.errors import MachineError
from edge.ledger import LEDGER, Ledger, file_key, read_ledger
from tests.unit.edge.ledger.cases import due, receive, result, stored


def test_a_run_goes_from_received_to_running_to_done(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        id, new = receive(ledger, "a")
        assert new
        assert ledger.counts() == {"received": 1}
        run = ledger.take()
        assert run is not None
        assert (run.id, run.sha256, run.source) == (id, hashlib.sha256(b"a").hexdigest(), None)
        assert run.path.read_bytes() == b"a"
        assert ledger.counts() == {"running": 1}
        assert ledger.take() is None
        ledger.finish(result(id))
        assert ledger.counts() == {"done": 1}
    assert read_ledger(tmp_path).results == [result(id)]
    assert read_ledger(tmp_path, ("status", "id")).results == [{"status": "done", "id": id}]


def test_content_is_done_once_whatever_its_file_is_called(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        first, _ = receive(ledger, "a", content="same")
        assert receive(ledger, "b", content="same") == (first, False)  # received
        ledger.take()
        assert receive(ledger, "c", content="same") == (first, False)  # running
        ledger.finish(result(first))
        assert receive(ledger, "d", content="same") == (first, False)  # done
        assert ledger.take() is None
        assert all(ledger.knows(f"key {name}") for name in "abcd")
        assert not ledger.knows("key e")


def test_refused_content_is_tried_again_when_it_is_handed_over_again(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        id, _ = receive(ledger, "a", content="same")
        ledger.take()
        ledger.finish(result(id, "refused"))
        assert ledger.take() is None  # not of itself
        assert receive(ledger, "b", content="same") == (id, True)
        run = ledger.take()
        assert run is not None
        assert run.path.read_bytes() == b"same"
        ledger.finish(result(id))
        assert ledger.counts() == {"done": 1}


def test_a_result_is_recorded_once(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        id, _ = receive(ledger, "a")
        with pytest.raises(MachineError, match="not under way"):
            ledger.finish(result(id))
        ledger.take()
        ledger.finish(result(id))
        with pytest.raises(MachineError, match="not under way"):
            ledger.finish({**result(id), "source": "other"})
    assert read_ledger(tmp_path).results == [result(id)]


def test_unfinished_runs_come_again_those_tried_before_last(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        tried, _ = receive(ledger, "a")
        untried, _ = receive(ledger, "b")
        assert ledger.take() is not None  # and the process ends without a result
    with Ledger(tmp_path) as ledger:
        assert ledger.counts() == {"received": 2}
        again = [ledger.take(), ledger.take()]
        assert [run.id for run in again if run] == [untried, tried]


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    """A child receives and finishes runs and is killed in the middle of its work, with no chance to close anything."""
    code = f"""
import os, signal
from pathlib import Path
from edge.ledger import Ledger
ledger = Ledger(Path({str(tmp_path)!r}))
for name in "abc":
    ledger.receive(name.encode(), origin="folder", key=name)
run = ledger.take()
ledger.finish({{"id": run.id, "status": "done"}})
ledger.take()
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert child.returncode == -9
    with Ledger(tmp_path) as ledger:
        assert ledger.counts() == {"done": 1, "received": 2}
    assert len(read_ledger(tmp_path).results) == 1


def test_nothing_of_a_patient_stays_in_a_finished_run(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for status in ("done", "refused"):
            ledger.receive(f"DOE^JANE {status}".encode(), origin="dicom", instance=f"1.2.826.0.1.3680043.{len(status)}")
            run = ledger.take()
            assert run is not None
            assert b"DOE^JANE" in run.path.read_bytes()
            ledger.finish(result(run.id, status))
        assert list(ledger.spool.folder.iterdir()) == []
    for trace in ("DOE", b"DOE".hex().upper(), "3680043"):
        assert trace not in stored(tmp_path).upper()


def test_a_file_that_could_not_be_read_is_recorded_with_its_reason(tmp_path: Path) -> None:
    refused = {**result("x", "refused"), "reason": "it may not be read"}
    with Ledger(tmp_path) as ledger:
        ledger.refuse_unread(key="k", origin="folder", result=refused)
        ledger.refuse_unread(key="l", origin="folder", result={**refused, "id": "y"})
        assert ledger.knows("k")
        assert ledger.counts() == {"refused": 2}
    assert read_ledger(tmp_path).results[0] == refused


def test_the_ledger_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Ledger(tmp_path / "state") as ledger:
            receive(ledger, "a")
            (content,) = ledger.spool.folder.iterdir()
            files = [tmp_path / "state", *(tmp_path / "state").iterdir(), content]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    finally:
        os.umask(before)
    assert modes["state"] == modes["spool"] == 0o700
    assert modes[content.name] == 0o600
    assert {modes[name] for name in modes if name.startswith(LEDGER)} == {0o600}


def test_two_daemons_cannot_share_a_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(MachineError, match="another edge-infer serve uses"):
        Ledger(tmp_path)
    Ledger(tmp_path).close()


@pytest.mark.parametrize(
    "content", [b"this is no database, whatever its name says" * 40, b"SQLite format 3\0" + b"x" * 84]
)
def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEDGER).write_bytes(content)
    for opened in (Ledger, read_ledger):
        with pytest.raises(MachineError, match="move it away, or choose another --state"):
            opened(tmp_path)
    assert (tmp_path / LEDGER).read_bytes() == content


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / LEDGER)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for opened in (Ledger, read_ledger):
        with pytest.raises(MachineError, match="version 99, this program reads 2"):
            opened(tmp_path)


def test_no_ledger_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"no ledger at .*: check --state"):
        read_ledger(tmp_path)


def test_a_ledger_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        session = ledger.begin_session({"bundle_sha256": "b"})
        for number in range(20):
            id, _ = receive(ledger, str(number))
            ledger.take()
            ledger.finish(result(id))
            assert len(read_ledger(tmp_path).results) == number + 1
        assert read_ledger(tmp_path).sessions[0]["stopped"] is None
        ledger.end_session(session)
        (entry,) = read_ledger(tmp_path).sessions
        assert entry["bundle_sha256"] == "b"
        assert entry["started"] <= entry["stopped"]


def test_two_threads_may_use_it(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with Ledger(tmp_path) as ledger:

        def finish() -> None:
            try:
                done = 0
                while done < 60:
                    if run := ledger.take():
                        ledger.finish(result(run.id))
                        done += 1
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=finish)
        thread.start()
        for number in range(60):
            receive(ledger, str(number))
        thread.join(60)
        assert not errors
        assert ledger.counts() == {"done": 60}


def test_a_file_key_changes_with_whatever_changes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    keys = {file_key(path, path.stat())}
    assert file_key(path, path.stat()) in keys
    path.write_bytes(b"three")
    keys.add(file_key(path, path.stat()))
    os.utime(path, ns=(1, 1))
    keys.add(file_key(path, path.stat()))
    keys.add(file_key(tmp_path / "b", path.stat()))
    assert len(keys) == 4
    assert not any("tmp" in key or "/" in key for key in keys)


def test_the_same_instance_in_another_coding_is_the_same_run(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        id, new = receive(ledger, "a", "raw", instance="1.2.3")
        assert new
        assert receive(ledger, "b", "compressed", instance="1.2.3") == (id, False)
        assert receive(ledger, "c", "compressed", instance="1.2.4") != (id, False)
        ledger.take()
        ledger.finish(result(id, "refused"))
        assert receive(ledger, "d", "repaired", instance="1.2.3") == (id, True)
        assert {path.read_bytes() for path in ledger.spool.folder.iterdir()} == {b"compressed", b"repaired"}


def test_urgent_runs_overtake(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ids = [receive(ledger, name, stat=name in "cd")[0] for name in "abcd"]
        taken = [ledger.take() for _ in ids]
        assert [run.id for run in taken if run] == [ids[2], ids[3], ids[0], ids[1]]


@pytest.mark.parametrize("sinks", [(), ("pacs",)])
def test_a_kill_amid_the_end_of_a_run_leaves_its_result_or_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sinks: tuple[str, ...]
) -> None:
    """The process ends just as the content is removed: what was committed by then must not need it any more."""

    def killed(sha256: str) -> None:
        state = tmp_path / "at the kill"
        shutil.copytree(tmp_path / "state", state)
        raise KeyboardInterrupt

    with Ledger(tmp_path / "state") as ledger:
        id, _ = receive(ledger, "a")
        ledger.take()
        monkeypatch.setattr(ledger.spool, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.finish(result(id), sinks=sinks)
            waiting = due(ledger, "pacs")
            ledger.delivered(waiting, "pacs")
    with Ledger(tmp_path / "at the kill") as ledger:
        assert ledger.counts() == {"done": 1}
        assert ledger.outbox.pending() == {}
        assert list(ledger.spool.folder.iterdir()) == []  # what was one too many is gone
