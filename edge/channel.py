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
        self._urgent: deque[T] = deque()
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._aborted = False

    def __len__(self) -> int:
        return len(self._urgent) + len(self._items)

    def put(self, item: T, *, urgent: bool = False, timeout: float | None = None) -> bool:
        """Append `item`, or put it before all that are not `urgent`; waits while the channel is full.

        False if it was still full after `timeout` seconds, or is closed. Raises `AbortedError`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._closed or len(self) < self._size, timeout)
            if self._aborted:
                raise AbortedError
            if self._closed or len(self) >= self._size:
                return False
            (self._urgent if urgent else self._items).append(item)
            self._changed.notify_all()
            return True

    def take(self, limit: int = 1, patience: float = 0.0) -> list[T]:
        """Up to `limit` waiting items, at least one; none once closed and empty. Raises `AbortedError`.

        Waits up to `patience` seconds for a first item's company, but never where something urgent waits.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._closed or len(self) > 0)
            if patience > 0:
                self._changed.wait_for(
                    lambda: self._aborted or self._closed or bool(self._urgent) or len(self) >= limit, patience
                )
            if self._aborted:
                raise AbortedError
            taken = [(self._urgent or self._items).popleft() for _ in range(min(limit, len(self)))]
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
            self._urgent.clear()
            self._items.clear()
            self._changed.notify_all()
