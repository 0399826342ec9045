"""Where workers go, and what becomes of files over which they die; Ray itself is in tests/system/test_archive.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge.archive import cluster
from edge.archive.cluster import Placement, place, score
from edge.archive.scorer import Settings
from edge.archive.sources import ArchiveFile
from edge.errors import MachineError, UsageError

FILES = [ArchiveFile(f"{number:064x}", Path(f"/archive/{number}")) for number in range(40)]
SETTINGS = Settings(Path("/bundle"), "0" * 64, "auto", guard=True, threads=1)
CPU, GPU = {"CPU": 4.0, "memory": 1e9}, {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "backend", "workers", "expected"),
    [
        ([CPU], "auto", None, Placement(4, 1, 0)),
        ([CPU, CPU], "openvino", None, Placement(8, 1, 0)),
        ([CPU], "auto", 3, Placement(3, 1, 0)),
        ([CPU, GPU], "auto", None, Placement(2, 8, 1)),
        ([GPU, {"CPU": 4.0, "GPU": 4.0}], "tensorrt", None, Placement(6, 1, 1)),
        ([GPU], "tensorrt", 1, Placement(1, 8, 1)),
        ([CPU, GPU], "onnxruntime", None, Placement(20, 1, 0)),
    ],
)
def test_one_worker_a_gpu_or_a_core(
    nodes: list[dict[str, float]], backend: str, workers: int | None, expected: Placement
) -> None:
    assert place(nodes, backend, workers) == expected


@pytest.mark.parametrize(("nodes", "workers"), [([CPU], 5), ([GPU], 3), ([{}], None)])
def test_more_workers_than_there_is_room_for_would_wait_for_ever(
    nodes: list[dict[str, float]], workers: int | None
) -> None:
    with pytest.raises(UsageError, match="expected one a worker"):
        place(nodes, "auto", workers)


def run_without(deadly: set[str], calls: list[int]) -> Any:
    """Stands in for Ray: blocks with a deadly file come to nothing."""

    def run(
        files: Sequence[ArchiveFile], block: int, settings: Settings, placement: Placement
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        calls.append(block)
        for start in range(0, len(files), block):
            some = files[start : start + block]
            if not deadly & {file.key for file in some}:
                yield from ((file.key, {"status": "done"}) for file in some)

    return run


def test_a_deadly_file_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    deadly, calls = {FILES[7].key, FILES[20].key}, []  # type: ignore[var-annotated]
    monkeypatch.setattr(cluster, "_run", run_without(deadly, calls))
    found = list(score(FILES, SETTINGS, Placement(1, 1, 0)))
    assert sorted(file.key for file, _ in found) == [file.key for file in FILES], "each once"
    assert {file.key for file, result in found if result is None} == deadly
    assert calls == [5, 1]


def test_an_answer_that_comes_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_without(set(), [])
    monkeypatch.setattr(cluster, "_run", lambda *given: [*run(*given), *run(*given)])
    assert [file for file, _ in score(FILES, SETTINGS, Placement(2, 1, 0))] == FILES


def test_a_bundle_that_no_worker_can_run_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_run", lambda *_: [(FILES[0].key, {"failure": "the self-test failed"})])
    with pytest.raises(MachineError, match="the self-test failed"):
        list(score(FILES, SETTINGS, Placement(1, 1, 0)))
