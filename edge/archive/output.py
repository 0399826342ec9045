"""The output of an archive run: two Parquet tables, each a folder of parts that are written once and never changed.

    scores/   one row a content, keyed by its SHA-256: what `edge-infer classify --json` says, without timings
    files/    one row a file: its key, its content's SHA-256 or the reason why it could not be read
    archive.json   which bundle and options all of it is of

A part appears whole, by one rename, scores before files. So a run that is killed leaves at worst scores without their
files: those files are read again, and their rows of scores, which are there, are not written twice.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from edge.archive.sources import ArchiveFile
from edge.errors import MachineError, UsageError

SCORES, FILES, FACTS, LOCK = "scores", "files", "archive.json", ".lock"
FORMAT = 1

_GUARD = pa.struct({"score": pa.float64(), "threshold": pa.float64(), "refused": pa.bool_(), "off": pa.bool_()}.items())
_ENTRY = pa.struct({"probability": pa.float64(), "positive": pa.bool_()}.items())
_TEXT = ("bundle", "gate", "backend", "time")


def scores_schema(labels: Sequence[str], notice: str) -> pa.Schema:
    """The columns of ``scores``; `notice` is what every reader of them must be told."""
    columns = {
        **{name: pa.string() for name in ("sha256", "status", "reason")},
        "findings": pa.struct([(label, _ENTRY) for label in labels]),
        "guard": _GUARD,
        **{name: pa.string() for name in _TEXT},
    }
    return pa.schema(columns.items(), metadata={"notice": notice})


class Output:
    """An output folder, held by one process at a time; as a context manager it writes what is left, and lets go."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], schema: pa.Schema) -> None:
        """Open `folder`, or make it. `facts` are what all rows have in common (``paths``: whether files are named).

        Raises `UsageError` if it holds anything else, or rows of other facts, or if another process writes there;
        `MachineError` for a part that cannot be read.
        """
        self._folder = folder
        self._schemas = {SCORES: schema, FILES: _files_schema(bool(facts["paths"]))}
        self._rows: dict[str, list[dict[str, Any]]] = {SCORES: [], FILES: []}
        _check_folder(folder)
        for table in self._schemas:
            (folder / table).mkdir(parents=True, exist_ok=True)
        self._lock = (folder / LOCK).open("w")
        try:
            self._open(dict(facts))
        except BaseException:
            self._lock.close()
            raise

    def _open(self, facts: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run writes into {self._folder}: wait for its end, or stop it") from None
        _check_facts(self._folder, {"format": FORMAT, **facts})
        for unfinished in self._folder.glob("*/.*"):
            unfinished.unlink()
        self._next = 1 + max(
            (int(part.stem.split("-")[1]) for part in self._folder.glob("*/part-*.parquet")), default=0
        )
        self._contents = {bytes.fromhex(sha256) for (sha256,) in self._read(SCORES, "sha256")}
        self._files = {
            bytes.fromhex(key): None if sha256 is None else bytes.fromhex(sha256)
            for key, sha256 in self._read(FILES, "file", "sha256")
        }

    def _read(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        for part in sorted((self._folder / table).glob("part-*.parquet")):
            try:
                read = parquet.read_table(part, columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                raise MachineError(
                    f"{part} cannot be read ({type(error).__name__}): check the disk; without it its images are scored "
                    "again"
                ) from None
            rows += zip(*(read[column].to_pylist() for column in columns))
        return rows

    @property
    def contents(self) -> int:
        """How many contents have a row."""
        return len(self._contents)

    def has(self, file: ArchiveFile) -> bool:
        """Whether the unchanged file's content has its row. One that could not be read has none, and is tried again."""
        return self._files.get(bytes.fromhex(file.key)) in self._contents

    def add(self, file: ArchiveFile, result: Mapping[str, Any]) -> bool:
        """Keep the `result` of a `file` for the next part; whether its content is new to this output."""
        content = None if result["sha256"] is None else bytes.fromhex(result["sha256"])
        new = content is not None and content not in self._contents
        if new:
            assert content is not None
            self._contents.add(content)
            self._rows[SCORES].append({name: result[name] for name in self._schemas[SCORES].names})
        key = bytes.fromhex(file.key)
        if key not in self._files or self._files[key] != content:
            self._files[key] = content
            reason = result["reason"] if content is None else None
            self._rows[FILES].append(
                {"file": file.key, "sha256": result["sha256"], "reason": reason, "path": _readable(file.path)}
            )
        return new

    def write(self) -> None:
        """Write what was kept as the next parts. Raises `OSError`."""
        for table, rows in self._rows.items():
            if rows:
                part = f"part-{self._next:06d}.parquet"
                _write(self._folder / table / part, pa.Table.from_pylist(rows, self._schemas[table]))
        if any(self._rows.values()):
            self._next += 1
        self._rows = {SCORES: [], FILES: []}

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, OSError):
                self.write()
        finally:
            self._lock.close()


def _files_schema(paths: bool) -> pa.Schema:
    names = ("file", "sha256", "reason", *(("path",) if paths else ()))
    return pa.schema([(name, pa.string()) for name in names])


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file, expected a folder to make, or one of an earlier run")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).is_file():
        raise UsageError(f"--output {folder} holds files of something else: choose another place, or empty it yourself")


def _check_facts(folder: Path, facts: dict[str, Any]) -> None:
    path = folder / FACTS
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        temporary = folder / f".{FACTS}"
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
        temporary.rename(path)
        return
    except ValueError:
        raise UsageError(f"{path} is not JSON: restore it, or choose another --output") from None
    differing = sorted(name for name in facts if not isinstance(found, dict) or found.get(name) != facts[name])
    if differing:
        raise UsageError(
            f"{folder} was begun with another {', '.join(differing)}, and one output is of one kind: choose another "
            "--output, or the options of the first run"
        )


def _write(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        parquet.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _readable(path: Path) -> str:
    """A path as text: names may be of any bytes, Parquet's strings may not."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
