"""CSV files and lists as data sets come with them: read whole, and refused with file and row."""

from __future__ import annotations

import csv
import gzip
import zlib
from pathlib import Path
from typing import TextIO

from edge.errors import UsageError, describe_os_error


def read_rows(path: Path) -> list[list[str]]:
    """All rows of a CSV file, header first; gzip-compressed if its name ends in `.gz`. Row i of the list is line i + 1.

    Raises `UsageError` if the file cannot be read, is no text, has no row, or an empty or broken line before its end.
    """
    try:
        with _open(path) as file:
            rows = list(csv.reader(file, strict=True))
    except gzip.BadGzipFile as error:
        raise UsageError(f"{path} is no gzip file ({error}): unpack it, or get it again") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {describe_os_error(error)}") from None
    except (EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is damaged or no CSV text ({error}): get it again") from None
    while rows and not rows[-1]:
        rows.pop()
    if not rows:
        raise UsageError(f"{path} is empty: get it again")
    if [] in rows:
        raise UsageError(f"{path}, row {rows.index([]) + 1}: the line is empty: get the file again")
    return rows


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
    return path.open(newline="", encoding="utf-8-sig")


def read_list(path: Path) -> list[str]:
    """The lines of a text file without the white space around them, empty lines at its end left out.

    Raises `UsageError` if the file cannot be read or is no text.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {describe_os_error(error)}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text ({error}): get it again") from None
    while lines and not lines[-1]:
        lines.pop()
    return lines
