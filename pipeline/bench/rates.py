"""Images per second out of moments: the first ones are left out, and the spread is that of parts of the time."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = 5
"""equal parts of the time whose rates are compared"""
WARM_UP = 0.15
"""share of the time that is left out: connections are made, caches and queues fill"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What was measured: images per second, its slowest and fastest part, and what an image cost this process.

    `core_ms` are milliseconds of processor time an image, over all threads.
    """

    images_per_s: float
    slowest: float
    fastest: float
    images: int
    seconds: float
    core_ms: float

    def times(self, count: int) -> Rate:
        """What so many would do side by side of which one was measured."""
        rates = {name: round(count * getattr(self, name), 1) for name in ("images_per_s", "slowest", "fastest")}
        return replace(self, **rates) if count > 1 else self


@dataclass(slots=True)
class Stopwatch:
    """The moments at which images were done; several threads may add to it."""

    began: float = field(default_factory=time.perf_counter)
    processor: float = field(default_factory=time.process_time)
    moments: list[tuple[float, int]] = field(default_factory=list)

    def add(self, images: int = 1) -> None:
        self.moments.append((time.perf_counter(), images))  # one operation: needs no lock

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def rate(self, *, until: float | None = None) -> Rate:
        """The rate from the end of the warm-up to the last moment, or to the last before `until`.

        Without two moments after the warm-up, that of the whole time.
        """
        processor_s = time.process_time() - self.processor
        done = sum(images for _, images in self.moments)
        moments = sorted(moment for moment in self.moments if until is None or moment[0] <= until)
        end = moments[-1][0] if moments else time.perf_counter()
        warm = self.began + WARM_UP * (end - self.began)
        steady = [moment for moment in moments if moment[0] >= warm]
        if len(steady) < 2:
            steady = [(self.began, 0), *(moments or sorted(self.moments))]
        rates = _part_rates(steady)
        seconds = max(steady[-1][0] - steady[0][0], 1e-9)
        images = sum(count for _, count in steady[1:])
        return Rate(
            images_per_s=round(images / seconds, 1),
            slowest=round(min(rates, default=0.0), 1),
            fastest=round(max(rates, default=0.0), 1),
            images=images,
            seconds=round(seconds, 2),
            core_ms=round(1000 * processor_s / done, 3) if done else 0.0,
        )


def _part_rates(moments: list[tuple[float, int]]) -> list[float]:
    """Images per second in each of up to `PARTS` parts of as many moments; the first moment only begins."""
    step = max(1, (len(moments) - 1) // PARTS)
    parts = [moments[start : start + step + 1] for start in range(0, len(moments) - step, step)]
    return [sum(images for _, images in part[1:]) / max(part[-1][0] - part[0][0], 1e-9) for part in parts]


def repeat(step: Callable[[], int], *, seconds: float, least: int) -> Rate:
    """Do a step, which says how many images it did, again and again; once before to warm up."""
    step()
    watch = Stopwatch()
    watch.add(0)
    while watch.seconds < seconds or len(watch.moments) <= least:
        watch.add(step())
    return watch.rate()


def median(values: list[int]) -> int:
    """The median, 0 of nothing."""
    return round(statistics.median(values)) if values else 0
