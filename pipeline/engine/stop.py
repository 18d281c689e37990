"""The wish to stop early, from a signal or a deadline, as every part of a run sees it."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OVERDUE_GLANCE_S = 0.25
"""how often what holds up an overdue stop is cut off: the next statement may wait for the same lock"""


class Stop:
    """Asked once, seen by all threads. `overdue` tells when draining has taken long enough."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._asked_at = 0.0
        self.reason: str | None = None
        """who asked first: the name of a signal, or max_runtime"""
        self.is_draining = False
        """somebody looks at this now and will end in order; else the asker has to interrupt"""
        self.left_behind = False
        """a thread is inside the model yet, and what it comes to is thrown away: the process must not wait for it"""

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Mark the part of a run that ends in order when asked."""
        self.is_draining = True
        try:
            yield
        finally:
            self.is_draining = False

    def ask(self, reason: str) -> None:
        """Stop soon; safe to call in a signal handler and more than once."""
        if not self._event.is_set():
            self._asked_at = time.monotonic()
            self.reason = reason
            self._event.set()

    def is_asked(self) -> bool:
        return self._event.is_set()

    def overdue(self, seconds: float) -> bool:
        """Whether stopping was asked for more than `seconds` ago."""
        return self._event.is_set() and time.monotonic() - self._asked_at > seconds

    @contextmanager
    def cutting_off(self, cut: Callable[[], None], seconds: float) -> Iterator[None]:
        """Inside the block, call `cut` in a thread again and again once stopping is overdue by `seconds`."""
        left = threading.Event()

        def watch() -> None:
            while not left.wait(OVERDUE_GLANCE_S):
                if self.overdue(seconds):
                    cut()

        # a daemon: a second Ctrl-C ends the process even while it waits for the network
        watcher = threading.Thread(target=watch, name="cut off", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            left.set()
            watcher.join()  # what comes after the block must not be cut
