"""Images → pixels on disk, once: every epoch reads them again without a download or a decoder.

One file of uint8 [N, H, W, 3] for each part, mapped into memory, and beside it which of them could not be read and
why: the next command tries those again that may go better then.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.encoding import decode_threads, open_fetcher
from pipeline.errors import CatvecError, FetchError, ItemError
from pipeline.files import write_atomically
from pipeline.images.decoder import choose_decoder
from pipeline.records import Failure, Fetched

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.images.decoder import Decoder
    from pipeline.progress import Progress
    from pipeline.records import ImageRef, PreprocessSpec
    from pipeline.settings import RunSettings

MARGIN = 1.125
"""how much larger than the model's input images are kept, so that a crop of them is no blur"""
KEPT_EVERY, KEPT_AFTER_S = 2000, 10.0
"""images, or seconds, after which it is written down which are there: what a kill costs"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An image that cannot be used, why, and who has to change something: a Failure's `kind`."""

    product_id: str
    code: str
    detail: str
    kind: str


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
    images: Sequence[ImageRef],
    spec: PreprocessSpec,
    folder: Path,
    *,
    settings: RunSettings,
    progress: Progress,
    settled: Container[str],
) -> Pixels:
    """Fetch and decode the images, whose ids count from 0, into `folder`, or take up what is there.

    Those that failed before are tried again, but for the kinds of failure that are `settled`. Raises CatvecError when
    the disk has no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache = _Cache(folder, len(images), spec)
    todo = [image for image in images if cache.lacks(image.image_id, settled)]
    if todo:
        # on the cores even where a GPU could: it is done once
        decoder = choose_decoder(settings.decode, spec, [])
        try:
            asyncio.run(_read_all(todo, cache, decoder, _Reading(settings=settings, progress=progress)))
        finally:  # also when it is interrupted
            cache.keep()
    return cache.pixels()


@dataclass(slots=True, kw_only=True)
class _Reading:
    """What all that read share."""

    settings: RunSettings
    progress: Progress
    done: int = 0


class _Cache:
    """The files of one part: the pixels, which of them are there, and what is left out."""

    def __init__(self, folder: Path, count: int, spec: PreprocessSpec) -> None:
        self._pixels, self._known = folder / "pixels.npy", folder / "read.npy"
        self._failed = folder / "left_out.json"
        shape = (count, spec.height, spec.width, 3)
        if not self._known.is_file():
            _check_room(folder, int(np.prod(shape)))
            np.lib.format.open_memmap(self._pixels, mode="w+", dtype=np.uint8, shape=shape).flush()
            np.save(self._known, np.zeros(count, dtype=np.bool_))
        self._images = np.load(self._pixels, mmap_mode="r+")
        self._is_read: NDArray[np.bool_] = np.load(self._known)
        self._left_out: dict[int, LeftOut] = {}
        if self._failed.is_file():
            known = json.loads(self._failed.read_text(encoding="utf-8"))
            self._left_out = {int(row): LeftOut(**left) for row, left in known.items()}
        self._unsaved, self._kept_at = 0, time.monotonic()

    def lacks(self, row: int, settled: Container[str]) -> bool:
        """Whether the image is to be read, because it was not yet or its failure is not settled."""
        left = self._left_out.get(row)
        return not self._is_read[row] and (left is None or left.kind not in settled)

    def put(self, row: int, pixels: NDArray[np.uint8]) -> None:
        self._images[row] = pixels
        self._is_read[row] = True
        self._left_out.pop(row, None)
        self._keep_at_times()

    def leave_out(self, row: int, left: LeftOut) -> None:
        self._left_out[row] = left
        self._keep_at_times()

    def _keep_at_times(self) -> None:
        self._unsaved += 1
        if self._unsaved >= KEPT_EVERY or time.monotonic() - self._kept_at >= KEPT_AFTER_S:
            self.keep()

    def keep(self) -> None:
        """Pixels first: what is written down as read must be there."""
        self._images.flush()
        temporary = self._known.with_suffix(".new.npy")
        np.save(temporary, self._is_read)
        temporary.replace(self._known)
        known = {row: asdict(left) for row, left in sorted(self._left_out.items())}
        write_atomically(self._failed, json.dumps(known, ensure_ascii=False))
        self._unsaved, self._kept_at = 0, time.monotonic()

    def pixels(self) -> Pixels:
        left_out = tuple(left for row, left in sorted(self._left_out.items()) if not self._is_read[row])
        images = np.load(self._pixels, mmap_mode="r")
        return Pixels(images=images, rows=np.flatnonzero(self._is_read), left_out=left_out)


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
                cache.leave_out(image.image_id, _left_out(image, error))
            reading.done += 1
            reading.progress.step(reading.done, len(images), unit="images")

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        async with open_fetcher(reading.settings) as fetcher:
            at_once = reading.settings.fetch.concurrency + 2 * threads
            await asyncio.gather(*(work_off() for _ in range(min(at_once, len(images)))))


def _left_out(image: ImageRef, error: ItemError) -> LeftOut:
    failure = Failure(
        image=image,
        stage="fetch" if isinstance(error, FetchError) else "decode",
        code=error.code,
        detail=error.message,
        is_retryable=error.is_retryable,
    )
    return LeftOut(product_id=image.product_id, code=failure.code, detail=failure.detail, kind=failure.kind)


def _decode(decoder: Decoder, fetched: Fetched) -> NDArray[np.uint8]:
    [found] = decoder.decode_many([fetched])
    if isinstance(found, Exception):
        raise found
    return found.pixels
