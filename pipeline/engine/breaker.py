"""The wish to stop when the network or a server is down, instead of failing a hundred thousand images one by one."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import BreakerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.records import Failure

WINDOW = 100
"""images judged together"""
LEAST = 20
"""so many in a row whose server gives nothing are judged at once: one that answers 503 slows down what asks it, and a
hundred images would take an hour. Also the fewest of a run that has less than a window: below this, a few new
products without pictures would look like an outage"""


class Breaker:
    """Opens when more than `max_rate` of the last images failed to be fetched or decoded.

    An image that failed for good in an earlier run says nothing of tonight, and does not count.
    """

    def __init__(self, max_rate: float) -> None:
        self._max_rate = max_rate
        self._recent: deque[Failure | None] = deque(maxlen=WINDOW)
        self._failures = 0
        self._silent_in_a_row = 0
        self._error: BreakerError | None = None

    @property
    def is_open(self) -> bool:
        return self._error is not None

    def note(self, failure: Failure | None) -> None:
        """One more image came to an end, in failure or (None) well; from one thread at a time."""
        if failure is not None:
            was_known = failure.image.failed_before == failure.code and failure.kind == "permanent"
            if failure.stage not in {"fetch", "decode"} or was_known:
                return
        if len(self._recent) == WINDOW:
            self._failures -= self._recent[0] is not None
        self._recent.append(failure)
        self._failures += failure is not None
        is_silent = failure is not None and failure.kind == "transient"
        self._silent_in_a_row = self._silent_in_a_row + 1 if is_silent else 0
        if self._silent_in_a_row >= LEAST:
            self._judge(list(self._recent)[-LEAST:])
        elif len(self._recent) == WINDOW:
            self._judge(self._recent)

    def judge_all(self) -> None:
        """No more will come: judge what there is, even if it is less than a window."""
        if len(self._recent) >= LEAST:
            self._judge(self._recent)

    def raise_if_open(self) -> None:
        if self._error is not None:
            raise self._error

    def _judge(self, images: Sequence[Failure | None]) -> None:
        failures = self._failures if images is self._recent else len(images)
        if self._error is None and failures > self._max_rate * len(images):
            found = [failure for failure in images if failure is not None]
            self._error = _explain(found, of=len(images), max_rate=self._max_rate)


def _explain(failures: list[Failure], *, of: int, max_rate: float) -> BreakerError:
    hosts = Counter(_host(failure) for failure in failures)
    host, at_host = hosts.most_common(1)[0]
    there = [failure for failure in failures if _host(failure) == host]
    codes = ", ".join(f"{code} {count}" for code, count in Counter(failure.code for failure in there).most_common(3))
    return BreakerError(
        f"{len(failures)} of the last {of} images failed, more than --max-failure-rate {max_rate:g} allows; "
        f"{at_host} of them {host} ({codes}), the last because: {there[-1].detail}",
        hint="nothing was removed; when the images can be had again, run the same command again; "
        "see: catvec failures",
    )


def _host(failure: Failure) -> str:
    """`at shop.example` or `in the image root`, without a user or password."""
    if failure.kind == "ours":
        return "on this side"
    try:
        parts = urlsplit(failure.image.url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "at URLs that are none"
    return f"at {parts.hostname}{port}" if parts.hostname else "in the image root"
