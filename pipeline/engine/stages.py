"""What the engine is given: the work of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.engine.ahead import AHEAD_IMAGES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.records import Decoded, Fetched, ImageRef, NotModified, Outcomes


class Encoder(Protocol):
    """A model on one device.

    `encode_images` takes uint8 [N, H, W, 3] with N up to `batch_size` at the time, and gives float32 [N, D], a row
    of NaN where there is no usable vector; `threads` threads at once keep the device busy. Raises DeviceLostError.
    `take_copy_s` says what copying pixels to the device took since it was last asked, in all threads.
    """

    device: str
    batch_size: int
    threads: int

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]: ...

    def take_copy_s(self) -> float: ...


class Fetcher(Protocol):
    """Gets the bytes of images; may be called many times at once. Raises FetchError."""

    def fetch(self, image: ImageRef) -> Awaitable[Fetched | NotModified]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The work of each stage.

    `find_known` tells which SHA-256 sums have a vector already. `decode` runs in several threads and takes as many
    images as `decode_at_once` says at the time; what is wrong with one stands in its place. `encoders` are asked for
    when there is something to encode; until then `batch_size` tells how many images they will take at once. `write`
    commits outcomes and returns what it could write; `is_away` tells whether it waits for a database that went away.
    The list is read up to `ahead` images beyond those under way.
    """

    open_fetcher: Callable[[], AbstractAsyncContextManager[Fetcher]]
    find_known: Callable[[Sequence[bytes]], set[bytes]]
    decode: Callable[[Sequence[Fetched]], Sequence[Decoded | Exception]]
    decode_at_once: Callable[[], int]
    batch_size: Callable[[], int]
    encoders: Callable[[], Sequence[Encoder]]
    write: Callable[[Outcomes], Outcomes]
    is_away: Callable[[], bool] = lambda: False
    ahead: int = AHEAD_IMAGES
