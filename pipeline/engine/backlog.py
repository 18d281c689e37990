"""What waits for the writer: one chunk of outcomes while the database answers, many while it is away.

Then the device goes on, and its outcomes wait in memory, and beyond `MEMORY_BYTES` in a file. No file outlives the
run: what is done stands in the database and nowhere else, and what waited here when a run ends without it is encoded
again by the next. When the database is back, all of it is written in order, and what comes meanwhile waits behind it.
A file that cannot be made, or has no room left, holds up the stages before, and never ends the run.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from pipeline.engine.channel import GLANCE_S, Aborted
from pipeline.engine.spill import SpillFile
from pipeline.records import Embedding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from pipeline.engine.spill import Place
    from pipeline.records import ImageRef

logger = logging.getLogger(__name__)

MEMORY_BYTES = 64 * 1024 * 1024
"""20,000 vectors of 512 numbers with all that belongs to them: five seconds of a large GPU, minutes of a CPU"""
STOP_IMAGES = 64
"""most in a transaction once the run is to stop: a slow database must not hold on to it with a large one"""
OUTCOME_BYTES = 1000
"""an outcome in memory, without its vector and URL"""


class HasImage(Protocol):
    @property
    def image(self) -> ImageRef: ...


Item = TypeVar("Item", bound=HasImage)


@dataclass(slots=True, kw_only=True)
class _Chunk(Generic[Item]):
    """`items` is empty once they lie in the file at `place`; `data` is what they are there."""

    items: list[Item]
    images: int
    memory_bytes: int
    data: bytes = b""
    place: Place | None = None


class Backlog(Generic[Item]):
    """Chunks in the order they came; one thread puts, another takes, and enters it."""

    def __init__(self, is_away: Callable[[], bool], aborted: threading.Event) -> None:
        self._is_away = is_away
        self._aborted = aborted
        self._changed = threading.Condition()
        self._chunks: deque[_Chunk[Item]] = deque()
        self._closed = self._is_over = False
        self._memory_bytes = 0
        self._file: SpillFile | None = None
        self._file_chunks = 0
        self._file_bytes = 0
        self._is_full = False
        self._images = self._dropped = 0
        self.is_ahead = False
        """the database went away, and what has waited since is not written yet"""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_over = True
            self._end_file()

    def put(self, items: list[Item]) -> None:
        """Wait for room. Raises Aborted."""
        chunk = _Chunk(items=items, images=len(items), memory_bytes=_weigh(items))
        with self._changed:
            while not self._admit(chunk):
                self._wait()
            self._changed.notify_all()

    def close(self) -> None:
        """No more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, most: int) -> list[Item]:
        """Up to `most` of the next chunk, and those after it as far as they fit; empty when closed and empty.

        Whoever takes has written or dropped what was taken before. Raises Aborted.
        """
        with self._changed:
            if self.is_ahead and not self._chunks:
                self._end_outage()
            while not self._chunks:
                if self._closed:
                    return []
                self._wait()
            items = [*self._load(self._chunks.popleft())]
            if len(items) > most:
                self._put_back(items[most:])
                del items[most:]
            while self._chunks and len(items) + self._chunks[0].images <= most:
                items += self._load(self._chunks.popleft())
            self._changed.notify_all()
            return items

    def drop(self, items: Sequence[Item]) -> None:
        """What was taken is not written, and will not be."""
        with self._changed:
            self._dropped += len(items)

    def _put_back(self, items: list[Item]) -> None:
        chunk = _Chunk(items=items, images=len(items), memory_bytes=_weigh(items))
        self._chunks.appendleft(chunk)
        self._memory_bytes += chunk.memory_bytes

    def _wait(self) -> None:
        if self._aborted.is_set():
            raise Aborted
        self._changed.wait(GLANCE_S)

    def _admit(self, chunk: _Chunk[Item]) -> bool:
        if self._is_over:
            raise Aborted
        if self._chunks and not self.is_ahead:
            if not self._is_away():
                return False
            self.is_ahead = True
        # behind what lies in the file only the file keeps the order
        fits = not self._file_chunks and self._memory_bytes + chunk.memory_bytes <= MEMORY_BYTES
        if not (self._chunks and not fits) or self._spill(chunk):
            self._chunks.append(chunk)
            self._memory_bytes += chunk.memory_bytes
            self._images += chunk.images if self.is_ahead else 0
            return True
        return False

    def _spill(self, chunk: _Chunk[Item]) -> bool:
        """Whether the file has taken it."""
        chunk.data = chunk.data or pickle.dumps(chunk.items, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            self._file = self._file or SpillFile()
            chunk.place = self._file.append(chunk.data)
        except OSError as error:
            if not self._file_chunks:
                self._end_file()
            self._tell_full(error)
            return False
        self._tell_spilling(self._file)
        self._file_bytes += len(chunk.data)
        self._file_chunks += 1
        chunk.items, chunk.data, chunk.memory_bytes = [], b"", 0
        return True

    def _load(self, chunk: _Chunk[Item]) -> list[Item]:
        self._memory_bytes -= chunk.memory_bytes
        if chunk.place is None or self._file is None:
            return chunk.items
        items: list[Item] = pickle.loads(self._file.read(chunk.place))  # noqa: S301 - nobody else can open the file
        self._file_chunks -= 1
        if not self._file_chunks:
            self._end_file()
        return items

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _tell_spilling(self, file: SpillFile) -> None:
        if not self._file_bytes:
            logger.warning(
                "%d images wait for the database in %.0f MB of memory; what follows waits in a file in %s, "
                "which is gone when the run ends",
                self._images,
                self._memory_bytes / 1e6,
                file.folder,
            )

    def _tell_full(self, error: OSError) -> None:
        if not self._is_full:
            self._is_full = True
            logger.warning(
                "no more can wait for the database (%s): the device stands still until it is back", error.strerror
            )

    def _end_outage(self) -> None:
        if self._dropped:
            logger.warning(
                "not all that waited for the database is written: %d images are left to the next run", self._dropped
            )
        else:
            in_file = f", {self._file_bytes / 1e6:.0f} MB of it from the file" if self._file_bytes else ""
            logger.warning("what waited for the database is written: %d images%s", self._images, in_file)
        self.is_ahead = self._is_full = False
        self._images = self._dropped = self._file_bytes = 0


def _weigh(items: Sequence[HasImage]) -> int:
    vectors = sum(item.vector.nbytes for item in items if isinstance(item, Embedding))
    return vectors + sum(OUTCOME_BYTES + len(item.image.url) for item in items)
