"""A bounded queue between two stages, which either side can end."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class AbortedError(Exception):
    """The stages were told to stop at once: what is in the queue will not be worked on."""


class Channel(Generic[T]):
    """A bounded queue. `close` lets its readers empty it and then end; `abort` wakes everyone with `AbortedError`.

    `queue.Queue` has neither before Python 3.13, and cannot hand out all that is waiting in one step.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._aborted = False

    def put(self, item: T) -> None:
        """Append `item`, waiting while the channel is full. Raises `AbortedError`."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or len(self._items) < self._size)
            if self._aborted:
                raise AbortedError
            self._items.append(item)
            self._changed.notify_all()

    def take(self, limit: int = 1) -> list[T]:
        """Up to `limit` waiting items, at least one; none once closed and empty. Raises `AbortedError`."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._closed or bool(self._items))
            if self._aborted:
                raise AbortedError
            taken = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Nothing more will be put."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """End both sides at once and drop what is waiting."""
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._changed.notify_all()
