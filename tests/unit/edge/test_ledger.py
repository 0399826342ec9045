from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import MachineError, StorageFullError
from edge.ledger import LEDGER, Ledger, Retention, Waiting, file_key, read_ledger
from edge.service import Picture


def receive(ledger: Ledger, name: str, content: str | None = None, **more: Any) -> tuple[str, bool]:
    receipt = ledger.receive((content or name).encode(), origin="folder", key=f"key {name}", **more)
    return receipt.id, receipt.new


def result(id: str, status: str = "done") -> dict[str, Any]:
    return {"id": id, "status": status, "source": None, "time": "2026-01-01T00:00:00+00:00"}


def due(ledger: Ledger, sink: str) -> Waiting:
    waiting = ledger.outbox.next(sink)
    assert waiting is not None
    return waiting


def outbox_states(ledger: Ledger) -> dict[str, str]:
    with ledger.database.reading() as connection:
        return dict(connection.execute("SELECT sink, state FROM outbox").fetchall())


def stored(state: Path) -> str:
    """Everything in the ledger's files, as bytes that could be read by whoever gets hold of them."""
    with closing(sqlite3.connect(state / LEDGER)) as connection:
        return "\n".join(connection.iterdump())


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


def test_a_full_disk_is_told_and_loses_nothing_recorded(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        receive(ledger, "a")
        pages = ledger.database._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger.database._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(MachineError, match="free space on its disk"):
            for number in range(1000):
                receive(ledger, f"{number} " + 100 * "x")
        ledger.database._connection.execute("PRAGMA max_page_count = 1000000")
        count = ledger.counts()["received"]
        receive(ledger, "and on it goes")
        assert ledger.counts()["received"] == count + 1


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


def test_content_is_kept_until_every_sink_has_the_result(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        id, _ = receive(ledger, "a")
        ledger.take()
        ledger.finish(result(id), sinks=("pacs", "mqtt"))
        for sink, attempt in (("pacs", 1), ("pacs", 2), ("mqtt", 1)):
            waiting = due(ledger, sink)
            assert (waiting.run, waiting.attempt, waiting.result) == (id, attempt, result(id))
        assert ledger.outbox.next("jsonl") is None
        assert ledger.outbox.pending() == {"pacs": 1, "mqtt": 1}
        ledger.delivered(waiting, "mqtt")
        assert ledger.outbox.next("mqtt") is None
        assert len(list(ledger.spool.folder.iterdir())) == 1
    with Ledger(tmp_path) as ledger:  # the process ended in between
        waiting = due(ledger, "pacs")
        assert waiting.attempt == 3
        assert ledger.outbox.postpone(waiting, "pacs") == 4.0
        assert ledger.outbox.next("pacs") is None  # not due
        ledger.delivered(waiting, "pacs", "given up")
        assert list(ledger.spool.folder.iterdir()) == []
        assert outbox_states(ledger) == {"mqtt": "delivered", "pacs": "given up"}


def test_a_delivery_that_a_new_run_overtakes_does_not_count_for_the_new_result(tmp_path: Path) -> None:
    """What was refused is handed over again, and done, while a slow sink still takes the refusal."""
    with Ledger(tmp_path) as ledger:
        for status in ("refused", "done"):
            id, _ = receive(ledger, "a")
            ledger.take()
            ledger.finish(result(id, status), sinks=("pacs",))
            if status == "refused":
                old = due(ledger, "pacs")
        for end in (lambda: ledger.delivered(old, "pacs"), lambda: ledger.outbox.postpone(old, "pacs")):
            end()
            new = due(ledger, "pacs")
            assert new.result == result(id)
        assert (ledger.spool.folder / hashlib.sha256(b"a").hexdigest()).exists()
        ledger.delivered(new, "pacs")
        assert ledger.outbox.pending() == {}
        assert list(ledger.spool.folder.iterdir()) == []


@pytest.mark.parametrize("instance", [None, "1.2.3"])
def test_two_senders_of_one_image_leave_nothing_in_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: str | None
) -> None:
    """The second one has just written the image when the first one's run is taken, finished and delivered."""
    with Ledger(tmp_path) as ledger:
        write = ledger.spool.write

        def overtaken(sha256: str, content: bytes) -> None:
            write(sha256, content)
            monkeypatch.undo()
            other = "the same, coded otherwise" if instance else "a"
            first = ledger.receive(other.encode(), origin="http", instance=instance)
            ledger.take()
            ledger.finish(result(first.id))

        monkeypatch.setattr(ledger.spool, "write", overtaken)
        assert not ledger.receive(b"a", origin="dicom", instance=instance).new
        assert list(ledger.spool.folder.iterdir()) == []
        assert ledger.counts() == {"done": 1}


def test_very_much_that_is_due_is_removed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path) as ledger:
        for number in range(50):
            id, _ = receive(ledger, str(number))
            ledger.take()
            ledger.finish(result(id))
        retention = Retention(ledger.database, days=1e-9, max_bytes=None)
        moments = iter(range(100))
        monkeypatch.setattr("edge.ledger.retention.time.monotonic", lambda: 3.0 * next(moments))
        assert [retention.apply() for _ in range(3)] == [20, 20, 10]


