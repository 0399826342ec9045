"""What inotify tells of a watched folder: that it is time to look, and which files were renamed into their place.

It only makes the poll come sooner. inotify sees nothing that another machine writes to a network share, where most
image folders live, and loses events when its queue overflows: whatever it misses, the poll finds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from edge.sources.folder import WatchedFolder

log = logging.getLogger(__name__)


def follow(folders: list[WatchedFolder], wake: Callable[[], None]) -> Callable[[], None]:
    """Call `wake` when something happens in one of `folders`; returns what ends that.

    Where the system has no inotify, or no watch left, the poll goes on alone, and the log says so.
    """
    from watchdog.events import FileClosedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    class Handler(FileSystemEventHandler):
        def __init__(self, folder: WatchedFolder) -> None:
            self._folder = folder

        def on_closed(self, event: FileSystemEvent) -> None:
            wake()

        def on_moved(self, event: FileSystemEvent) -> None:
            if not event.is_directory:
                self._folder.complete(Path(os.fsdecode(event.dest_path)))
            wake()

    observer = Observer()
    observer.daemon = True
    for folder in folders:
        observer.schedule(
            Handler(folder), str(folder.folder), recursive=True, event_filter=[FileClosedEvent, FileMovedEvent]
        )
    try:
        observer.start()
    except OSError as error:
        log.warning("folders are polled only: inotify is not to be had (%s): raise fs.inotify.*", error.strerror)
        return lambda: None

    def stop() -> None:
        observer.stop()
        observer.join()

    return stop
