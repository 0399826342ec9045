"""Short forms of ``make soak``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak.kills import may_mount, run_full_disk, run_kills
from benchmarks.soak.load import run_overload


def test_kills_while_images_come_in_every_way_lose_and_double_nothing(
    tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    tally = run_kills(tmp_path, tiny_bundle_directory, images=48, kills=4)
    assert tally.sound, tally
    assert tally.refused == 0


def test_a_disk_that_fills_up_and_is_freed_loses_and_doubles_nothing(
    tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    if not may_mount():
        pytest.skip("mounting a small tmpfs needs root")
    tally = run_full_disk(tmp_path, tiny_bundle_directory, images=32)
    assert tally.sound, tally


def test_overload_is_refused_in_so_many_words_and_takes_no_memory(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    found = run_overload(tmp_path, tiny_bundle_directory, seconds=8, queue=20)
    assert set(found.answers) == {202, 429}, found
    assert found.rss_mb[1] <= 1.05 * found.rss_mb[0], found
