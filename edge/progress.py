"""Shows how far long work is: a bar that redraws itself on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_BAR = 24
_LINE_SECONDS = 5.0


class ProgressLine:
    """Call it with (phase, steps done, steps in all); use as a context manager so that the bar is wiped at the end."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = stream if stream is not None else sys.stderr
        self._bar = self._stream.isatty()
        self._due = 0.0

    def __call__(self, phase: str, done: int, steps: int) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (0.1 if self._bar else _LINE_SECONDS)
        if self._bar:
            full = _BAR * done // max(steps, 1)
            bar = "#" * full + "." * (_BAR - full)
            self._stream.write(f"\r\x1b[K{self._title} [{bar}] {phase[:48]}")
        else:
            self._stream.write(f"{self._title}: {phase} {done}/{steps}\n")
        self._stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
