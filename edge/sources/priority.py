"""Who goes first when the processor is short: the images that were taken, before those that are still coming."""

from __future__ import annotations

import logging
import os
import threading

log = logging.getLogger(__name__)

NICE = 8
"""About a sixth of the time of a thread that has not stepped back, where both want all of it (sched(7))."""


def step_back() -> None:
    """Let other threads go before this one, and before those that it will start.

    Without it, senders that are turned away and come again at once would take the processor from inference. Linux has a
    nice value for each thread, which new ones inherit from the thread that starts them.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    except OSError as error:  # a sandbox may forbid it
        log.info("the thread %s keeps its priority: %s", threading.current_thread().name, error.strerror)
