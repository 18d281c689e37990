"""How many 304s a second one process can ask for: our fetcher and plain aiohttp, on uvloop and on asyncio's loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import uvloop

from benchmarks.conditions import spread
from pipeline.images.fetch import Fetcher
from pipeline.records import Fetched, ImageRef, NotModified
from pipeline.settings import FetchSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

SETTINGS = FetchSettings(allow_private_hosts=True)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def compare_loops(urls: Iterable[str], *, rounds: int) -> dict[str, Any]:
    """304s a second, and the ratio of uvloop to asyncio round by round; the first pass over `urls` is not counted."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        images = runner.run(_know(urls))
    contenders = {"catvec": _ask_with_catvec, "plain aiohttp": _ask_plainly}
    rates: dict[str, list[float]] = {f"{name}, {loop}": [] for name in contenders for loop in LOOPS}
    for number in range(rounds):
        for name, ask in contenders.items():
            # who begins changes with every round
            for loop in LOOPS if number % 2 == 0 else reversed(LOOPS):
                rates[f"{name}, {loop}"].append(_rate(ask, images, LOOPS[loop]))
    ratios = {}
    for name in contenders:
        pairs = zip(rates[f"{name}, uvloop"], rates[f"{name}, asyncio"], strict=True)
        ratios[name] = spread([ours / theirs for ours, theirs in pairs])
    return {
        "requests": len(images),
        "at_once": SETTINGS.per_host,
        "requests_per_s": {name: spread(found) for name, found in rates.items()},
        "uvloop_to_asyncio": ratios,
    }


def _rate(
    ask: Callable[[list[ImageRef]], Awaitable[int]],
    images: list[ImageRef],
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> float:
    async def timed() -> float:
        started = time.perf_counter()
        not_modified = await ask(images)
        seconds = time.perf_counter() - started
        if not_modified != len(images):
            raise SystemExit(f"{not_modified} answers were 304, expected {len(images)}")
        return len(images) / seconds

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(timed())


async def _know(urls: Iterable[str]) -> list[ImageRef]:
    """The images with what their server says of their version."""
    images = [ImageRef(image_id=number, product_id=str(number), url=url) for number, url in enumerate(urls)]
    async with Fetcher(SETTINGS, None) as fetcher:
        found = await _in_turn(images, fetcher.fetch)
    return [
        replace(image, etag=fetched.content.etag, has_vector=True)
        for image, fetched in zip(images, found, strict=True)
        if isinstance(fetched, Fetched)
    ]


async def _ask_with_catvec(images: list[ImageRef]) -> int:
    async with Fetcher(SETTINGS, None) as fetcher:
        return sum(isinstance(found, NotModified) for found in await _in_turn(images, fetcher.fetch))


async def _ask_plainly(images: list[ImageRef]) -> int:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(image: ImageRef) -> int:
            async with session.get(image.url, headers={"If-None-Match": image.etag or ""}) as response:
                await response.read()
                return response.status

        return sum(status == 304 for status in await _in_turn(images, ask))


async def _in_turn(images: list[ImageRef], do: Callable[[ImageRef], Awaitable[Any]]) -> list[Any]:
    """As many at a time as a run asks of one host."""
    found: list[Any] = [None] * len(images)
    waiting = iter(enumerate(images))

    async def work() -> None:
        for place, image in waiting:
            found[place] = await do(image)

    await asyncio.gather(*(work() for _ in range(SETTINGS.per_host)))
    return found
