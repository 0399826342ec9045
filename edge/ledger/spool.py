"""The spool: the content of images that are received and not yet done with, one file each, named by its SHA-256."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from edge.errors import MachineError, StorageFullError, describe_os_error

SPOOL = "spool"


class Spool:
    """Files in the folder `spool` of the state directory. Names are made here, never by a sender."""

    def __init__(self, state: Path, reserve: int = 0) -> None:
        """Use ``state/spool``; nothing is written that would leave less than `reserve` bytes free on its disk."""
        self.folder = state / SPOOL
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._reserve = reserve

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def write(self, sha256: str, content: bytes) -> None:
        """Write `content`; once this returns it survives a power cut. Raises `StorageFullError`, `MachineError`."""
        self.check_space(len(content))
        temporary = self.folder / f".{uuid.uuid4().hex}"
        try:
            try:
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path(sha256))
                self._sync_folder()
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
        except OSError as error:
            kind = StorageFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else MachineError
            raise kind(
                f"the spool: {describe_os_error(OSError(error.errno, error.strerror, str(self.folder)))}"
            ) from None

    def check_space(self, size: int = 0) -> None:
        """Raises `StorageFullError` if `size` more bytes would leave less free than the reserve."""
        free = shutil.disk_usage(self.folder).free
        if free < self._reserve + size:
            kept = self._reserve // 1_000_000
            raise StorageFullError(
                f"the spool's disk has {free // 1_000_000} MB free, {kept} MB are kept for results: "
                f"free space at {self.folder}"
            )

    def read(self, sha256: str) -> bytes | None:
        """The content, None if the spool does not hold it."""
        try:
            return self.path(sha256).read_bytes()
        except FileNotFoundError:
            return None

    def holds(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    def sweep(self, wanted: Collection[str]) -> int:
        """Remove what no run needs, such as half-written files of a process that was killed; returns how many."""
        removed = 0
        for path in self.folder.iterdir():
            # Whatever else a person put there is left alone.
            if path.name not in wanted and re.fullmatch(r"[0-9a-f]{64}|\.[0-9a-f]{32}", path.name):
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
