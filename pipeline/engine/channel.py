"""What joins threads: bounded channels that give up when the engine does, and the register of bytes in flight."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from pipeline.progress import Progress
    from pipeline.records import Content

Item = TypeVar("Item")

GLANCE_S = 0.1
"""how often a waiting thread looks whether the engine has failed; also the longest delay of a failing run"""


class Aborted(Exception):  # noqa: N818 - it is no error of its own
    """The engine has failed elsewhere; unwind quietly."""


class Channel(Generic[Item]):
    """A bounded queue between stages. `close` lets receivers finish what is in it; `abort` ends all waiting.

    `progress` is told how long senders waited for room (blocked) and the `receiver`, a stage, for items (starved).
    Who need not wait pays nothing for that.
    """

    def __init__(self, bound: int, aborted: threading.Event, *, progress: Progress, receiver: str) -> None:
        self._queue: queue.Queue[Item] = queue.Queue(bound)
        self._closed = threading.Event()
        self._aborted = aborted
        self._progress = progress
        self._receiver = receiver

    def put(self, item: Item, *, sender: str) -> None:
        """Wait for room; `sender` is the stage that does. Raises Aborted."""
        while True:
            if self._aborted.is_set():
                raise Aborted
            if self.put_if_room(item):
                return
            began = time.perf_counter()
            try:
                self._queue.put(item, timeout=GLANCE_S)
            except queue.Full:
                continue
            else:
                return
            finally:
                self._progress.note(sender, blocked_s=time.perf_counter() - began)

    def put_at_once(self, item: Item) -> None:
        """For channels without a bound, whose sender is bounded otherwise; never waits."""
        self._queue.put_nowait(item)

    def put_if_room(self, item: Item) -> bool:
        """Whether there was room at this moment; never waits."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """No more items will come."""
        self._closed.set()

    def wait(self) -> bool:
        """Wait until there is something to receive; False when closed and empty. Raises Aborted."""
        while True:
            if self._aborted.is_set():
                raise Aborted
            closed = self._closed.is_set()
            if not self._queue.empty():
                return True
            if closed:
                return False
            time.sleep(GLANCE_S / 10)
            self._progress.note(self._receiver, starved_s=GLANCE_S / 10)

    def receive(self) -> Item | None:
        """The next item, or None when the channel is closed and empty. Raises Aborted."""
        while True:
            if self._aborted.is_set():
                raise Aborted
            # read before looking into the queue: what was put before closing is then surely found
            closed = self._closed.is_set()
            try:
                return self._get(0.0 if closed else GLANCE_S)
            except queue.Empty:
                if closed:
                    return None

    def receive_many(self, most: int, *, wait_s: float) -> list[Item]:
        """One item at least, then what comes within `wait_s`, up to `most`; empty when closed and empty."""
        first = self.receive()
        if first is None:
            return []
        items = [first]
        deadline = time.monotonic() + wait_s
        while len(items) < most:
            if self._aborted.is_set():
                raise Aborted
            left_s = deadline - time.monotonic()
            closed = self._closed.is_set()
            try:
                items.append(self._get(0.0 if closed else min(left_s, GLANCE_S)))
            except queue.Empty:
                if closed or left_s <= 0:
                    break
        return items

    def _get(self, wait_s: float) -> Item:
        """What is there, or comes within `wait_s`. Raises queue.Empty."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            if wait_s <= 0:
                raise
        began = time.perf_counter()
        try:
            return self._queue.get(timeout=wait_s)
        finally:
            self._progress.note(self._receiver, starved_s=time.perf_counter() - began)


class InFlight:
    """The SHA-256 sums between fetch and commit, so that the same bytes are encoded once (law 4).

    The first image with some bytes claims them; the others wait here, without their bytes, for what becomes of it.
    """

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[Content]] = {}
        self._lock = threading.Lock()
        self.waiting = 0

    def claim(self, content: Content) -> bool:
        """True for the first; a later one is kept waiting."""
        with self._lock:
            waiting = self._waiting.get(content.sha256)
            if waiting is None:
                self._waiting[content.sha256] = []
                return True
            waiting.append(content)
            self.waiting += 1
            return False

    def release(self, sha256: bytes) -> list[Content]:
        """End a claim after its outcome is committed; returns who waited for it."""
        with self._lock:
            released = self._waiting.pop(sha256, [])
            self.waiting -= len(released)
            return released
