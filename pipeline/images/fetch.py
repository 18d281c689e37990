"""Image reference → bytes: from an http(s) server, a file below the image root, or a data URI.

Memory is bounded by `concurrency` × `max_bytes`, whatever servers send.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from pipeline.errors import FetchError
from pipeline.images.download import Downloader
from pipeline.images.local import read_data_uri, read_file
from pipeline.records import Content, Fetched, NotModified

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from pipeline.images.body import Body
    from pipeline.records import ImageRef
    from pipeline.settings import FetchSettings

_SCHEME = re.compile(r"(data):|([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# hashing 1 MB takes 0.5 to 2 ms; more at once would hold up the other downloads
_HASH_INLINE_BYTES: Final = 1024 * 1024


class Fetcher:
    """Fetches images; an asynchronous context manager. Any number of tasks may call `fetch` at a time."""

    def __init__(self, settings: FetchSettings, image_root: Path | None) -> None:
        self._settings = settings
        self._image_root = image_root

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        # not asyncio's own pool: a file system that hangs must not take other people's threads
        self._pool = ThreadPoolExecutor(min(self._settings.concurrency, 32), thread_name_prefix="fetch")
        self._downloader = Downloader(self._settings, self._slots)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._downloader.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, image: ImageRef) -> Fetched | NotModified:
        """Get the bytes of one image, whichever of its three forms the location has; or learn that they are still
        those of its `etag` or `last_modified`, which a data URI never has.

        Raises:
            FetchError: whatever is wrong with this image; nothing else.
        """
        body = await self._fetch(image)
        if body is None:
            return NotModified(image=image)
        if not body.data:
            raise FetchError("empty", "the image has 0 bytes")
        if len(body.data) <= _HASH_INLINE_BYTES:
            sha256 = _sha256(body.data)
        else:
            sha256 = await self._loop.run_in_executor(self._pool, _sha256, body.data)
        content = Content(
            image=image,
            sha256=sha256,
            size_bytes=len(body.data),
            mime=body.mime,
            etag=body.etag,
            last_modified=body.last_modified,
        )
        return Fetched(content=content, data=body.data)

    async def _fetch(self, image: ImageRef) -> Body | None:
        location = image.url.strip()
        start = _SCHEME.match(location)
        scheme = (start[1] or start[2]).lower() if start else None
        if scheme in {"http", "https"}:
            return await self._downloader.download(location, etag=image.etag, last_modified=image.last_modified)
        if scheme == "data":
            return await self._in_thread(partial(read_data_uri, location, self._settings.max_bytes))
        if scheme is not None:
            raise FetchError("bad_url", f"the image location begins with {scheme}://, expected http or https")
        if self._image_root is None:
            raise FetchError("no_image_root", f"{location[:200]!r} is a path, but there is no image root")
        return await self._in_thread(
            partial(read_file, location, self._image_root, self._settings.max_bytes, image.etag)
        )

    async def _in_thread(self, read: Callable[[], Body | None]) -> Body | None:
        async with self._slots:
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    return await self._loop.run_in_executor(self._pool, read)
            except TimeoutError as error:
                raise FetchError(
                    "timeout", f"the file was not read within {self._settings.timeout_s:g} s", is_retryable=True
                ) from error


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
