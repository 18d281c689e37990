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
"""how often the progress is told: each time would be a lock more for every image"""


class Window:
    """Entered in one event loop, left from any thread.

    An image takes a place when its fetch begins, and gives it back when it is missed, or when its bytes are no
    longer needed. `progress` is told how busy the network and the event loop's own thread are.
    """

    def __init__(self, images: int, progress: Progress) -> None:
        self._progress = progress
        self._usage = Usage()
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
            self._usage.change(waiting=1)

    def leave(self, size_bytes: int) -> None:
        """The bytes are no longer needed; from any thread."""
        with self._lock:
            self._waiting_bytes -= size_bytes
            self._usage.change(waiting=-1)
        with contextlib.suppress(RuntimeError):  # the loop is closed: everything has been fetched
            self._loop.call_soon_threadsafe(self._places.release)

    def _go(self, step: int) -> None:
        """One more image under way, or one less; in the event loop."""
        self._under_way += step
        with self._lock:
            self._usage.change(under_way=step)
        self._tell()

    def _tell(self) -> None:
        if self._usage.seconds() >= TELL_S:
            with self._lock:
                self._usage.tell(self._progress)


class Usage:
    """What the images in a window were there for: under way (the network is busy), or waiting to be decoded.

    A moment counts for both in the proportion of the images, whose number says nothing: near the end there are few.
    To be used under one lock, and `tell` in the event loop's thread.
    """

    def __init__(self) -> None:
        self._told_at = self._changed_at = time.perf_counter()
        self._processor_s = time.thread_time()
        self._under_way = self._waiting = 0
        self._busy_s = self._blocked_s = self._starved_s = 0.0

    def change(self, *, under_way: int = 0, waiting: int = 0) -> None:
        """So many more, or less, from now on."""
        now = time.perf_counter()
        seconds, images = now - self._changed_at, self._under_way + self._waiting
        if images:
            self._busy_s += seconds * self._under_way / images
            self._blocked_s += seconds * self._waiting / images
        else:
            self._starved_s += seconds
        self._changed_at = now
        self._under_way += under_way
        self._waiting += waiting

    def seconds(self) -> float:
        """Since the progress was told."""
        return time.perf_counter() - self._told_at

    def tell(self, progress: Progress) -> None:
        self.change()
        progress.note("network", busy_s=self._busy_s, starved_s=self._starved_s, blocked_s=self._blocked_s)
        self._busy_s = self._blocked_s = self._starved_s = 0.0
        processor_s = time.thread_time()
        progress.note("event loop", busy_s=processor_s - self._processor_s)
        self._processor_s = processor_s
        self._told_at = time.perf_counter()
