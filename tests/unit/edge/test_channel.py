from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from edge.channel import AbortedError, Channel


def test_items_come_out_in_order_and_as_many_as_wait() -> None:
    channel: Channel[int] = Channel(8)
    for number in range(5):
        channel.put(number)
    assert channel.take() == [0]
    assert channel.take(3) == [1, 2, 3]
    assert channel.take(3) == [4]


def test_a_closed_channel_is_emptied_and_then_ends() -> None:
    channel: Channel[int] = Channel(8)
    channel.put(1)
    channel.close()
    assert channel.take(4) == [1]
    assert channel.take(4) == []


def test_an_aborted_channel_drops_what_waits_and_stops_both_sides() -> None:
    channel: Channel[int] = Channel(8)
    channel.put(1)
    channel.abort()
    with pytest.raises(AbortedError):
        channel.take()
    with pytest.raises(AbortedError):
        channel.put(2)


@pytest.mark.parametrize(
    ("wait", "end"),
    [
        (lambda c: c.take(), lambda c: c.abort()),
        (lambda c: c.take(), lambda c: c.close()),
        (lambda c: (c.put(1), c.put(2)), lambda c: c.abort()),
        (lambda c: (c.put(1), c.put(2)), lambda c: c.take()),
    ],
)
def test_whoever_waits_is_woken(wait: Callable[[Channel[int]], object], end: Callable[[Channel[int]], object]) -> None:
    channel: Channel[int] = Channel(1)

    def waits() -> None:
        with suppress(AbortedError):
            wait(channel)

    thread = threading.Thread(target=waits, daemon=True)
    thread.start()
    end(channel)
    thread.join(10)
    assert not thread.is_alive()


def test_a_full_channel_takes_no_more_until_something_is_taken() -> None:
    channel: Channel[int] = Channel(2)
    put: list[int] = []

    def write() -> None:
        for number in range(3):
            channel.put(number)
            put.append(number)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(0.2)
    assert put == [0, 1]
    assert channel.take() == [0]
    thread.join(10)
    assert put == [0, 1, 2]


def test_many_threads_lose_and_double_nothing() -> None:
    channel: Channel[int] = Channel(3)
    writers, each = 4, 500

    def write(first: int) -> None:
        for number in range(first, first + each):
            channel.put(number)

    def read() -> list[int]:
        found = []
        while taken := channel.take(2):
            found += taken
        return found

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for writer in [pool.submit(write, index * each) for index in range(writers)]:
            writer.result(30)
        channel.close()
        found = [number for reader in readers for number in reader.result(30)]
    assert sorted(found) == list(range(writers * each))
