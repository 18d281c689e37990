"""Thumbnails for the page: the bytes of images are not stored, so they are fetched once more, in bounded time."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pipeline.errors import CatvecError, DecodeError, FetchError
from pipeline.records import ImageRef, NotModified

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pipeline.images.fetch import Fetcher
    from pipeline.settings import RunSettings

EDGE: Final = 160
"""pixels; shown at 80 to 110, and sharp on screens of twice the density"""
MOST_AT_ONCE: Final = 16
"""images being fetched, of up to --max-bytes each; a page of 90 small pictures needs no more"""
MOST_CHARACTERS: Final = 1_200_000
"""of all thumbnails together: a page goes by mail, too"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A thumbnail as a data URI, or the code of what is in its way."""

    data: str | None
    code: str | None


def fetch_pictures(locations: Iterable[str], settings: RunSettings, *, within_s: float) -> Mapping[str, Picture]:
    """A picture for every location. Never raises for one that cannot be had; what takes too long is `timeout`."""
    from pipeline.images.fetch import Fetcher

    wanted = list(dict.fromkeys(locations))
    fetch = replace(
        settings.fetch,
        concurrency=min(settings.fetch.concurrency, MOST_AT_ONCE),
        timeout_s=max(0.1, min(settings.fetch.timeout_s, within_s)),
        # the run has tried hard; a page is not worth asking a server again
        retries=0,
    )
    deadline = time.monotonic() + within_s

    async def work() -> dict[str, Picture]:
        async with Fetcher(fetch, _image_root(settings)) as fetcher:
            return await _fetch_all(wanted, fetcher, settings, deadline)

    return asyncio.run(work()) if wanted else {}


def _image_root(settings: RunSettings) -> Path | None:
    from pipeline.catalog.open import image_root

    try:
        return image_root(settings.catalog)
    except CatvecError:  # the catalog or the folder has gone since
        return None


async def _fetch_all(
    locations: list[str], fetcher: Fetcher, settings: RunSettings, deadline: float
) -> dict[str, Picture]:
    # one decodes at a time: an image of --max-pixels takes 300 MB
    decoding = asyncio.Semaphore(1)
    tasks = {
        asyncio.create_task(_fetch_one(location, fetcher, settings, decoding)): location for location in locations
    }
    done, late = await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    had = {
        tasks[task]: Picture(data=None, code="internal_error") if task.exception() else task.result() for task in done
    }
    return _fitting({location: had.get(location, Picture(data=None, code="timeout")) for location in locations})


def _fitting(pictures: dict[str, Picture]) -> dict[str, Picture]:
    """The first ones that fit onto the page; the others say that they do not."""
    room = MOST_CHARACTERS
    fitting = {}
    for location, picture in pictures.items():
        room -= len(picture.data or "")
        fitting[location] = picture if room >= 0 or picture.data is None else Picture(data=None, code="left out")
    return fitting


async def _fetch_one(location: str, fetcher: Fetcher, settings: RunSettings, decoding: asyncio.Semaphore) -> Picture:
    from pipeline.images.thumbnail import make_thumbnail

    try:
        fetched = await fetcher.fetch(ImageRef(image_id=0, product_id="", url=location))
        if isinstance(fetched, NotModified):  # a lie: nothing was asked that could be answered with it
            return Picture(data=None, code="http_304")
        async with decoding:
            jpeg = await asyncio.to_thread(
                make_thumbnail, fetched.data, edge=EDGE, max_pixels=settings.decode.max_pixels
            )
    except (FetchError, DecodeError) as error:
        return Picture(data=None, code=error.code)
    return Picture(data="data:image/jpeg;base64," + base64.b64encode(jpeg).decode(), code=None)
