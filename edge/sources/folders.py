"""The watched folders of a daemon: what is complete in them is handed over, and what cannot be read is refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edge.errors import BusyError, InputRefusedError, StorageFullError, describe_os_error
from edge.pipeline import read_file
from edge.sources.folder import WatchedFolder
from edge.sources.folder_events import follow

log = logging.getLogger(__name__)

REST_SECONDS_AT_MOST = 10.0


class Folders:
    """Looked through by the main loop. A folder that cannot be listed, such as a share that is away, is waited for."""

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        knows: Callable[[str], bool],
        receive: Callable[[bytes, Path, str], object],
        refuse: Callable[[Path, str, str], None],
        max_bytes: Callable[[], int],
        strict: bool,
    ) -> None:
        """`knows` a file's `edge.ledger.file_key`; `receive` gets content, path and key; `refuse` path, key and reason.

        A `strict` one raises what it would otherwise wait out: `StorageFullError`, and `OSError` of a folder.
        """
        self.watched = [WatchedFolder(folder, knows) for folder in folders]
        self._receive = receive
        self._refuse = refuse
        self._max_bytes = max_bytes
        self._strict = strict
        self._away: set[Path] = set()

    def follow(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when it is time to look; returns what ends that."""
        return follow(self.watched, wake) if self.watched else lambda: None

    @property
    def waiting(self) -> bool:
        """Whether the last look found what could not be taken yet."""
        return any(folder.waiting for folder in self.watched)

    @property
    def present(self) -> set[str] | None:
        """Keys of the files that the last look found; None if it cannot be trusted to have found all."""
        present = [folder.present for folder in self.watched]
        # A folder without a file may be a share that is not mounted.
        return set().union(*(keys for keys in present if keys)) if all(present) else None

    def take(self, stopping: Callable[[], bool]) -> float:
        """Hand over what is complete; returns how many seconds must pass until the next look.

        A folder of very many files takes long to look through: no more than a fifth of the time goes into that.
        """
        start = time.monotonic()
        for folder in self.watched:
            try:
                self._take_from(folder, stopping)
            except OSError as error:
                if self._strict:
                    raise
                if folder.folder not in self._away:
                    log.error("%s: its files wait until it can be listed again", describe_os_error(error))
                self._away.add(folder.folder)
            else:
                if folder.folder in self._away:
                    log.info("%s can be listed again", folder.folder)
                self._away.discard(folder.folder)
        return min(4 * (time.monotonic() - start), REST_SECONDS_AT_MOST)

    def _take_from(self, folder: WatchedFolder, stopping: Callable[[], bool]) -> None:
        for path, key in folder.poll():
            if stopping():
                return
            try:
                self._take_file(path, key)
            except (BusyError, StorageFullError) as error:
                if isinstance(error, StorageFullError) and self._strict:
                    raise
                folder.put_back(key)
                log.debug("the folder waits: %s", error)
                return

    def _take_file(self, path: Path, key: str) -> None:
        try:
            self._receive(read_file(path, self._max_bytes()), path, key)
        except InputRefusedError as error:
            if path.exists():  # else it was taken away again, and there is nothing to report
                self._refuse(path, key, str(error))
