"""A list of images through the engine: fetched, decoded, encoded, and handed to whatever keeps the vectors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from pipeline.engine.local import Fetcher
    from pipeline.engine.stop import Stop
    from pipeline.on_demand import ModelOnDemand
    from pipeline.progress import Progress
    from pipeline.records import ImageRef, Outcomes
    from pipeline.settings import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What keeps the vectors; the functions are those of `pipeline.engine.local.Stages`."""

    find_known: Callable[[Sequence[bytes]], set[bytes]]
    write: Callable[[Outcomes], Outcomes]
    is_away: Callable[[], bool] = lambda: False


def encode_work(
    work: Iterable[list[ImageRef]],
    *,
    settings: RunSettings,
    on_demand: ModelOnDemand,
    progress: Progress,
    stop: Stop,
    destination: Destination,
) -> None:
    """Take every image of `work` to an outcome, or until `stop`.

    Raises BreakerError, and what a stage raised that is no ItemError.
    """
    from pipeline.engine.breaker import Breaker
    from pipeline.engine.local import LocalEngine, Stages
    from pipeline.images.decode import decode

    stages = Stages(
        open_fetcher=partial(_open_fetcher, settings),
        find_known=destination.find_known,
        decode=lambda fetched: decode(fetched, on_demand.spec.preprocess, settings.decode),
        batch_size=on_demand.batch_size,
        encode=on_demand.encode_images,
        write=destination.write,
        is_away=destination.is_away,
    )
    engine = LocalEngine(
        stages,
        progress,
        stop,
        Breaker(settings.max_failure_rate),
        window=settings.fetch.concurrency + 2 * on_demand.batch_size(),
        decode_threads=settings.decode_threads or _usable_cores(),
    )
    with progress.stage("images"), stop.draining():
        engine.run(work)


def _open_fetcher(settings: RunSettings) -> AbstractAsyncContextManager[Fetcher]:
    from pipeline.catalog.open import image_root
    from pipeline.images.fetch import Fetcher as ImageFetcher

    return ImageFetcher(settings.fetch, image_root(settings.catalog))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
