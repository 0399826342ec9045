from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.bundle import Bundle
from edge.sinks import Delivery, SinkError
from edge.sinks.jsonl import JsonlSink


def delivery(bundle: Bundle, id: str, attempt: int = 1, padding: int = 0) -> Delivery:
    result: dict[str, Any] = {"id": id, "status": "done", "padding": "x" * padding}
    return Delivery(result=result, content=None, picture=None, bundle=bundle, attempt=attempt)


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_lines_are_appended_and_a_rotated_file_is_made_anew(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    sink = JsonlSink(path)
    for id in "ab":
        sink.deliver(delivery(tiny_bundle, id))
    path.rename(tmp_path / "old")
    sink.deliver(delivery(tiny_bundle, "c"))
    assert (ids(tmp_path / "old"), ids(path)) == (["a", "b"], ["c"])
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_repeated_attempt_writes_only_what_is_not_there_whole(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    sink = JsonlSink(path)
    sink.deliver(delivery(tiny_bundle, "a"))
    sink.deliver(delivery(tiny_bundle, "a", attempt=2))
    assert ids(path) == ["a"]
    with path.open("a") as file:
        file.write('{"id": "b", "sta')  # the power went
    sink.deliver(delivery(tiny_bundle, "b", attempt=2))
    lines = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in (lines[0], lines[2])] == ["a", "b"]
    assert lines[1] == '{"id": "b", "sta'


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_attempts_on_a_full_disk_leave_no_half_lines(tiny_bundle: Bundle, small_disk: Path) -> None:
    path = small_disk / "results.jsonl"
    sink = JsonlSink(path)
    sink.deliver(delivery(tiny_bundle, "a", padding=40_000))
    before = path.read_bytes()
    for attempt in (1, 2, 3):
        with pytest.raises(SinkError, match="the results file: No space left"):
            sink.deliver(delivery(tiny_bundle, "b", attempt, padding=40_000))
        assert path.read_bytes() == before
    sink.deliver(delivery(tiny_bundle, "b", 4))
    assert ids(path) == ["a", "b"]


def test_a_place_that_is_not_there_is_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="the results file: No such file"):
        JsonlSink(tmp_path / "none" / "results.jsonl").deliver(delivery(tiny_bundle, "a"))
