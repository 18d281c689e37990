"""The engine of a run, fed with the sample again and again for some seconds, each time as if it were new."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from pipeline.encoding import Destination, make_stages, open_fetcher, run_stages
from pipeline.progress import Progress
from pipeline.records import Fetched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from pipeline.bench.rates import Stopwatch
    from pipeline.engine.stages import Fetcher
    from pipeline.engine.stop import Stop
    from pipeline.on_demand import ModelOnDemand
    from pipeline.progress import Snapshot
    from pipeline.records import Failure, ImageRef, NotModified, Outcomes
    from pipeline.settings import RunSettings

PAGE = 50
KEPT_BYTES = 256 * 1024 * 1024
"""of the sample, to decode: as much as a run lets wait"""
AT_MOST = 10
"""times the seconds, after which a slow machine has to do with what it has done"""


@dataclass(slots=True)
class Sample:
    """Images to measure with, the bytes of those that were fetched, and why others were not."""

    images: list[ImageRef]
    fetched: dict[int, Fetched] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    last: Failure | None = None
    _kept_bytes: int = 0

    def keep(self, fetched: Fetched) -> None:
        """Keep bytes, while there is room."""
        image_id = fetched.content.image.image_id
        if image_id not in self.fetched and self._kept_bytes < KEPT_BYTES:
            self._kept_bytes += len(fetched.data)
            self.fetched[image_id] = fetched

    def drop(self, failures: Sequence[Failure]) -> None:
        """Leave out what cannot be used; each counts once."""
        bad = {failure.image.image_id: failure for failure in failures}
        known = {image.image_id for image in self.images}
        self.failures.update(failure.code for image_id, failure in bad.items() if image_id in known)
        self.images = [image for image in self.images if image.image_id not in bad]
        self.last = next(iter(bad.values()), self.last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What all measurements share."""

    settings: RunSettings
    on_demand: ModelOnDemand
    stop: Stop


def stream_fetches(machine: Machine, sample: Sample, watch: Stopwatch, *, seconds: float) -> float:
    """Fetch for so long, and once all of the sample if that takes no more than four times as long; decode nothing.

    The sample keeps the bytes and loses what failed. Returns when feeding ended, to be given to the stopwatch.
    """
    failures: list[Failure] = []

    def fetched(found: Fetched) -> None:
        sample.keep(found)
        watch.add()

    def write(outcomes: Outcomes) -> Outcomes:
        failures.extend(outcomes.failed)
        return outcomes

    images = len(sample.images)
    feed = _Feed(
        sample.images, goes_on=lambda: watch.seconds < seconds or (feed.fed < images and watch.seconds < 4 * seconds)
    )
    # what is known already is not decoded
    _run(machine, Progress(), feed, find_known=set, write=write, on_fetched=fetched, is_new=False)
    sample.drop(failures)
    return feed.ended


def stream_all(
    machine: Machine,
    sample: Sample,
    watch: Stopwatch,
    *,
    seconds: float,
    image_ids: int,
    find_known: Callable[[Sequence[bytes]], set[bytes]],
    write: Callable[[Outcomes], Outcomes],
) -> tuple[float, Snapshot]:
    """Everything at once for so long, with ids of 1 to `image_ids`; each commit of embeddings is a moment.

    Returns when feeding ended, and the counters at that moment.
    """
    progress = Progress()

    def written(outcomes: Outcomes) -> Outcomes:
        done = write(outcomes)
        watch.add(len(done.embedded))
        return done

    # a slow machine goes on until some batches are through
    feed = _Feed(
        sample.images,
        image_ids=image_ids,
        goes_on=lambda: watch.seconds < seconds or (len(watch.moments) < 4 and watch.seconds < AT_MOST * seconds),
    )
    counters = progress.snapshot()

    def feed_and_look() -> Iterator[list[ImageRef]]:
        nonlocal counters
        yield from feed
        # before the queues run empty: what they hold would take a slow device as long as it was fed
        counters = progress.snapshot()

    _run(machine, progress, feed_and_look(), find_known=find_known, write=written, on_fetched=_ignore, is_new=True)
    return feed.ended, counters


def _ignore(_: Fetched) -> None:
    """Nothing is to be done with these bytes but what the engine does."""


class _Feed:
    """The sample over and over, page by page, while it goes on."""

    def __init__(self, images: Sequence[ImageRef], *, goes_on: Callable[[], bool], image_ids: int = 0) -> None:
        self._images = images
        self._goes_on = goes_on
        self._image_ids = image_ids
        self.fed = 0
        self.ended = 0.0

    def __iter__(self) -> Iterator[list[ImageRef]]:
        while self._images and self._goes_on():
            yield [self._next() for _ in range(min(PAGE, len(self._images)))]
        self.ended = time.perf_counter()

    def _next(self) -> ImageRef:
        image = self._images[self.fed % len(self._images)]
        self.fed += 1
        return replace(image, image_id=(self.fed - 1) % self._image_ids + 1) if self._image_ids else image


def _run(
    machine: Machine,
    progress: Progress,
    feed: Iterable[list[ImageRef]],
    *,
    find_known: Callable[[Sequence[bytes]], set[bytes]],
    write: Callable[[Outcomes], Outcomes],
    on_fetched: Callable[[Fetched], None],
    is_new: bool,
) -> None:
    stages = make_stages(machine.settings, machine.on_demand, Destination(find_known=find_known, write=write))
    numbers = count() if is_new else None
    # the feed has no end of its own: what is read ahead of the time is still worked on
    stages = replace(stages, open_fetcher=partial(_open_watched, machine.settings, on_fetched, numbers), ahead=PAGE)
    run_stages(
        feed, stages, settings=machine.settings, on_demand=machine.on_demand, progress=progress, stop=machine.stop
    )


@asynccontextmanager
async def _open_watched(
    settings: RunSettings, on_fetched: Callable[[Fetched], None], numbers: Iterator[int] | None
) -> AsyncIterator[Fetcher]:
    async with open_fetcher(settings) as fetcher:
        yield _Watched(fetcher, on_fetched, numbers)


class _Watched:
    """A fetcher whose answers are looked at; with `numbers`, each has a hash of its own, so that none is known."""

    def __init__(
        self, fetcher: Fetcher, on_fetched: Callable[[Fetched], None], numbers: Iterator[int] | None
    ) -> None:
        self._fetcher = fetcher
        self._on_fetched = on_fetched
        self._numbers = numbers

    async def fetch(self, image: ImageRef) -> Fetched | NotModified:
        fetched = await self._fetcher.fetch(image)
        if isinstance(fetched, Fetched):
            self._on_fetched(fetched)
            if self._numbers is not None:
                sha256 = hashlib.sha256(fetched.content.sha256 + next(self._numbers).to_bytes(8)).digest()
                return replace(fetched, content=replace(fetched.content, sha256=sha256))
        return fetched
