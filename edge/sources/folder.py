"""A watched folder: finds the image files in it that are complete.

It is polled. inotify (`edge.sources.folder_events`) only makes the poll come sooner.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.errors import UsageError
from edge.ledger.runs import file_key

SETTLE_SECONDS = 1.0
"""How long a file must not change before it is taken."""

UNFINISHED_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload", ".filepart")


class WatchedFolder:
    """Finds complete files below a folder, at any depth; hidden and half-transferred ones are left alone.

    A file is complete when two looks, `SETTLE_SECONDS` or more apart, find the same size and times and no process
    here holds it open for writing. Renaming a finished file into the folder is the surest way to hand one over.
    """

    def __init__(self, folder: Path, knows: Callable[[str], bool], settle: float = SETTLE_SECONDS) -> None:
        """Watch `folder`; a file whose `file_key` is known (`knows`) was taken earlier. Raises `UsageError`."""
        if not folder.is_dir():
            raise UsageError(f"--watch {folder} is not a folder: make it, or check the path")
        self.folder = folder.resolve()
        self.waiting = 0
        """Files that the last poll found incomplete."""
        self._knows = knows
        self._settle = settle
        self._whole = False
        self._taken: set[str] = set()
        self._complete: set[Path] = set()
        self._candidates: dict[str, float] = {}

    def poll(self) -> Iterator[tuple[Path, str]]:
        """Look once; yields each complete file that was not taken before, with its `file_key`. Raises `OSError`."""
        taken, candidates = set(), {}
        self.waiting = 0
        self._whole = True
        for path, status in files_below(self.folder, self._not_listed):
            key = file_key(path, status)
            if key in self._taken or (key not in self._candidates and self._knows(key)):
                taken.add(key)
                continue
            now = time.monotonic()
            since = -math.inf if path in self._complete else self._candidates.get(key, now)
            if now - since >= self._settle and not open_for_writing(path):
                self._taken.add(key)
                taken.add(key)
                yield path, key
            else:
                candidates[key] = since
                self.waiting += 1
        self._taken, self._candidates = taken, candidates  # forget what is gone
        self._complete.clear()

    def complete(self, path: Path) -> None:
        """The file was renamed to `path` by one who had written it: the next poll need not see whether it grows."""
        self._complete.add(path)

    def put_back(self, key: str) -> None:
        """Offer a file again at the next poll: it could not be taken now."""
        self._taken.discard(key)
        self.waiting += 1

    @property
    def present(self) -> set[str] | None:
        """Keys of the files that the last poll found; None if it could not look everywhere."""
        return self._taken | self._candidates.keys() if self._whole else None

    def _not_listed(self, error: OSError) -> None:
        # A subfolder may vanish or be closed to us; without the watched folder itself there is nothing to do.
        if error.filename is not None and Path(error.filename) == self.folder:
            raise error
        self._whole = False


def files_below(folder: Path, not_listed: Callable[[OSError], None]) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files below `folder`, in the order of their names, with their status; hidden and unfinished ones not.

    `not_listed` gets the error of each folder that cannot be listed.
    """
    for parent, folders, names in os.walk(folder, onerror=not_listed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() in UNFINISHED_SUFFIXES:
                continue
            try:
                status = path.stat()
            except OSError:
                continue  # gone since it was listed, or a link to nothing
            if stat.S_ISREG(status.st_mode):
                yield path, status


def open_for_writing(path: Path) -> bool:
    """Whether some process on this machine holds the file open for writing.

    Linux grants a read lease only on a file that nobody writes to (fcntl(2), F_SETLEASE). Where it cannot say (network
    file systems, files of another user, no read permission), the answer is False, and `SETTLE_SECONDS` must do.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # A writer that comes just now is told to us by a signal; SIGIO, the default, would end the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        return False
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)  # gives the lease back
