"""The engine for one machine: every stage runs at once in threads of this process, joined by bounded channels.

    fetch (one event loop) → look up → decode (threads) → encode (one thread) → collect → write (one thread)
      └ not modified ──────────┴ same bytes, or known ────────────────────────────┘

The threads spend their time in code that lets go of the interpreter lock: sockets, Pillow, torch, libpq. An
ItemError of a stage becomes a Failure here and nowhere else; any other exception of encode or write ends the run
and reaches the caller. Memory is bounded: at most `window` images with a bounded sum of bytes are between
fetch and decode, and two batches of pixels wait for the device. While the database is away the device goes on: the
work list is read ahead (`ahead`), and outcomes wait in memory and in a file (`backlog`).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.engine.ahead import ReadAhead
from pipeline.engine.backlog import STOP_IMAGES, Backlog
from pipeline.engine.channel import GLANCE_S, Aborted, Channel, InFlight
from pipeline.engine.window import Window
from pipeline.errors import AwayError, DeviceLostError, EncodeError, ItemError
from pipeline.records import Content, Decoded, Embedding, Failure, Fetched, ImageRef, NotModified, Outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.engine.breaker import Breaker
    from pipeline.engine.stages import Encoder, Fetcher, Stages
    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

LOOKUP_IMAGES = 256
"""hashes asked for in one query: at 40 ms a round trip that is 6,000 images/s"""
TWINS = 50_000
"""images that wait for another of the same bytes: 25 MB; only a database that is away lets them become so many"""
BATCH_WAIT_S = 0.5
"""how long a batch waits to fill up: a slow network must not hold back what is there"""
WRITE_IMAGES = 512
WRITE_WAIT_S = 1.0
"""a transaction holds up to 512 images, or those of one second: what kill -9 can cost; at 40 ms distance more of them
would be quicker, and these are quick enough (benchmarks/results/write_path.json)"""
OUTCOMES = 4 * WRITE_IMAGES
"""that wait to be collected: as many as come while a chunk waits for a slow database"""
DRAIN_S = 8.0
"""work after a request to stop; with the last commit it stays under 10 s"""
DEVICE_SHARE = 0.8
"""of that, after which what the device is at is left behind, so that what it came to before is written"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Same:
    """The bytes were read again, and are those that have a vector already."""

    content: Content

    @property
    def image(self) -> ImageRef:
        return self.content.image


Item = Embedding | Content | Same | NotModified | Failure
"""what becomes of an image; a Content has bytes that are new behind it and known"""


