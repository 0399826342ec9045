"""Results as lines of JSON, appended to a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from edge.errors import describe_os_error
from edge.sinks import Delivery, SinkError

TAIL_BYTES = 1 << 24
"""How far back a line is looked for that an earlier, interrupted attempt may have written."""


class JsonlSink:
    """Appends each result as one line, on the disk before it counts as delivered.

    An attempt that was interrupted may have written its line: that one is not written again.

    The file is opened for each line, so that it may be rotated away at any time.
    """

    name = "jsonl"

    def __init__(self, path: Path) -> None:
        self._path = path

    def deliver(self, delivery: Delivery) -> None:
        """Append the result. Raises `SinkError` if the file cannot be written."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - (TAIL_BYTES if delivery.attempt > 1 else 1)))
                tail = file.read()
                if delivery.attempt > 1 and _has_line(tail, delivery.result["id"].encode()):
                    return
                start = b"\n" if tail and not tail.endswith(b"\n") else b""  # half a line, of before a power cut
                rest = start + json.dumps(delivery.result).encode() + b"\n"
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError:
                    file.truncate(size)  # no half line for each attempt on a full disk
                    raise
                os.fsync(descriptor)
        except OSError as error:
            raise SinkError(f"the results file: {describe_os_error(error)}") from None

    def close(self) -> None:
        """Nothing is held open."""


def _has_line(tail: bytes, id: bytes) -> bool:
    """Whether a whole line of `tail` is the result with this `id`."""
    return any(id in line for line in tail.splitlines(keepends=True) if line.endswith(b"\n"))
