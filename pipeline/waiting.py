"""One run at a time: waiting for another that writes to the same database or bundle."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress

Taken = TypeVar("Taken")

LOCK_GLANCE_S = 1.0
"""how often a run that waits for another looks whether that one is done"""


def take_in_time(take: Callable[[], Taken], *, progress: Progress, stop: Stop, wait: timedelta) -> Taken:
    """What `take` gives as soon as it raises no LockedError, which is raised when that takes longer than `wait`."""
    deadline = time.monotonic() + wait.total_seconds()
    while True:
        try:
            return take()
        except LockedError:
            if stop.is_asked() or time.monotonic() >= deadline:
                raise
            progress.begin("waiting for another run")
            time.sleep(min(LOCK_GLANCE_S, max(0.0, deadline - time.monotonic())))