class LocalEngine:
    """One run of images through the stages; use it once."""

    def __init__(
        self, stages: Stages, progress: Progress, stop: Stop, breaker: Breaker, *, window: int, decode_threads: int
    ) -> None:
        self._stages = stages
        self._progress = progress
        self._stop = stop
        self._breaker = breaker
        self._window_images = window
        self._decode_threads = decode_threads
        self._in_flight = InFlight()
        self._aborted = threading.Event()
        self._error: BaseException | None = None
        self._error_lock = threading.Lock()
        self._unforeseen: set[type[Exception]] = set()
        # the window bounds what can be in the first two and what can have failed
        channel = partial(Channel, aborted=self._aborted, progress=progress)
        self._fetched: Channel[Fetched] = channel(0, receiver="look up")
        self._to_decode: Channel[Fetched] = channel(0, receiver="decode")
        self._decoded: Channel[Decoded] = channel(2 * stages.batch_size(), receiver="encode")
        self._outcomes: Channel[Item] = channel(OUTCOMES, receiver="write")
        self._work = ReadAhead(self._aborted, images=stages.ahead)
        self._backlog: Backlog[Item] = Backlog(stages.is_away, self._aborted)

    def run(self, work: Iterable[list[ImageRef]]) -> None:
        """Take every image of `work` through the stages, or until `stop`, or until too many have failed.

        Raises what a stage raised that is no ItemError, and BreakerError; what was committed before stays.
        """
        workers = {"network": 1, "event loop": 1, "look up": 1, "decode": self._decode_threads}
        with self._progress.at_work(workers | {"copy": 1, "encode": 1, "write": 1}):
            self._run_in_threads(
                [
                    ("work list", self._work.read, work),
                    ("fetch", self._fetch_all),
                    ("look up", self._look_up_all),
                    ("decode", self._decode_all),
                    ("encode", self._encode_all),
                    ("collect", self._collect_all),
                    ("write", self._write_all),
                ]
            )
        if self._error is not None:
            raise self._error
        if not self._stop.is_asked():
            self._breaker.judge_all()
        self._breaker.raise_if_open()

    def _guard(self, target: Callable[..., None], *arguments: object) -> None:
        try:
            target(*arguments)
        except Aborted:
            pass
        except BaseException as error:  # noqa: BLE001 - reaches the caller of run
            with self._error_lock:
                self._error = self._error or error
            self._aborted.set()

    def _run_in_threads(
        self, targets: Iterable[tuple[Any, ...]], *, until: Callable[[], bool] = lambda: False
    ) -> list[threading.Thread]:
        """Each (name, target, *arguments) in a thread of its own; waits for all of them, or `until` something is so.

        Returns those that have not ended.
        """
        # daemons: a second Ctrl-C must end the process even while one of them is inside torch
        threads = [
            threading.Thread(target=self._guard, args=(target, *arguments), name=name, daemon=True)
            for name, target, *arguments in targets
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not until():
                thread.join(0.2)  # in slices, so that signal handlers run
        return [thread for thread in threads if thread.is_alive()]

    # ---- fetch: an event loop in a thread

    def _fetch_all(self) -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._fetch_pages())
        self._fetched.close()

    async def _fetch_pages(self) -> None:
        self._window = Window(self._window_images, self._progress)
        tasks: set[asyncio.Task[None]] = set()
        async with self._stages.open_fetcher() as fetcher:
            while self._goes_on() and (page := await asyncio.to_thread(self._work.take, self._goes_on)):
                for image in page:
                    if not await self._window.enter(while_true=self._goes_on):
                        break
                    task = asyncio.create_task(self._fetch_one(fetcher, image))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            self._work.leave()
            await self._settle(tasks)

    def _goes_on(self) -> bool:
        return not (self._stop.is_asked() or self._aborted.is_set() or self._breaker.is_open)

    async def _settle(self, tasks: set[asyncio.Task[None]]) -> None:
        while tasks:
            if not self._goes_on():
                # what has not arrived stays undone, and is fetched by the next run
                for task in tasks:
                    task.cancel()
            done, _ = await asyncio.wait(tasks, timeout=0.2)
            for task in done:
                if not task.cancelled():
                    task.result()

    async def _fetch_one(self, fetcher: Fetcher, image: ImageRef) -> None:
        try:
            self._breaker.check(image)
            with self._progress.stage("fetch"):
                fetched = await fetcher.fetch(image)
        except Exception as error:  # noqa: BLE001 - one image never ends the run
            await self._put(_failure(image, "fetch", error, self._unforeseen))
            self._window.miss()
        except asyncio.CancelledError:
            self._window.miss()
            raise
        else:
            if isinstance(fetched, NotModified):
                await self._put(fetched)
                self._window.miss()
            else:
                self._window.arrive(len(fetched.data))
                self._fetched.put_at_once(fetched)

    async def _put(self, outcome: Failure | NotModified) -> None:
        while not self._outcomes.put_if_room(outcome):
            # the event loop must not wait for the writer
            if self._aborted.is_set():
                return
            await asyncio.sleep(GLANCE_S / 10)

    # ---- look up: which bytes are new

    def _look_up_all(self) -> None:
        while chunk := self._fetched.receive_many(LOOKUP_IMAGES, wait_s=0.0):
            self._wait_for_twins()
            firsts = []
            for fetched in chunk:
                image = fetched.content.image
                if image.has_vector and image.sha256 == fetched.content.sha256:
                    self._window.leave(len(fetched.data))
                    self._outcomes.put(Same(content=fetched.content), sender="look up")
                elif self._in_flight.claim(fetched.content):
                    firsts.append(fetched)
                else:
                    self._window.leave(len(fetched.data))
            with self._progress.stage("look up"):
                known = self._stages.find_known([fetched.content.sha256 for fetched in firsts]) if firsts else set()
            for fetched in firsts:
                if fetched.content.sha256 in known:
                    self._window.leave(len(fetched.data))
                    self._outcomes.put(fetched.content, sender="look up")
                else:
                    self._to_decode.put(fetched, sender="look up")
        self._to_decode.close()

    def _wait_for_twins(self) -> None:
        while self._in_flight.waiting > TWINS and not self._stop.is_asked():
            if self._aborted.is_set():
                raise Aborted
            time.sleep(GLANCE_S)

    # ---- decode: as many threads as there are cores for it

    def _decode_all(self) -> None:
        self._run_in_threads([(f"decode {number}", self._decode_some) for number in range(self._decode_threads)])
        self._decoded.close()

    def _decode_some(self) -> None:
        while files := self._to_decode.receive_many(self._stages.decode_at_once(), wait_s=0.0):
            if self._is_late():
                continue  # undone, not failed: the next run decodes them
            with self._progress.stage("decode"):
                found = self._stages.decode(files)
            for fetched, decoded in zip(files, found, strict=True):
                if isinstance(decoded, Exception):
                    self._fail(fetched.content, "decode", decoded)
                else:
                    self._decoded.put(decoded, sender="decode")
                self._window.leave(len(fetched.data))

    def _fail(self, content: Content, stage: str, error: Exception) -> None:
        """Fail an image, and those that waited for the same bytes."""
        for failed in (content, *self._in_flight.release(content.sha256)):
            failure = _failure(failed.image, stage, error, self._unforeseen)
            self._outcomes.put(replace(failure, etag=failed.etag, last_modified=failed.last_modified), sender=stage)

    # ---- encode: the devices

    def _encode_all(self) -> None:
        if self._decoded.wait():
            for left in self._run_in_threads([("encode on all", self._encode_on_all)], until=self._is_late):
                while self._decoded.receive_many(LOOKUP_IMAGES, wait_s=0.0):
                    pass  # undone, not failed: the next run encodes them
                left.join(2 * GLANCE_S)  # it may have waited for pictures
                self._stop.left_behind = left.is_alive()
        self._outcomes.close()

    def _is_late(self, to_come_s: float = 0.0) -> bool:
        """Whether the device should have ended, or would not have after so many seconds more."""
        return self._stop.overdue(DEVICE_SHARE * DRAIN_S - to_come_s)

    def _encode_on_all(self) -> None:
        self._devices = list(self._stages.encoders())
        threads = sum(encoder.threads for encoder in self._devices)
        for stage in ("copy", "encode"):  # one is part of the other
            self._progress.employ(stage, threads)
        for encoder in self._devices:
            encoder.take_copy_s()  # of what was tried before
        self._run_in_threads(
            [
                (f"encode {encoder.device} {number}", self._encode_some, encoder)
                for encoder in self._devices
                for number in range(encoder.threads)
            ]
        )

    def _encode_some(self, encoder: Encoder) -> None:
        took_s = 0.0
        while batch := self._decoded.receive_many(encoder.batch_size, wait_s=BATCH_WAIT_S):
            if self._is_late(took_s):
                continue  # as long a one would not end in time
            began = time.monotonic()
            pixels = np.stack([decoded.pixels for decoded in batch])
            with self._progress.stage("encode"):
                vectors, encoder = self._encode(pixels, encoder)
            took_s = time.monotonic() - began
            self._progress.note("copy", busy_s=encoder.take_copy_s())
            for decoded, vector in zip(batch, vectors, strict=True):
                self._judge(decoded, vector)

    def _encode(self, pixels: NDArray[np.uint8], encoder: Encoder) -> tuple[NDArray[np.float32], Encoder]:
        """The vectors, and the encoder to go on with: another one when the device of this one is lost."""
        while True:
            try:
                return encoder.encode_images(pixels), encoder
            except DeviceLostError as error:
                others = [other for other in self._devices if other.device != encoder.device]
                self._devices = others
                if not others:
                    raise
                logger.warning("%s; going on without it", error.message)
                encoder = others[0]

    def _judge(self, decoded: Decoded, vector: NDArray[np.float32]) -> None:
        """Let only finite vectors of unit length through (law 5)."""
        content = decoded.content
        if abs(float(np.linalg.norm(vector)) - 1.0) < 0.01:  # NaN compares as False
            embedding = Embedding(content=content, width=decoded.width, height=decoded.height, vector=vector)
            self._outcomes.put(embedding, sender="encode")
            return
        error = EncodeError("not_finite", "the model gives no finite vector of unit length for this image")
        self._fail(content, "encode", error)

    # ---- collect, then write: one transaction at a time

    def _collect_all(self) -> None:
        while items := self._outcomes.receive_many(WRITE_IMAGES, wait_s=WRITE_WAIT_S):
            self._backlog.put(items)
        self._backlog.close()

    def _write_all(self) -> None:
        with self._backlog:
            while items := self._backlog.take(STOP_IMAGES if self._stop.is_asked() else WRITE_IMAGES):
                try:
                    if not self._stop.overdue(DRAIN_S):
                        self._write_items(items)
                        continue
                except AwayError:  # what the writer waited for was cancelled
                    if not self._stop.overdue(DRAIN_S):
                        raise
                self._backlog.drop(items)  # undone, not failed: the next run encodes them

    def _write_items(self, items: Sequence[Item]) -> None:
        written = self._write(_sort(items))
        for item in items:
            self._breaker.note(item.image, item if isinstance(item, Failure) else None)
        if twins := self._release_twins(written, items):
            self._write(twins)

    def _release_twins(self, written: Outcomes, items: Sequence[Item]) -> Outcomes:
        """What the images come to that waited for the bytes of those just written."""
        done = {embedding.content.sha256 for embedding in written.embedded}
        done |= {content.sha256 for content in written.reused}
        refused = {failure.image.image_id: failure for failure in written.failed if failure.stage == "store"}
        contents = [item.content for item in items if isinstance(item, Embedding)]
        contents += [item for item in items if isinstance(item, Content)]
        failed = [
            replace(refused[content.image.image_id], image=twin.image)
            for content in contents
            if content.image.image_id in refused
            for twin in self._in_flight.release(content.sha256)
        ]
        reused = [twin for sha256 in done for twin in self._in_flight.release(sha256)]
        return Outcomes(reused=tuple(reused), failed=tuple(failed))

    def _write(self, outcomes: Outcomes) -> Outcomes:
        with self._progress.stage("write"):
            written = self._stages.write(outcomes)
        self._count(written)
        return written

    def _count(self, written: Outcomes) -> None:
        contents = [*(embedding.content for embedding in written.embedded), *written.reused]
        still_failed = [answer.image for answer in written.not_modified if answer.image.failed_for_good]
        self._progress.add(
            embedded=len(written.embedded),
            reused=len(written.reused),
            unchanged=len(written.same) + len(written.not_modified) - len(still_failed),
            changed=sum(content.image.sha256 not in {None, content.sha256} for content in contents),
            checked=sum(item.image.has_vector for item in written.items()),
        )
        for failure in written.failed:
            self._progress.fail(failure.code)
        for image in still_failed:
            self._progress.fail(image.failed_before or "unknown")


def _sort(items: Sequence[Item]) -> Outcomes:
    def of(kind: type[Result]) -> tuple[Result, ...]:
        return tuple(item for item in items if isinstance(item, kind))

    return Outcomes(
        embedded=of(Embedding),
        reused=of(Content),
        same=tuple(item.content for item in of(Same)),
        not_modified=of(NotModified),
        failed=of(Failure),
    )


def _failure(image: ImageRef, stage: str, error: Exception, known: set[type[Exception]]) -> Failure:
    """The failure that an error means; what nobody foresaw is told once of each kind, and goes into `known`."""
    if isinstance(error, ItemError):
        return Failure(
            image=image, stage=stage, code=error.code, detail=error.message, is_retryable=error.is_retryable
        )
    if type(error) not in known:
        known.add(type(error))
        logger.warning("unexpected %s while handling %s", type(error).__name__, image, exc_info=error)
    detail = f"{type(error).__name__}: {error}"
    return Failure(image=image, stage=stage, code="internal_error", detail=detail, is_retryable=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it exists; benchmarks/revalidation.py compares the two."""
    if sys.platform == "win32":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop
