from __future__ import annotations

import errno
import logging
import os
import threading

import pytest

from edge.sources.priority import NICE, step_back


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_steps_back_and_takes_its_own_threads_along() -> None:
    found: list[int] = []

    def work() -> None:
        step_back()
        found.append(nice())
        child = threading.Thread(target=lambda: found.append(nice()))
        child.start()
        child.join()

    before = nice()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [NICE, NICE]
    assert nice() == before


def test_where_it_is_forbidden_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(which: int, who: int, priority: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", forbidden)
    with caplog.at_level(logging.INFO):
        step_back()
    assert "keeps its priority: Operation not permitted" in caplog.text
