"""Images → pixels on disk, once: every epoch reads them again without a download or a decoder.

One file of uint8 [N, H, W, 3] for each part, mapped into memory. A killed training has what was read before; what
could not be read is written down when all were tried, and stays as it is for this training.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.encoding import decode_threads, open_fetcher
from pipeline.errors import CatvecError, ItemError
from pipeline.files import write_atomically
from pipeline.images.decoder import choose_decoder
from pipeline.records import Fetched

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.images.decoder import Decoder
    from pipeline.progress import Progress
    from pipeline.records import ImageRef, PreprocessSpec
    from pipeline.settings import RunSettings

MARGIN = 1.125
"""how much larger than the model's input images are kept, so that a crop of them is no blur"""
KEPT_EVERY = 2000
"""images after which it is written down which are there: what a kill costs"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An image that cannot be used, and why."""

    product_id: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pixels:
    """`images` uint8 [N, H, W, 3] on disk; `rows` int64 [M] are those that could be read."""

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    left_out: tuple[LeftOut, ...]

    @property
    def codes(self) -> Counter[str]:
        return Counter(left.code for left in self.left_out)


def enlarged(spec: PreprocessSpec) -> PreprocessSpec:
    """The same geometry with a margin to crop from."""
    return replace(
        spec,
        resize_size=round(spec.resize_size * MARGIN),
        height=round(spec.height * MARGIN),
        width=round(spec.width * MARGIN),
    )


def read_pixels(
    images: Sequence[ImageRef], spec: PreprocessSpec, folder: Path, *, settings: RunSettings, progress: Progress
) -> Pixels:
    """Fetch and decode the images, whose ids count from 0, into `folder`, or take up what is there.

    Raises CatvecError when the disk has no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache = _Cache(folder, len(images), spec)
    if not cache.is_complete:
        todo = [image for image in images if not cache.is_read[image.image_id]]
        # on the cores even where a GPU could: it is done once
        decoder = choose_decoder(settings.decode, spec, [])
        asyncio.run(_read_all(todo, cache, decoder, _Reading(settings=settings, progress=progress)))
        cache.complete()
    return cache.pixels()


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What all that read share."""

    settings: RunSettings
    progress: Progress
    done: int = 0


class _Cache:
    """The files of one part: the pixels, which of them are there, and at the end what is left out."""

    def __init__(self, folder: Path, count: int, spec: PreprocessSpec) -> None:
        self._pixels, self._known = folder / "pixels.npy", folder / "read.npy"
        self._left = folder / "left_out.json"
        shape = (count, spec.height, spec.width, 3)
        self.is_complete = self._left.is_file()
        if not self._known.is_file():
            _check_room(folder, int(np.prod(shape)))
            np.lib.format.open_memmap(self._pixels, mode="w+", dtype=np.uint8, shape=shape).flush()
            np.save(self._known, np.zeros(count, dtype=np.bool_))
        self.images = np.load(self._pixels, mmap_mode="r" if self.is_complete else "r+")
        self.is_read: NDArray[np.bool_] = np.load(self._known)
        self.left_out: list[LeftOut] = []
        self._unsaved = 0

    def put(self, row: int, pixels: NDArray[np.uint8]) -> None:
        self.images[row] = pixels
        self.is_read[row] = True
        self._unsaved += 1
        if self._unsaved >= KEPT_EVERY:
            self.keep()

    def keep(self) -> None:
        """Pixels first: what is written down as read must be there."""
        self.images.flush()
        temporary = self._known.with_suffix(".new.npy")
        np.save(temporary, self.is_read)
        temporary.replace(self._known)
        self._unsaved = 0

    def complete(self) -> None:
        self.keep()
        rows = [[left.product_id, left.code, left.detail] for left in self.left_out]
        write_atomically(self._left, json.dumps(rows, ensure_ascii=False))
        self.is_complete = True

    def pixels(self) -> Pixels:
        rows = json.loads(self._left.read_text(encoding="utf-8"))
        left = tuple(LeftOut(product_id=product, code=code, detail=detail) for product, code, detail in rows)
        return Pixels(images=self.images, rows=np.flatnonzero(self.is_read), left_out=left)


def _check_room(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise CatvecError(
            f"the decoded images take {size_bytes / 1e9:,.1f} GB beside --output, where {free / 1e9:,.1f} GB are "
            "free",
            hint="choose an --output on a larger disk, or a model with smaller images",
        )


async def _read_all(images: Sequence[ImageRef], cache: _Cache, decoder: Decoder, reading: _Reading) -> None:
    """As many at once as are downloaded and decoded at once; the next one begins when one is done."""
    waiting, loop, threads = iter(images), asyncio.get_running_loop(), decode_threads(reading.settings)

    async def work_off() -> None:
        for image in waiting:
            try:
                fetched = await fetcher.fetch(image)
                if isinstance(fetched, Fetched):
                    cache.put(image.image_id, await loop.run_in_executor(pool, _decode, decoder, fetched))
            except ItemError as error:
                left = LeftOut(product_id=image.product_id, code=error.code, detail=error.message)
                cache.left_out.append(left)
            reading.done += 1
            reading.progress.step(reading.done, len(images), unit="images")

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        async with open_fetcher(reading.settings) as fetcher:
            at_once = reading.settings.fetch.concurrency + 2 * threads
            await asyncio.gather(*(work_off() for _ in range(min(at_once, len(images)))))


def _decode(decoder: Decoder, fetched: Fetched) -> NDArray[np.uint8]:
    [found] = decoder.decode_many([fetched])
    if isinstance(found, Exception):
        raise found
    return found.pixels
