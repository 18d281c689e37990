"""How far fetching may run ahead of decoding: so many images, and so many bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.progress import Progress

WINDOW_BYTES = 256 * 1024 * 1024
"""encoded bytes under way or waiting to be decoded before fetching pauses: 3,000 photos of 80 KB"""
FIRST_IMAGES = 64
"""images begun before the size of any is known: fewer would wait for the deadlines of a few dead hosts"""
GLANCE_S = 0.2
"""how often one who waits for a place looks whether it is still wanted"""
TELL_S = 0.1
"""how often the progress is told what the places were held by: each time would be a lock more for every image"""


class Window:
    """Entered in one event loop, left from any thread.

    An image takes a place when its fetch begins, and gives it back when it is missed, or when its bytes are no
    longer needed. `progress` is told, as the load of fetch, how long places were free (starved), or held by bytes
    that wait to be decoded (blocked); and how busy the event loop's own thread is.
    """

    def __init__(self, images: int, progress: Progress) -> None:
        self._progress = progress
        self._usage = Usage(images)
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(images)
        self._under_way = 0
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        # what answers brought on average so far stands for what is under way
        self._answers, self._arrived_bytes = 1, WINDOW_BYTES // FIRST_IMAGES

    async def enter(self, *, while_true: Callable[[], bool]) -> bool:
        """Wait for a place; False when none is wanted any more."""
        while while_true():
            if self._has_room():
                with contextlib.suppress(TimeoutError):
                    # a timer costs more than a place that is free
                    async with asyncio.timeout(GLANCE_S if self._places.locked() else None):
                        await self._places.acquire()
                    self._go(1)
                    return True
            else:
                self._usage.is_full = True
                await asyncio.sleep(0.02)
            self._tell()
        return False

    def _has_room(self) -> bool:
        expected = self._under_way * self._arrived_bytes // self._answers
        is_empty = self._under_way == self._waiting_bytes == 0  # then even one too large for it may come
        return is_empty or self._waiting_bytes + expected < WINDOW_BYTES

    def miss(self) -> None:
        """The fetch gave no bytes; in the event loop."""
        self._go(-1)
        self._answers += 1
        self._places.release()

    def arrive(self, size_bytes: int) -> None:
        """The bytes are here and wait; in the event loop."""
        self._go(-1)
        self._answers += 1
        self._arrived_bytes += size_bytes
        with self._lock:
            self._waiting_bytes += size_bytes
            self._usage.waiting(1)

    def leave(self, size_bytes: int) -> None:
        """The bytes are no longer needed; from any thread."""
        with self._lock:
            self._waiting_bytes -= size_bytes
            self._usage.waiting(-1)
        with contextlib.suppress(RuntimeError):  # the loop is closed: everything has been fetched
            self._loop.call_soon_threadsafe(self._places.release)

    def _go(self, step: int) -> None:
        """One more image under way, or one less; in the event loop."""
        self._usage.under_way(step)
        self._under_way += step
        self._tell()

    def _tell(self) -> None:
        if self._usage.seconds() >= TELL_S:
            with self._lock:
                busy_s, free_s, waiting_s = self._usage.take()
            self._progress.note("event loop", busy_s=busy_s)
            self._progress.note("fetch", starved_s=free_s, blocked_s=waiting_s)


class Usage:
    """What the places of a window were held by, in seconds summed over places, since it was last asked for.

    `under_way`, `seconds` and `take` belong to the event loop's thread; `waiting` and `take` to who holds a lock.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self.is_full = False
        """no image may come though places are free: too many bytes wait"""
        self._since = self._under_way_at = self._waiting_at = time.perf_counter()
        self._processor_s = time.thread_time()
        self._under_way = self._waiting = 0
        self._under_way_s = self._waiting_s = 0.0

    def under_way(self, step: int) -> None:
        now = time.perf_counter()
        self._under_way_s += self._under_way * (now - self._under_way_at)
        self._under_way += step
        self._under_way_at = now

    def waiting(self, step: int) -> None:
        now = time.perf_counter()
        self._waiting_s += self._waiting * (now - self._waiting_at)
        self._waiting += step
        self._waiting_at = now

    def seconds(self) -> float:
        return time.perf_counter() - self._since

    def take(self) -> tuple[float, float, float]:
        """Processor seconds of this thread; seconds of free places; and of those whose bytes wait. Begins anew."""
        self.under_way(0)
        self.waiting(0)
        free_s = max(0.0, self._places * self.seconds() - self._under_way_s - self._waiting_s)
        waiting_s = self._waiting_s
        if self.is_full:
            free_s, waiting_s = 0.0, waiting_s + free_s
        processor_s = time.thread_time()
        busy_s, self._processor_s = processor_s - self._processor_s, processor_s
        self._since = time.perf_counter()
        self._under_way_s = self._waiting_s = 0.0
        self.is_full = False
        return busy_s, free_s, waiting_s
