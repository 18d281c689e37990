"""The list of images, read ahead of the fetching, so that it goes on while the database is away."""

from __future__ import annotations

import pickle
import threading
import zlib
from collections import deque
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING

from pipeline.engine.channel import GLANCE_S, Aborted
from pipeline.errors import AwayError
from pipeline.records import ImageRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

AHEAD_IMAGES = 100_000
"""a whole catalog in many shops, and half a minute of the largest GPU"""
AHEAD_BYTES = 16 * 1024 * 1024
"""compressed, as they wait: 10 to 50 bytes an image; as they are it were 300"""

_FIELDS = tuple(field.name for field in fields(ImageRef))
_values = attrgetter(*_FIELDS)
"""plain tuples pickle in a quarter of the time that records take"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    images: int
    data: bytes


class ReadAhead:
    """Pages in their order; one thread reads the list, another takes the pages."""

    def __init__(self, aborted: threading.Event, *, images: int = AHEAD_IMAGES) -> None:
        self._aborted = aborted
        self._most_images = images
        self._changed = threading.Condition()
        self._pages: deque[_Page] = deque()
        self._closed = False
        self._taker_is_gone = False

    def read(self, work: Iterable[list[ImageRef]]) -> None:
        """Read all of it, waiting for room. Raises Aborted, and what `work` raises.

        That the database is away is no matter once nobody takes what is read.
        """
        try:
            self._read(work)
        except AwayError:
            if not self._taker_is_gone:
                raise

    def _read(self, work: Iterable[list[ImageRef]]) -> None:
        for images in work:
            data = _pack(images)
            with self._changed:
                while self._is_full() and not self._taker_is_gone:
                    self._wait()
                if self._taker_is_gone:
                    return
                self._pages.append(_Page(images=len(images), data=data))
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, while_true: Callable[[], bool] = lambda: True) -> list[ImageRef] | None:
        """The next page, or None after the last, and when `while_true` says no. Raises Aborted."""
        with self._changed:
            while not self._pages:
                if self._closed or not while_true():
                    return None
                self._wait()
            page = self._pages.popleft()
            self._changed.notify_all()
        return _unpack(page.data)

    def leave(self) -> None:
        """No more will be taken."""
        with self._changed:
            self._taker_is_gone = True
            self._changed.notify_all()

    def _wait(self) -> None:
        if self._aborted.is_set():
            raise Aborted
        self._changed.wait(GLANCE_S)

    def _is_full(self) -> bool:
        images, size_bytes = sum(page.images for page in self._pages), sum(len(page.data) for page in self._pages)
        return images >= self._most_images or size_bytes >= AHEAD_BYTES


def _pack(images: list[ImageRef]) -> bytes:
    return zlib.compress(
        pickle.dumps([_values(image) for image in images], protocol=pickle.HIGHEST_PROTOCOL), level=1
    )


def _unpack(data: bytes) -> list[ImageRef]:
    rows = pickle.loads(zlib.decompress(data))  # noqa: S301 - our own, out of this memory
    return [ImageRef(**dict(zip(_FIELDS, row, strict=True))) for row in rows]
