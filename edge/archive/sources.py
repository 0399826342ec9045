"""The files of an archive: all below a folder, or those that a list names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge.errors import UsageError, describe_os_error
from edge.ledger.runs import file_key
from edge.sources.folder import files_below


class ArchiveFile(NamedTuple):
    """One file to score."""

    key: str
    """A digest by which the unchanged file is recognised in a later run; the path does not show in it."""
    path: Path
    """Absolute."""


def archive_files(source: Path) -> list[ArchiveFile]:
    """The files below the folder `source`, or those named in the list `source`, a line each; every file once.

    As in a watched folder, hidden files and half-transferred ones are left alone. What a list names is taken as it is:
    a file that is missing will be refused, with that reason. A folder that cannot be listed stands for its files.

    Raises `UsageError` for a source that is neither, `OSError` for one that cannot be read.
    """
    if source.is_dir():
        found = _below(source)
    elif source.is_file():
        found = _named(source)
    else:
        raise UsageError(f"--source {source} is neither a folder nor a list of files: check the path")
    return list({file.key: file for file in found}.values())


def _below(folder: Path) -> Iterator[ArchiveFile]:
    closed: list[Path] = []

    def not_listed(error: OSError) -> None:
        if error.filename is None or Path(error.filename) == folder:
            raise UsageError(f"--source cannot be listed: {describe_os_error(error)}")
        closed.append(Path(error.filename))

    for path, status in files_below(folder.absolute(), not_listed):
        yield ArchiveFile(file_key(path, status), path)
    for path in closed:
        yield _file(path)


def _named(names: Path) -> Iterator[ArchiveFile]:
    content = names.read_bytes()
    if b"\0" in content:
        raise UsageError(f"--source {names} is no list of files (it holds bytes of zero): name a folder, or a list")
    for line in content.splitlines():
        if line:
            yield _file(Path(os.fsdecode(line)).absolute())


def _file(path: Path) -> ArchiveFile:
    try:
        return ArchiveFile(file_key(path, path.stat()), path)
    except OSError:
        return ArchiveFile(hashlib.sha256(os.fsencode(path)).hexdigest(), path)
