from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.errors import UsageError
from edge.ledger import file_key
from edge.sources.folder import WatchedFolder
from edge.sources.folder_events import follow

SETTLE = 0.05


def nothing_known(key: str) -> bool:
    return False


@pytest.fixture
def watch(tmp_path: Path) -> Callable[[], WatchedFolder]:
    (tmp_path / "inbox").mkdir()
    return lambda: WatchedFolder(tmp_path / "inbox", nothing_known, settle=SETTLE)


def names(folder: WatchedFolder) -> list[str]:
    return [path.name for path, _ in folder.poll()]


def settled_names(folder: WatchedFolder) -> list[str]:
    first = names(folder)
    time.sleep(1.5 * SETTLE)
    return first + names(folder)


def test_a_complete_file_is_taken_once(watch: Callable[[], WatchedFolder]) -> None:
    folder = watch()
    (folder.folder / "a.png").write_bytes(b"a")
    (folder.folder / "sub").mkdir()
    (folder.folder / "sub" / "b.dcm").write_bytes(b"b")
    assert names(folder) == []  # one look cannot tell
    assert folder.waiting == 2
    time.sleep(1.5 * SETTLE)
    assert names(folder) == ["a.png", "b.dcm"]
    assert folder.waiting == 0
    assert settled_names(folder) == []


def test_a_file_that_grows_is_left_until_it_stops(watch: Callable[[], WatchedFolder]) -> None:
    folder = watch()
    path = folder.folder / "a.png"
    for _ in range(4):
        with path.open("ab") as file:
            file.write(b"piece")
        assert names(folder) == []
        time.sleep(1.5 * SETTLE)
    with path.open("ab") as file:
        file.write(b"last")
    assert settled_names(folder) == ["a.png"]


def test_a_file_that_somebody_holds_open_for_writing_is_left(watch: Callable[[], WatchedFolder]) -> None:
    folder = watch()
    with (folder.folder / "a.png").open("wb") as file:
        file.write(b"half of it")
        file.flush()
        assert settled_names(folder) == []
        assert folder.waiting == 1
    assert names(folder) == ["a.png"]


def test_a_file_renamed_into_the_folder_is_taken(watch: Callable[[], WatchedFolder], tmp_path: Path) -> None:
    folder = watch()
    (tmp_path / "made elsewhere").write_bytes(b"a")
    (tmp_path / "made elsewhere").rename(folder.folder / "a.png")
    assert settled_names(folder) == ["a.png"]


@pytest.mark.parametrize("name", [".hidden.png", "a.png.part", "a.tmp", "a.dcm.PARTIAL", ".rsync/a.png"])
def test_hidden_and_half_transferred_files_are_left_alone(watch: Callable[[], WatchedFolder], name: str) -> None:
    folder = watch()
    path = folder.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a")
    assert settled_names(folder) == []
    assert folder.waiting == 0
    path.rename(folder.folder / "a.png")
    assert settled_names(folder) == ["a.png"]


def test_new_content_under_the_same_name_is_taken_again(watch: Callable[[], WatchedFolder]) -> None:
    folder = watch()
    (folder.folder / "a.png").write_bytes(b"a")
    assert settled_names(folder) == ["a.png"]
    (folder.folder / "a.png").write_bytes(b"other")
    assert settled_names(folder) == ["a.png"]


def test_what_the_ledger_knows_is_not_taken_after_a_restart(watch: Callable[[], WatchedFolder]) -> None:
    folder = watch()
    (folder.folder / "a.png").write_bytes(b"a")
    assert settled_names(folder) == ["a.png"]
    (folder.folder / "b.png").write_bytes(b"b")
    known = file_key(folder.folder / "a.png", (folder.folder / "a.png").stat())
    restarted = WatchedFolder(folder.folder, known.__eq__, settle=SETTLE)
    assert settled_names(restarted) == ["b.png"]


