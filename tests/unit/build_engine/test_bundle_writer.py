"""A bundle is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from build_engine.bundle_writer import bundle_directory, write_manifest
from edge.errors import BundleError, UsageError
from edge.signature import SIGNATURE


def write(output: Path, content: bytes) -> None:
    with bundle_directory(output) as directory:
        (directory / "a").write_bytes(content)
        write_manifest(directory, {"name": "n"})


def test_manifest_names_every_file_with_hash_and_size(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "bundle", b"content")
    manifest = json.loads((tmp_path / "deep" / "bundle" / "manifest.json").read_text())
    assert manifest["files"] == {"a": {"sha256": hashlib.sha256(b"content").hexdigest(), "size": 7}}
    assert (manifest["format"], manifest["name"]) == (1, "n")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bundle"]


def test_a_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "bundle", b"old")
    (tmp_path / "bundle" / "left-over").touch()
    write(tmp_path / "bundle", b"new")
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["a", "manifest.json"]
    assert (tmp_path / "bundle" / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failure_leaves_the_old_bundle_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "bundle", b"old")
    with pytest.raises(RuntimeError, match="builder"), bundle_directory(tmp_path / "bundle") as directory:
        (directory / "a").write_bytes(b"half")
        raise RuntimeError("the builder failed")
    assert (tmp_path / "bundle" / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"dear")
    with pytest.raises(UsageError, match="holds files but no bundle"):
        write(tmp_path / "photos", b"new")
    with pytest.raises(UsageError, match="is a file"):
        write(tmp_path / "photos" / "mine.jpg", b"new")
    assert (tmp_path / "photos" / "mine.jpg").read_bytes() == b"dear"


def test_a_signed_manifest_is_not_written_again(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"name": "n"})
    before = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / SIGNATURE).write_bytes(b"signature")
    with pytest.raises(BundleError, match=f"is signed, so its manifest is not written again: remove {SIGNATURE}"):
        write_manifest(tmp_path, {"name": "other"})
    assert (tmp_path / "manifest.json").read_bytes() == before
