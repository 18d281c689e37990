"""How far fetching may run ahead of decoding: so many images, and so many bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_BYTES = 256 * 1024 * 1024
"""encoded bytes under way or waiting to be decoded before fetching pauses: 3,000 photos of 80 KB"""
FIRST_IMAGES = 64
"""images begun before the size of any is known: fewer would wait for the deadlines of a few dead hosts"""
GLANCE_S = 0.2
"""how often one who waits for a place looks whether it is still wanted"""


class Window:
    """Entered in one event loop, left from any thread.

    An image takes a place when its fetch begins, and gives it back when it is missed, or when its bytes are no
    longer needed.
    """

    def __init__(self, images: int) -> None:
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
                    self._under_way += 1
                    return True
            else:
                await asyncio.sleep(0.02)
        return False

    def _has_room(self) -> bool:
        expected = self._under_way * self._arrived_bytes // self._answers
        is_empty = self._under_way == self._waiting_bytes == 0  # then even one too large for it may come
        return is_empty or self._waiting_bytes + expected < WINDOW_BYTES

    def miss(self) -> None:
        """The fetch gave no bytes; in the event loop."""
        self._under_way -= 1
        self._answers += 1
        self._places.release()

    def arrive(self, size_bytes: int) -> None:
        """The bytes are here and wait; in the event loop."""
        self._under_way -= 1
        self._answers += 1
        self._arrived_bytes += size_bytes
        with self._lock:
            self._waiting_bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """The bytes are no longer needed; from any thread."""
        with self._lock:
            self._waiting_bytes -= size_bytes
        with contextlib.suppress(RuntimeError):  # the loop is closed: everything has been fetched
            self._loop.call_soon_threadsafe(self._places.release)
