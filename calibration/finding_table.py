"""Tables of images and their findings, in the form of ChestX-ray14: a CSV with a header, one row an image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from edge.errors import UsageError, describe_os_error


def read_rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str | None]]]:
    """Line number and content of each row. Raises `UsageError` if it cannot be read or lacks one of `columns`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            found = reader.fieldnames or []
    except OSError as error:
        raise UsageError(f"labels cannot be read: {describe_os_error(error)}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV text ({error}): write it with the columns of ChestX-ray14") from None
    for column in columns:
        if column not in found:
            raise UsageError(f"{path} has no column {column!r} but {found}: write it with the columns of ChestX-ray14")
    return rows
