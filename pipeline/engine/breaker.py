"""What to do about servers that are down: leave such a host alone, and stop a run for which too little is left."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import BreakerError, FetchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.records import Failure, ImageRef

WINDOW = 100
"""images judged together"""
LEAST = 20
"""images in a row for which a host gives nothing (timeouts, 5xx, pages) before it is left alone: one that answers 503
slows down whoever asks it, and a hundred images would take an hour. Also the fewest of a run that are judged
together: below this, a few new products without pictures would look like an outage"""


class Breaker:
    """Leaves hosts alone that give nothing, and stops a run when more than `max_rate` of the last images fail at
    others.

    An image of a host that is left alone fails at once, without a request; the end of the run decides whether those
    were too many. One that failed for good in an earlier run says nothing of tonight, and does not count.
    """

    def __init__(self, max_rate: float) -> None:
        self._max_rate = max_rate
        self._recent: deque[Failure | None] = deque(maxlen=WINDOW)
        self._in_a_row: Counter[str] = Counter()
        self._silent: dict[str, Failure] = {}
        self._at_silent = 0
        self._noted = 0
        self._error: BreakerError | None = None

    @property
    def is_open(self) -> bool:
        return self._error is not None

    def check(self, image: ImageRef) -> None:
        """Raise FetchError for an image whose host is left alone."""
        if self._silent and (silent := self._silent.get(_where(image.url))) is not None:
            message = f"its host gave nothing {LEAST} times in a row ({silent.code}) and was left alone"
            raise FetchError("host_down", message, is_retryable=True)

    def note(self, image: ImageRef, failure: Failure | None) -> None:
        """One more image came to an end, well or in failure; from one thread at a time."""
        if failure is not None and failure.code != "host_down":
            was_known = image.failed_before == failure.code and failure.kind == "permanent"
            if failure.stage not in {"fetch", "decode"} or was_known:
                return
        self._noted += 1
        host = _where(image.url)
        self._note_host(host, failure)
        if host in self._silent:
            self._at_silent += failure is not None
        else:
            self._recent.append(failure)
            if failure is not None and len(self._recent) == WINDOW:
                self._judge()

    def judge_all(self) -> None:
        """No more will come: judge what there is, even if it is less than a window."""
        if self._at_silent > self._max_rate * self._noted:
            self._give_up()
        elif len(self._recent) >= LEAST:
            self._judge()

    def raise_if_open(self) -> None:
        if self._error is not None:
            raise self._error

    def _note_host(self, host: str, failure: Failure | None) -> None:
        if failure is None or failure.kind != "transient":
            self._in_a_row[host] = 0
            return
        self._in_a_row[host] += 1
        if self._in_a_row[host] == LEAST and self._max_rate < 1 and host not in self._silent:
            self._silent[host] = failure
            # those before this one are judged with what comes from there
            others = [each for each in self._recent if each is None or _where(each.image.url) != host]
            self._at_silent += len(self._recent) - len(others)
            self._recent = deque(others, maxlen=WINDOW)

    def _judge(self) -> None:
        failures = [failure for failure in self._recent if failure is not None]
        if self._error is None and len(failures) > self._max_rate * len(self._recent):
            self._error = self._explain(failures)

    def _give_up(self) -> None:
        if self._error is None:
            hosts = ", ".join(f"{host} ({failure.code})" for host, failure in sorted(self._silent.items()))
            last = next(reversed(self._silent.values()))
            self._error = BreakerError(
                f"{self._at_silent:,} of {self._noted:,} images could not be had, more than --max-failure-rate "
                f"{self._max_rate:g} allows: nothing is answered {hosts}, the last because: {last.detail}",
                hint=HINT,
            )

    def _explain(self, failures: Sequence[Failure]) -> BreakerError:
        hosts = Counter(_place(failure) for failure in failures)
        place, there = hosts.most_common(1)[0]
        codes = Counter(failure.code for failure in failures if _place(failure) == place)
        shown = ", ".join(f"{code} {count}" for code, count in codes.most_common(3))
        last = next(failure for failure in reversed(failures) if _place(failure) == place)
        return BreakerError(
            f"{len(failures)} of the last {len(self._recent)} images failed, more than --max-failure-rate "
            f"{self._max_rate:g} allows; {there} of them {place} ({shown}), the last because: {last.detail}",
            hint=HINT,
        )


HINT = "nothing was removed; when the images can be had again, run the same command again; see: catvec failures"


def _place(failure: Failure) -> str:
    # what catvec, its settings or the model refuse says nothing of a host
    return "on this side" if failure.kind == "ours" else _where(failure.image.url)


def host_of(url: str) -> str | None:
    """Name and port of the server that an image is on, without a user or password; None if it is on none."""
    if url[:5].lower() == "data:":
        return None
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    return f"{parts.hostname}{port}" if parts.hostname else None


def _where(url: str) -> str:
    """`at shop.example` or `in the image root`."""
    host = host_of(url)
    if host is not None:
        return f"at {host}"
    if url[:5].lower() == "data:":
        return "in data URIs"
    return "at URLs that are none" if "://" in url else "in the image root"