def test_a_clock_that_is_set_back_does_not_hold_deliveries_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path) as ledger:
        id, _ = receive(ledger, "a")
        ledger.take()
        ledger.finish(result(id), sinks=("pacs",))
        waiting = due(ledger, "pacs")
        ledger.outbox.postpone(dataclasses.replace(waiting, attempt=20), "pacs")  # the longest pause
        assert ledger.outbox.next("pacs") is None
        now = time.time()
        monkeypatch.setattr("edge.ledger.outbox.time.time", lambda: now - 86400)
        assert ledger.outbox.next("pacs") is not None


def test_results_come_in_the_order_of_finishing_and_from_a_cursor_on(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ids = [receive(ledger, name)[0] for name in "abcde"]
        for _ in ids:
            ledger.take()
        order = [ids[i] for i in (3, 0, 4, 1)]
        for id in order:
            ledger.finish(result(id))
        found, after = [], 0
        while page := ledger.results(after, limit=3):
            found += [entry["id"] for _, entry in page]
            after = page[-1][0]
        assert found == order
        Retention(ledger.database, days=1e-9, max_bytes=None).apply()
        ledger.finish(result(ids[2]))
        assert [entry["id"] for _, entry in ledger.results(after, limit=3)] == [ids[2]]  # no cursor is used twice


def test_pictures_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    picture = Picture(rng.integers(0, 256, (33, 33), np.uint8), rng.random((2, 5, 7), np.float32), ("a", "b"))
    for keep in (True, False):
        with Ledger(tmp_path / str(keep), keep_pictures=keep) as ledger:
            id, _ = receive(ledger, "a")
            ledger.take()
            ledger.finish(result(id), picture)
            found = ledger.picture(id)
            assert (found is not None) == keep
            if found is not None and found.cam is not None and picture.cam is not None:
                np.testing.assert_array_equal(found.pixels, picture.pixels)
                np.testing.assert_array_equal(found.cam, picture.cam)
                assert found.labels == picture.labels


def test_a_picture_may_be_kept_for_the_sinks_alone(tmp_path: Path) -> None:
    picture = Picture(np.zeros((8, 8), np.uint8), None, ())
    with Ledger(tmp_path, lend_pictures=True) as ledger:
        for name, sinks in (("a", ("pacs", "mqtt")), ("b", ())):
            id, _ = receive(ledger, name)
            ledger.take()
            ledger.finish(result(id), picture, sinks)
            for sink in sinks:
                assert ledger.picture(id) is not None
                waiting = due(ledger, sink)
                ledger.delivered(waiting, sink)
            assert ledger.picture(id) is None


def test_retention_removes_the_oldest_that_are_delivered_and_remembers_files_that_are_there(tmp_path: Path) -> None:
    with Ledger(tmp_path, keep_pictures=True) as ledger:
        noise = np.random.default_rng(1)
        for number in range(40):
            id, _ = receive(ledger, str(number))
            ledger.take()
            pixels = noise.integers(0, 256, (200, 200), np.uint8)
            ledger.finish(result(id), Picture(pixels, None, ()), sinks=("pacs",) if number < 2 else ())
        receive(ledger, "waiting")
        assert Retention(ledger.database, days=1.0, max_bytes=None).apply() == 0
        retention = Retention(ledger.database, days=None, max_bytes=1_000_000)
        assert retention.apply(present={"key 5"}) == 20  # one step is enough
        assert ledger.counts() == {"done": 20, "received": 1}
        assert ledger.knows("key 5")
        assert ledger.knows("key 0")
        assert not ledger.knows("key 6")


def test_what_was_received_before_the_clock_was_set_has_no_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path) as ledger:
        for name, received in (("a", "1970-01-01T00:01:00.000+00:00"), ("b", "2024-02-01T00:00:00.000+00:00")):
            monkeypatch.setattr("edge.ledger.runs.timestamp", lambda received=received: received)
            id, _ = receive(ledger, name)
            ledger.take()
            ledger.finish(result(id))
        assert Retention(ledger.database, days=30, max_bytes=None).apply() == 1
        assert [run["received"][:4] for run in ledger.recent(9)] == ["1970"]


def test_what_a_killed_process_left_in_the_spool_is_swept(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        receive(ledger, "a")
        half, orphan, foreign = (ledger.spool.folder / name for name in (f".{'0' * 32}", "f" * 64, "notes.txt"))
        for path in (half, orphan, foreign):
            path.write_bytes(b"x")
    with Ledger(tmp_path) as ledger:
        assert not half.exists()
        assert not orphan.exists()
        assert foreign.exists()  # it is not ours
        run = ledger.take()
        assert run is not None
        assert run.path.read_bytes() == b"a"


def test_space_for_results_is_kept_free(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with Ledger(tmp_path, reserve=2 * free) as ledger, pytest.raises(StorageFullError, match="are kept for results"):
        receive(ledger, "a")


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
