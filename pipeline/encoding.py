"""A list of images through the engine: fetched, decoded, encoded, and handed to whatever keeps the vectors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from pipeline.engine.stages import Fetcher, Stages
    from pipeline.engine.stop import Stop
    from pipeline.images.decoder import Decoder
    from pipeline.on_demand import ModelOnDemand
    from pipeline.progress import Progress
    from pipeline.records import ImageRef, Outcomes
    from pipeline.settings import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What keeps the vectors; the functions are those of `pipeline.engine.stages.Stages`."""

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
    stages = make_stages(settings, on_demand, destination)
    run_stages(work, stages, settings=settings, on_demand=on_demand, progress=progress, stop=stop)


def require_decoder(settings: RunSettings) -> None:
    """Raise ConfigError when the decoder that is asked for cannot be had here; to be asked before any work."""
    if settings.decode.decoder != "nvjpeg":
        return
    from pipeline.images.decoder import refuse_nvjpeg
    from pipeline.images.nvjpeg import open_nvjpeg
    from pipeline.models.device import choose_placements

    if not any(open_nvjpeg(placement.device) for placement in choose_placements(settings.model)):
        raise refuse_nvjpeg()


def make_stages(
    settings: RunSettings,
    on_demand: ModelOnDemand,
    destination: Destination,
) -> Stages:
    """The work of each stage, as the settings say."""
    from pipeline.engine.stages import Stages
    from pipeline.images.decoder import LateDecoder

    decoder = LateDecoder(partial(_choose_decoder, settings, on_demand))
    if settings.decode.decoder == "nvjpeg":
        decoder.choose()  # what cannot be had is refused before any work
    return Stages(
        open_fetcher=partial(open_fetcher, settings),
        find_known=destination.find_known,
        decode=decoder.decode_many,
        decode_at_once=decoder.at_once,
        batch_size=on_demand.batch_size,
        encoders=on_demand.encoders,
        write=destination.write,
        is_away=destination.is_away,
    )


def _choose_decoder(settings: RunSettings, on_demand: ModelOnDemand) -> Decoder:
    from pipeline.images.decoder import choose_decoder

    # Pillow does not ask where
    devices = [] if settings.decode.decoder == "pillow" else on_demand.devices()
    return choose_decoder(settings.decode, on_demand.spec.preprocess, devices)


def run_stages(
    work: Iterable[list[ImageRef]],
    stages: Stages,
    *,
    settings: RunSettings,
    on_demand: ModelOnDemand,
    progress: Progress,
    stop: Stop,
) -> None:
    """Take every image of `work` through the stages, as `encode_work`."""
    from pipeline.engine.breaker import Breaker
    from pipeline.engine.local import LocalEngine

    engine = LocalEngine(
        stages,
        progress,
        stop,
        Breaker(settings.max_failure_rate),
        window=settings.fetch.concurrency + 2 * on_demand.batch_size(),
        decode_threads=decode_threads(settings),
    )
    with progress.stage("images"), stop.draining():
        try:
            engine.run(_noting_hosts(work, progress))
        finally:
            on_demand.remember()


def _noting_hosts(work: Iterable[list[ImageRef]], progress: Progress) -> Iterator[list[ImageRef]]:
    """The work as it is; the progress learns how many hosts there are, for which the downloads per host count."""
    from pipeline.engine.breaker import host_of

    for page in work:
        progress.hosts.update(host for image in page if (host := host_of(image.url)) is not None)
        yield page


def open_fetcher(settings: RunSettings) -> AbstractAsyncContextManager[Fetcher]:
    """What gets the bytes of images, as these settings say."""
    from pipeline.catalog.open import image_root
    from pipeline.images.fetch import Fetcher as ImageFetcher

    return ImageFetcher(settings.fetch, image_root(settings.catalog))


def decode_threads(settings: RunSettings) -> int:
    """Threads that decode: as asked for, else one per core."""
    return settings.decode_threads or usable_cores()


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
