"""How hard one host may be asked: a limit of requests at a time that shrinks when the host says "slow down".

A host that answers 429 or 503 is left alone for as long as it asks (Retry-After), or for a doubling pause, and its
limit is halved; every full round of good answers then adds one again. So one overloaded host costs its own images
time, no other host's, and is never hammered by each image for itself.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 16.0


class Host:
    """The queue before one host. To be used from one event loop."""

    def __init__(self, limit: int) -> None:
        self.resume_at = 0.0
        """loop time before which nobody should ask"""
        self.busy_status = 429
        """the status with which the host last asked for a pause"""
        self._most = limit
        self._limit = float(limit)
        self._active = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._pauses = 0
        self._slowed_at = float("-inf")

    @property
    def limit(self) -> int:
        """How many requests it is asked at a time now."""
        return int(self._limit)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is worth remembering about it."""
        is_at_rest = self.limit == self._most and not self._pauses
        return is_at_rest and not self._active and not self._waiters

    async def enter(self) -> None:
        """Wait for a free slot, first come first served. `leave` gives it back."""
        if self._active < self.limit and not self._waiters:
            self._active += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the slot came in the moment of the cancellation
            raise

    def leave(self) -> None:
        """Give the slot back."""
        self._active -= 1
        self._wake()

    def slow_down(self, status: int, *, asked_at: float, retry_after_s: float | None) -> None:
        """Note a 429 or 503 to a request sent at `asked_at` (loop time)."""
        now = asyncio.get_running_loop().time()
        self.busy_status = status
        if asked_at >= self._slowed_at:
            # once per round: the other requests that were in flight get the same answer
            self._slowed_at = now
            self._limit = max(1.0, self._limit / 2)
            self._pauses += 1
        pause_s = retry_after_s
        if pause_s is None:
            longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._pauses - 1))
            pause_s = random.uniform(longest_s / 2, longest_s)  # noqa: S311 - spreads load, guards nothing
        self.resume_at = max(self.resume_at, now + pause_s)

    def speed_up(self) -> None:
        """Note a good answer."""
        self._pauses = 0
        if self._limit < self._most:
            self._limit = min(float(self._most), self._limit + 1 / self._limit)
            self._wake()

    def _wake(self) -> None:
        while self._waiters and self._active < self.limit:
            turn = self._waiters.popleft()
            if not turn.done():  # a cancelled one
                self._active += 1
                turn.set_result(None)
