"""Writes a bundle so that it is never half there: everything into a temporary directory, then one rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge.bundle import FORMAT, MANIFEST, sha256_of
from edge.errors import UsageError
from edge.signature import require_unsigned


@contextmanager
def bundle_directory(output: Path) -> Iterator[Path]:
    """A temporary directory beside `output` to write the bundle's files into; removed again when the block fails.

    When the block ends, the directory takes the place of `output`. A bundle that stood there is removed only then.

    Raises:
        UsageError: something other than a bundle, or an empty directory, stands at `output`.
        OSError: the place cannot be written.
    """
    check_replaceable(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        yield temporary
        publish(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, output: Path) -> None:
    """Have the finished bundle in `temporary` take the place of `output`, which must be beside it. Raises `OSError`."""
    temporary.chmod(0o755)  # mkdtemp makes it private; a bundle is read by the daemon's own user
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    _replace(temporary, output)
    _sync(output.parent)


def failed_place(output: Path) -> Path:
    """Where a bundle that failed its gate is kept: beside the `output` that it was built for."""
    return output.with_name(f"{output.name}.failed")


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: `facts`, the format, the time, and every file in `directory` with its hash and size.

    Raises `BundleError` if the bundle is signed.
    """
    require_unsigned(directory)
    files = {
        file.name: {"sha256": sha256_of(file), "size": file.stat().st_size}
        for file in sorted(directory.iterdir())
        if file.name != MANIFEST
    }
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    manifest = {"format": FORMAT, "created": created, **facts, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def check_replaceable(output: Path) -> None:
    """Raises `UsageError` if something other than a bundle, or an empty directory, stands at `output`."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"{output} is a file, expected a directory to make or a bundle to replace")
    if any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise UsageError(f"{output} holds files but no bundle: choose another place, or empty it yourself")


def _replace(temporary: Path, output: Path) -> None:
    if not output.exists():
        temporary.rename(output)
        return
    # rename cannot replace a directory that has files in it, so the old bundle steps aside first.
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
    output.rename(aside / "bundle")
    try:
        temporary.rename(output)
    except OSError:
        (aside / "bundle").rename(output)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold `path` before the rename is seen: a power cut must not leave a bundle of empty files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