def test_what_vanishes_is_forgotten(watch: Callable[[], WatchedFolder]) -> None:
    folder = watch()
    for number in range(5):
        path = folder.folder / f"{number}.png"
        path.write_bytes(b"a")
        settled_names(folder)
        path.unlink()
    names(folder)
    assert not folder._taken
    assert not folder._candidates


def test_what_could_not_be_looked_at_is_not_said_to_be_gone(watch: Callable[[], WatchedFolder]) -> None:
    folder = watch()
    assert folder.present is None  # not looked yet
    for path in (folder.folder / "a.png", folder.folder / "sub" / "b.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a")
    settled_names(folder)
    assert folder.present is not None
    assert len(folder.present) == 2
    listed = os.scandir

    def closed(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, "closed", path)
        return listed(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", closed)
        names(folder)
        assert folder.present is None
    names(folder)
    assert folder.present is not None


def test_what_is_put_back_waits(watch: Callable[[], WatchedFolder]) -> None:
    folder = watch()
    (folder.folder / "a.png").write_bytes(b"a")
    names(folder)
    time.sleep(1.5 * SETTLE)
    for _ in range(2):
        path, key = next(looks := folder.poll())
        folder.put_back(key)
        looks.close()  # type: ignore[attr-defined]
        assert (path.name, folder.waiting) == ("a.png", 1)
    assert names(folder) == ["a.png"]
    assert folder.waiting == 0


def test_links_to_files_are_followed_and_dead_ones_and_pipes_are_not_files(
    watch: Callable[[], WatchedFolder], tmp_path: Path
) -> None:
    folder = watch()
    (tmp_path / "real.png").write_bytes(b"a")
    (folder.folder / "link.png").symlink_to(tmp_path / "real.png")
    (folder.folder / "dead.png").symlink_to(tmp_path / "nothing")
    (folder.folder / "loop").symlink_to(folder.folder)
    os.mkfifo(folder.folder / "pipe.png")
    assert settled_names(folder) == ["link.png"]


def test_a_folder_that_is_none_is_refused_and_one_that_goes_is_told(
    watch: Callable[[], WatchedFolder], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is not a folder: make it"):
        WatchedFolder(tmp_path / "nowhere", nothing_known)
    folder = watch()
    folder.folder.rmdir()
    with pytest.raises(FileNotFoundError):
        names(folder)


def test_asking_who_writes_never_ends_the_process(tmp_path: Path) -> None:
    """Whoever opens for writing what we hold a lease on, has the kernel send us a signal: it must be a harmless one."""
    path = tmp_path / "a"
    path.write_bytes(b"a")
    writes = (  # bounded, in case the test is killed
        "import os, sys, time\nend = time.monotonic() + 30\n"
        "while time.monotonic() < end: os.close(os.open(sys.argv[1], os.O_WRONLY))"
    )
    asks = (
        "import sys, time; from pathlib import Path; from edge.sources.folder import open_for_writing\n"
        "end = time.monotonic() + 1\nwhile time.monotonic() < end: open_for_writing(Path(sys.argv[1]))"
    )
    writer = subprocess.Popen([sys.executable, "-c", writes, path])
    try:
        assert subprocess.run([sys.executable, "-c", asks, path], timeout=60).returncode == 0
    finally:
        writer.kill()
        writer.wait()


def test_a_file_that_was_renamed_into_place_need_not_settle(watch: Callable[[], WatchedFolder]) -> None:
    """inotify tells of the rename, and so a file that was written under another name is taken at the next look."""
    folder, woken = watch(), threading.Event()
    stop = follow([folder], woken.set)
    try:
        part = folder.folder / "a.part"
        part.write_bytes(b"a")
        assert woken.wait(30)  # it was closed
        assert names(folder) == []
        woken.clear()
        part.rename(folder.folder / "a.png")
        assert woken.wait(30)
        assert names(folder) == ["a.png"]
        assert settled_names(folder) == []
    finally:
        stop()
