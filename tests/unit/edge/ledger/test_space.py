"""What the state folder keeps, and what it gives back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge.errors import MachineError, StorageFullError
from edge.ledger import Ledger, Retention
from edge.service import Picture
from tests.unit.edge.ledger.cases import receive, result


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
