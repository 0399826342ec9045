"""Which files an archive has: a folder as the daemon watches it, or a list as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.archive.sources import archive_files
from edge.errors import UsageError


def names(source: Path) -> list[str]:
    return [file.path.name for file in archive_files(source)]


def test_a_folder_at_any_depth_without_what_is_hidden_or_unfinished(tmp_path: Path) -> None:
    for name in ("b.png", "a.dcm", "deep/er/c.jpg", ".hidden.png", ".git/d.png", "e.png.part", "f.tmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == ["a.dcm", "b.png", "c.jpg"]


def test_a_list_names_files_once_also_missing_ones_and_of_any_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strange = tmp_path / os.fsdecode(b"\xff\xfe.png")
    strange.write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(b"x")
    lines = [b"a.png", os.fsencode(tmp_path / "a.png"), b"", os.fsencode(strange), b"missing.png"]
    (tmp_path / "list").write_bytes(b"\r\n".join(lines))
    found = archive_files(tmp_path / "list")
    assert [file.path for file in found] == [tmp_path / "a.png", strange, tmp_path / "missing.png"]
    assert all(file.path.is_absolute() for file in found), "a worker has another folder"


def test_a_key_is_the_files_and_changes_with_it(tmp_path: Path) -> None:
    one, other = tmp_path / "DOE^JOHN.png", tmp_path / "b.png"
    one.write_bytes(b"x")
    other.write_bytes(b"x")
    first = {file.path: file.key for file in archive_files(tmp_path)}
    assert first == {file.path: file.key for file in archive_files(tmp_path)}
    assert len(set(first.values())) == 2 and "DOE" not in "".join(first.values())
    one.write_bytes(b"xy")
    second = {file.path: file.key for file in archive_files(tmp_path)}
    assert second[one] != first[one] and second[other] == first[other]


def test_what_is_no_source_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with pytest.raises(UsageError, match="is no list of files"):
        archive_files(tmp_path / "image.png")
    with pytest.raises(UsageError, match="neither a folder nor a list"):
        archive_files(tmp_path / "nothing")
