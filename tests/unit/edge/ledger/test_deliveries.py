"""Results, their pictures and what is owed to each sink."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from edge.ledger import Ledger, Retention
from edge.service import Picture
from tests.unit.edge.ledger.cases import due, outbox_states, receive, result


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
