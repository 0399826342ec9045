"""The Parquet output: a row a content, whatever is killed, handed in twice, or done again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="Arrow comes with the extra [cluster]")

from pyarrow import parquet

from edge.archive.output import Output, scores_schema
from edge.archive.sources import ArchiveFile
from edge.errors import MachineError, UsageError

LABELS = ("Mass", "Pleural Thickening")
NOTICE = "synthetic phantoms"
GUARD = {"score": 1.25, "threshold": 2.0, "refused": False, "off": False}


def opened(folder: Path, **facts: Any) -> Output:
    return Output(folder, {"bundle": "b1", "guard": True, "paths": False, **facts}, scores_schema(LABELS, NOTICE))


def file(name: str) -> ArchiveFile:
    return ArchiveFile(hashlib.sha256(os.fsencode(name)).hexdigest(), Path("/archive", name))


def result(content: str | None, reason: str | None = None) -> dict[str, Any]:
    findings = {label: {"probability": 1 / (3 + i), "positive": i == 0} for i, label in enumerate(LABELS)}
    return {
        "id": "0",
        "source": None,
        "sha256": None if content is None else hashlib.sha256(content.encode()).hexdigest(),
        "status": "done" if reason is None else "refused",
        "reason": reason,
        "findings": findings if reason is None else None,
        "guard": GUARD if reason is None else None,
        "timings_ms": {"total": 1.0},
        **{"bundle": "b1", "gate": "pass", "backend": "onnxruntime", "time": "2026-01-01T00:00:00.000+00:00"},
    }


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(folder / table).to_pylist()
    return found


def test_rows_say_what_the_result_says(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as output:
        output.add(file("a"), result("A"))
        output.add(file("b"), result("B", "it is in colour"))
        output.add(file("c"), result(None, "no such file"))
    one, two = rows(tmp_path / "out", "scores")
    for row, expected in ((one, result("A")), (two, result("B", "it is in colour"))):
        assert row == {name: expected[name] for name in row}
        assert not {"id", "source", "timings_ms"} & row.keys()
    assert [(row["sha256"], row["reason"]) for row in rows(tmp_path / "out", "files")] == [
        (one["sha256"], None),
        (two["sha256"], None),
        (None, "no such file"),
    ]
    text = b"".join(part.read_bytes() for part in (tmp_path / "out").rglob("*") if part.is_file())
    assert b"/archive" not in text, "no name is kept unless it is asked for"
    assert parquet.read_schema(next((tmp_path / "out/scores").iterdir())).metadata[b"notice"] == NOTICE.encode()


def test_files_of_one_content_have_one_row_of_scores_and_are_all_named_where_asked(tmp_path: Path) -> None:
    strange = os.fsdecode(b"\xff.png")
    with opened(tmp_path / "out", paths=True) as output:
        assert output.add(file("a"), result("A"))
        assert not output.add(file(strange), result("A"))
        output.write()
        assert not output.add(file("c"), result("A"))
    assert len(rows(tmp_path / "out", "scores")) == 1
    named = rows(tmp_path / "out", "files")
    assert [row["path"] for row in named] == ["/archive/a", "/archive/\\xff.png", "/archive/c"]
    assert len({row["sha256"] for row in named}) == 1


def test_a_later_run_knows_what_is_done_and_tries_the_unreadable_again(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as output:
        output.add(file("a"), result("A"))
        output.add(file("unread"), result(None, "no such file"))
    for _ in range(2):
        with opened(tmp_path / "out") as output:
            assert output.has(file("a")) and not output.has(file("b"))
            assert not output.has(file("unread"))
            output.add(file("unread"), result(None, "no such file"))
    with opened(tmp_path / "out") as output:
        assert output.add(file("unread"), result("U"))
    with opened(tmp_path / "out") as output:
        assert output.has(file("unread")) and output.contents == 2
    assert [row["reason"] for row in rows(tmp_path / "out", "files")] == [None, "no such file", None]


def test_a_kill_between_the_two_tables_costs_no_row_and_doubles_none(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as output:
        output.add(file("a"), result("A"))
    with opened(tmp_path / "out") as output:
        output.add(file("b"), result("B"))
    (tmp_path / "out/files/part-000002.parquet").unlink()  # as if killed before it was written
    (tmp_path / "out/scores/.part-000003.parquet").write_bytes(b"PAR1 half of a")
    with opened(tmp_path / "out") as output:
        assert output.has(file("a")) and not output.has(file("b"))
        assert not output.add(file("b"), result("B"))
    with opened(tmp_path / "out") as output:
        assert output.has(file("b"))
    assert [len(rows(tmp_path / "out", table)) for table in ("scores", "files")] == [2, 2]
    assert not list((tmp_path / "out").glob("*/.*"))


def test_a_part_that_is_lost_is_scored_again_and_one_that_is_damaged_is_named(tmp_path: Path) -> None:
    with opened(tmp_path / "out") as output:
        output.add(file("a"), result("A"))
    part = tmp_path / "out/scores/part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(MachineError, match=r"part-000001\.parquet cannot be read"):
        opened(tmp_path / "out")
    part.unlink()
    with opened(tmp_path / "out") as output:
        assert not output.has(file("a"))
        assert output.add(file("a"), result("A"))
    assert [len(rows(tmp_path / "out", table)) for table in ("scores", "files")] == [1, 1]


@pytest.mark.parametrize(
    ("facts", "said"),
    [({"bundle": "b2"}, "another bundle,"), ({"guard": False, "paths": True}, "another guard, paths")],
)
def test_one_output_is_of_one_kind(facts: dict[str, Any], said: str, tmp_path: Path) -> None:
    opened(tmp_path / "out").__exit__(None, None, None)
    with pytest.raises(UsageError, match=said):
        opened(tmp_path / "out", **facts)


def test_two_runs_do_not_write_into_one_output(tmp_path: Path) -> None:
    with opened(tmp_path / "out"), pytest.raises(UsageError, match="another run writes into"):
        opened(tmp_path / "out")
    opened(tmp_path / "out").__exit__(None, None, None)


def test_what_is_no_output_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("dear")
    for name, said in (("file", "is a file"), ("folder", "holds files of something else")):
        with pytest.raises(UsageError, match=said):
            opened(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine").read_text() == "dear"
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["mine"]
    opened(tmp_path / "out").__exit__(None, None, None)
    (tmp_path / "out" / "archive.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        opened(tmp_path / "out")


def test_facts_are_kept_for_who_reads_the_tables(tmp_path: Path) -> None:
    opened(tmp_path / "out", notice=NOTICE).__exit__(None, None, None)
    facts = json.loads((tmp_path / "out" / "archive.json").read_text())
    assert facts == {"format": 1, "bundle": "b1", "guard": True, "paths": False, "notice": NOTICE}
