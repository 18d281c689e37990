"""The local engine with small real stages: nothing is lost, nothing is done twice, and it always ends."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.engine import local, window
from pipeline.engine.ahead import AHEAD_IMAGES
from pipeline.engine.breaker import Breaker
from pipeline.engine.local import LocalEngine
from pipeline.engine.stages import Stages
from pipeline.engine.stop import Stop
from pipeline.errors import AwayError, BreakerError, DecodeError, DeviceLostError, FetchError
from pipeline.images.decode import attempt
from pipeline.progress import Progress
from pipeline.records import Content, Decoded, Failure, Fetched, ImageRef, Outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

    from numpy.typing import NDArray

BROKEN, POOR, STRANGE = b"broken", b"poor", b"strange"
"""what bytes begin with that cannot be decoded, get no finite vector, or make the decoder raise something odd"""


def nothing(*_: object) -> None:
    """The default hook."""


@dataclass
class Device:
    """One of a workshop's devices; from batch number `lost_at` on it fails. `copy_s` of each batch are copying."""

    shop: Workshop
    device: str
    batch_size: int
    threads: int = 1
    lost_at: int = sys.maxsize
    copy_s: float = 0.0
    batches: int = 0
    told: int = 0

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches += 1
        if self.batches > self.lost_at:
            raise DeviceLostError(f"device {self.device} has failed: CUDA error: unspecified launch failure")
        return self.shop.encode(pixels)

    def take_copy_s(self) -> float:
        told, self.told = self.told, self.batches
        return (self.told - told) * self.copy_s


@dataclass
class Workshop:
    """The five stages over a dict of bytes by image id; it keeps count of everything."""

    data: dict[int, bytes]
    known: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    fetch_wait_s: Callable[[int], float] = lambda _: 0.0
    on_find: Callable[..., None] = nothing
    on_decode: Callable[..., None] = nothing
    on_encode: Callable[..., None] = nothing
    on_write: Callable[..., None] = nothing
    is_away: Callable[[], bool] = lambda: False
    written: list[Outcomes] = field(default_factory=list)
    decoded: Counter[bytes] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)
    arrived: set[int] = field(default_factory=set)
    under_way: int = 0
    under_way_most: int = 0
    bytes_most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def fetch(self, image: ImageRef) -> Fetched:
        data = self.data.get(image.image_id)
        self._count(image.image_id, 1)
        try:
            await asyncio.sleep(self.fetch_wait_s(image.image_id))
            if data is None:
                raise FetchError("http_404", "the server answered 404 (Not Found)")
            if data == b"":
                raise ZeroDivisionError("something odd")
        except BaseException:
            self._count(image.image_id, -1)
            raise
        self.arrived.add(image.image_id)
        return Fetched(content=content_of(image, data), data=data)

    def _count(self, image_id: int, step: int) -> None:
        with self.lock:
            self.begun.add(image_id)
            self.under_way += step
            self.under_way_most = max(self.under_way_most, self.under_way)
            size = len(self.data.get(image_id) or b"")
            self.bytes_most = max(self.bytes_most, self.under_way * size)

    def find_known(self, hashes: Sequence[bytes]) -> set[bytes]:
        self.on_find()
        return self.known & set(hashes)

    def decode(self, fetched: Fetched) -> Decoded:
        with self.lock:
            self.decoded[fetched.data] += 1
        try:
            self.on_decode(fetched)
        finally:
            self._count(fetched.content.image.image_id, -1)
        if fetched.data.startswith(BROKEN):
            raise DecodeError("undecodable", "the JPEG file cannot be decoded")
        if fetched.data.startswith(STRANGE):
            raise IndexError("list index out of range")
        first = 255 if fetched.data.startswith(POOR) else 0
        pixels = np.frombuffer(bytes([first]) + fetched.content.sha256[:11], np.uint8).reshape(2, 2, 3)
        return Decoded(content=fetched.content, width=2, height=2, pixels=pixels)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.on_encode()
        self.batches.append(len(pixels))
        rows = pixels.reshape(len(pixels), -1).astype(np.float32) + 1
        rows[pixels[:, 0, 0, 0] == 255] = np.nan
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    def write(self, outcomes: Outcomes) -> Outcomes:
        self.on_write()
        bad = [content for content in [e.content for e in outcomes.embedded] if content.sha256 in self.refused]
        bad += [content for content in outcomes.reused if content.sha256 in self.refused]
        refusals = [
            Failure(image=content.image, stage="store", code="refused", detail="a CHECK", is_retryable=False)
            for content in bad
        ]
        done = Outcomes(
            embedded=tuple(e for e in outcomes.embedded if e.content.sha256 not in self.refused),
            reused=tuple(content for content in outcomes.reused if content.sha256 not in self.refused),
            failed=(*outcomes.failed, *refusals),
        )
        self.written.append(done)
        self.known |= {embedding.content.sha256 for embedding in done.embedded}
        return done

    def run(
        self,
        *,
        work: Iterable[list[ImageRef]] | None = None,
        stop: Stop | None = None,
        progress: Progress | None = None,
        window: int = 40,
        batch_size: int = 8,
        max_failure_rate: float = 1.0,
        devices: Sequence[Device] = (),
        ahead: int = AHEAD_IMAGES,
    ) -> None:
        stages = Stages(
            open_fetcher=lambda: self,
            find_known=self.find_known,
            decode=lambda files: [attempt(partial(self.decode, fetched)) for fetched in files],
            decode_at_once=3,
            ahead=ahead,
            batch_size=lambda: batch_size,
            encoders=lambda: devices or [Device(self, "cpu", batch_size)],
            write=self.write,
            is_away=self.is_away,
        )
        engine = LocalEngine(
            stages, progress or Progress(), stop or Stop(), Breaker(max_failure_rate), window=window, decode_threads=2
        )
        engine.run(pages(self.data) if work is None else work)

    def fates(self) -> dict[int, str]:
        """What became of each image; a failure by its code. An image with two outcomes fails the test."""
        fates: dict[int, str] = {}
        for outcomes in self.written:
            ends = [(embedding.content.image, "embedded") for embedding in outcomes.embedded]
            ends += [(content.image, "reused") for content in outcomes.reused]
            ends += [(failure.image, f"{failure.stage} {failure.code}") for failure in outcomes.failed]
            for image, fate in ends:
                assert image.image_id not in fates, f"image {image.image_id} came out twice"
                fates[image.image_id] = fate
        return fates


def content_of(image: ImageRef, data: bytes) -> Content:
    return Content(image=image, sha256=hashlib.sha256(data).digest(), size_bytes=len(data))


def pages(ids: Iterable[int], size: int = 50) -> Iterator[list[ImageRef]]:
    images = [ImageRef(image_id=number, product_id=f"P{number}", url=f"{number}.jpg") for number in ids]
    for start in range(0, len(images), size):
        yield images[start : start + size]


def forever() -> Iterator[list[ImageRef]]:
    number = 0
    while True:
        yield next(pages(range(number, number + 50)))
        number += 50


class Numbered(dict[int, bytes]):
    """Every image has bytes of its own."""

    def get(self, key: int, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        return f"image {key}".encode()


def engine_threads() -> list[str]:
    names = ("fetch", "look up", "decode", "encode", "write")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


@pytest.mark.parametrize("seed", range(8))
def test_every_image_comes_out_exactly_once(seed: int) -> None:
    numbers = random.Random(seed)
    kinds = [b"good", b"good", b"good", POOR, BROKEN, STRANGE]
    pool = [numbers.choice(kinds) + b" %d" % number for number in range(numbers.choice([10, 80, 400]))]
    choices: list[bytes | None] = [None, b"", *pool]
    data = {number: numbers.choice(choices) for number in range(300)}
    hashes = [hashlib.sha256(one).digest() for one in pool]
    shop = Workshop(
        {number: one for number, one in data.items() if one is not None},
        known={sha256 for sha256 in hashes if numbers.random() < 0.2},
        refused={sha256 for sha256 in hashes if numbers.random() < 0.2},
        fetch_wait_s=lambda _: numbers.random() / 200,
    )
    known, progress = set(shop.known), Progress()

    shop.run(
        work=pages(data), progress=progress, window=numbers.choice([1, 7, 100]), batch_size=numbers.choice([1, 8])
    )

    def expected(one: bytes | None) -> set[str]:
        sha256 = hashlib.sha256(one or b"").digest()
        if one is None:
            return {"fetch http_404"}
        if one == b"":
            return {"fetch internal_error"}
        if sha256 in known:
            return {"store refused"} if sha256 in shop.refused else {"reused"}
        if one.startswith((BROKEN, STRANGE, POOR)):
            return {
                BROKEN: {"decode undecodable"},
                STRANGE: {"decode internal_error"},
                POOR: {"encode not_finite"},
            }[one.split()[0]]
        return {"store refused"} if sha256 in shop.refused else {"embedded", "reused"}

    fates = shop.fates()
    assert set(fates) == set(data)
    assert {number: fate for number, fate in fates.items() if fate not in expected(data[number])} == {}
    encoded = [data[number] for number, fate in fates.items() if fate == "embedded"]
    assert len(encoded) == len(set(encoded)), "the same bytes have two vectors"
    counted = Counter("failed" if " " in fate else fate for fate in fates.values())
    seen = progress.snapshot()
    assert (seen.embedded, seen.reused, seen.failed) == (counted["embedded"], counted["reused"], counted["failed"])
    assert engine_threads() == []


@pytest.mark.parametrize(
    ("data", "refused", "fate"),
    [
        (b"good", False, "reused"),
        (b"good", True, "store refused"),
        (BROKEN, False, "decode undecodable"),
        (POOR, False, "encode not_finite"),
    ],
)
def test_the_same_bytes_are_worked_on_once_whatever_becomes_of_them(data: bytes, refused: bool, fate: str) -> None:
    shop = Workshop(dict.fromkeys(range(20), data))
    shop.refused = {hashlib.sha256(data).digest()} if refused else set()

    def wait_for_the_twins(_: Fetched) -> None:
        wait_until(lambda: len(shop.arrived) == 20)
        time.sleep(0.3)  # until they have been looked up

    shop.on_decode = wait_for_the_twins
    shop.run()

    assert shop.decoded == {data: 1}
    assert Counter(shop.fates().values()) == ({"embedded": 1, "reused": 19} if fate == "reused" else {fate: 20})


def test_the_twins_of_known_bytes_that_the_database_refuses_are_refused_too() -> None:
    sha256 = hashlib.sha256(b"good").digest()
    shop = Workshop(dict.fromkeys(range(20), b"good"), known={sha256}, refused={sha256})

    shop.run()

    assert Counter(shop.fates().values()) == {"store refused": 20}


def test_a_batch_is_never_larger_than_asked_for() -> None:
    shop = Workshop({number: b"image %d" % number for number in range(100)})

    shop.run(batch_size=8)

    assert max(shop.batches) <= 8
    assert sum(shop.batches) == 100


def test_every_device_gets_its_share() -> None:
    shop = Workshop({number: b"image %d" % number for number in range(200)}, on_encode=lambda: time.sleep(0.01))
    devices = [Device(shop, "cuda:0", 8, threads=2), Device(shop, "cuda:1", 4)]

    shop.run(devices=devices)

    assert Counter(shop.fates().values()) == {"embedded": 200}
    assert sum(shop.batches) == 200
    assert max(shop.batches) <= 8
    assert all(device.batches > 5 for device in devices)


def test_a_device_that_is_lost_leaves_its_batch_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    shop = Workshop({number: b"image %d" % number for number in range(200)})
    devices = [Device(shop, "cuda:0", 8, threads=2, lost_at=3), Device(shop, "cuda:1", 8)]

    shop.run(devices=devices)

    assert Counter(shop.fates().values()) == {"embedded": 200}
    assert "device cuda:0 has failed: CUDA error: unspecified launch failure; going on without it" in caplog.text


def test_the_last_device_that_is_lost_ends_the_run_and_keeps_what_is_done() -> None:
    shop = Workshop({number: b"image %d" % number for number in range(200)})

    with pytest.raises(DeviceLostError, match=r"device cuda:[01] has failed"):
        shop.run(devices=[Device(shop, "cuda:0", 8, lost_at=2), Device(shop, "cuda:1", 8, lost_at=6)])

    assert len(shop.fates()) <= 8 * 8
    assert engine_threads() == []


def test_no_work_is_no_error() -> None:
    shop = Workshop({})

    shop.run()

    assert shop.written == []


@pytest.mark.parametrize("stage", ["find", "encode", "write"])
def test_an_error_of_a_stage_ends_the_run_at_once_and_reaches_the_caller(stage: str) -> None:
    """Whatever else is under way: images that never arrive, full channels, an endless work list."""
    calls = Counter[str]()

    def break_at_the_third() -> None:
        calls[stage] += 1
        if calls[stage] == 3:
            raise RuntimeError(f"{stage} is broken")

    shop = Workshop(Numbered(), fetch_wait_s=lambda number: 3600 if number % 10 == 9 else 0.001)
    setattr(shop, f"on_{stage}", break_at_the_third)
    started = time.monotonic()

    with pytest.raises(RuntimeError, match=f"^{stage} is broken$"):
        shop.run(work=forever(), window=500, batch_size=2)

    assert time.monotonic() - started < 5
    assert engine_threads() == []
    assert set(shop.fates().values()) <= {"embedded"}


def test_an_error_of_the_work_list_ends_the_run_and_reaches_the_caller() -> None:
    def breaks_off() -> Iterator[list[ImageRef]]:
        yield from pages(range(50))
        raise ConnectionError("the work list is gone")

    shop = Workshop(Numbered())

    with pytest.raises(ConnectionError, match="the work list is gone"):
        shop.run(work=breaks_off())

    assert engine_threads() == []


def test_a_fetcher_that_cannot_be_opened_ends_the_run() -> None:
    class Closed(Workshop):
        async def __aenter__(self) -> Self:
            raise OSError("no more sockets")

    with pytest.raises(OSError, match="no more sockets"):
        Closed(Numbered()).run(work=forever())

    assert engine_threads() == []


def test_a_request_to_stop_ends_in_time_and_keeps_what_was_fetched() -> None:
    stop = Stop()
    shop = Workshop(Numbered(), fetch_wait_s=lambda number: 3600 if number % 10 == 9 else 0.001)
    shop.on_write = lambda: stop.ask("SIGTERM")
    started = time.monotonic()

    shop.run(work=forever(), stop=stop, window=100, batch_size=4)

    assert time.monotonic() - started < 5
    fates = shop.fates()  # none twice
    assert set(fates.values()) == {"embedded"}
    assert fates.keys() == shop.arrived
    assert shop.begun - fates.keys(), "images that hang stay undone"
    assert engine_threads() == []


def test_an_overdue_stop_leaves_the_rest_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow device must not hold up the end: what is decoded and not encoded is for the next run."""
    monkeypatch.setattr(local, "DRAIN_S", 0.1)
    stop = Stop()
    shop = Workshop(Numbered(), on_encode=lambda: (stop.ask("SIGTERM"), time.sleep(0.3)))
    started = time.monotonic()

    shop.run(work=forever(), stop=stop, window=100, batch_size=2)

    assert time.monotonic() - started < 5
    assert 1 <= len(shop.batches) <= 2
    assert set(shop.fates().values()) <= {"embedded"}


@pytest.mark.parametrize("known", [False, True])
def test_an_overdue_stop_does_not_wait_for_a_slow_database(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """A hundredth of a second for each image, and a thousand of them wait when the stop comes."""
    monkeypatch.setattr(local, "DRAIN_S", 0.5)
    stop, sizes = Stop(), list[int]()
    shop = Workshop(Numbered())
    if known:
        shop.known = {hashlib.sha256(shop.data.get(number) or b"").digest() for number in range(5000)}
    write = shop.write

    def write_slowly(outcomes: Outcomes) -> Outcomes:
        sizes.append(len(list(outcomes.items())))
        if len(sizes) == 1:
            wait_until(lambda: len(shop.arrived) > 1000)
            stop.ask("SIGTERM")
        else:
            time.sleep(sizes[-1] / 100)
        return write(outcomes)

    monkeypatch.setattr(shop, "write", write_slowly)
    started = time.monotonic()

    shop.run(work=forever(), stop=stop, window=100)

    assert time.monotonic() - started < 6
    assert len(sizes) > 1
    assert max(sizes[1:]) <= 64
    assert sum(sizes[1:]) < 200
    assert len(shop.fates()) == sum(sizes)
    assert set(shop.fates().values()) == {"reused" if known else "embedded"}
    assert engine_threads() == []


def test_a_write_that_is_cancelled_because_the_stop_is_overdue_leaves_its_images_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "DRAIN_S", 0.2)
    stop, cancelled = Stop(), threading.Event()
    shop = Workshop(Numbered())

    def hang() -> None:
        stop.ask("SIGTERM")
        assert cancelled.wait(5)
        raise AwayError("the database did not answer in time")

    shop.on_write = hang

    with stop.cutting_off(cancelled.set, 0.2):
        shop.run(work=forever(), stop=stop)

    assert cancelled.is_set()
    assert shop.written == []
    assert engine_threads() == []


def test_a_work_list_that_hangs_does_not_hold_up_a_stop() -> None:
    """The database locks the list up, until the statement is cancelled."""
    stop, cancelled = Stop(), threading.Event()
    shop = Workshop(Numbered())

    def locked() -> Iterator[list[ImageRef]]:
        yield from pages(range(20))
        wait_until(lambda: len(shop.fates()) == 20)
        stop.ask("SIGTERM")
        assert cancelled.wait(5)
        raise AwayError("the database did not answer in time")

    with stop.cutting_off(cancelled.set, 0.5):
        shop.run(work=locked(), stop=stop)

    assert set(shop.fates().values()) == {"embedded"}
    assert engine_threads() == []


def test_a_stop_before_the_start_fetches_nothing() -> None:
    stop = Stop()
    stop.ask("SIGTERM")
    shop = Workshop(Numbered())

    shop.run(work=forever(), stop=stop)

    assert (shop.begun, shop.written) == (set(), [])


@pytest.mark.parametrize("window", [1, 10])
def test_the_window_bounds_how_many_images_are_fetched_ahead(window: int) -> None:
    shop = Workshop({number: b"image %d" % number for number in range(60)}, on_decode=lambda _: time.sleep(0.005))

    shop.run(window=window)

    assert shop.under_way_most <= window
    assert len(shop.fates()) == 60


def test_large_images_are_fetched_ahead_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW_BYTES", 1_000_000)
    monkeypatch.setattr(window, "FIRST_IMAGES", 4)
    shop = Workshop(
        {number: b"%d" % number + bytes(200_000) for number in range(40)},
        fetch_wait_s=lambda _: 0.002,
        on_decode=lambda _: time.sleep(0.01),
    )

    shop.run(window=40)

    assert 400_000 < shop.bytes_most <= 1_250_000
    assert len(shop.fates()) == 40


def test_answers_without_bytes_let_more_be_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but 304s, in most nights: what the first answers may weigh must not hold back the others."""
    monkeypatch.setattr(window, "FIRST_IMAGES", 4)
    shop = Workshop({}, fetch_wait_s=lambda _: 0.002)

    shop.run(work=pages(range(400)), window=40)

    assert shop.under_way_most == 40
    assert len(shop.fates()) == 400


def test_an_image_larger_than_the_whole_allowance_goes_through_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW_BYTES", 1000)
    shop = Workshop({number: b"%d" % number + bytes(5000) for number in range(5)})

    shop.run()

    assert Counter(shop.fates().values()) == {"embedded": 5}


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not get there in time"
        time.sleep(0.01)


# ---- the breaker


def image_at(host: str, *, before: str | None = None) -> ImageRef:
    return ImageRef(image_id=1, product_id="P", url=f"http://me:secret@{host}.example/1.jpg", failed_before=before)


def failing(code: str = "timeout", *, host: str = "a", before: str | None = None) -> Failure:
    is_retryable = code == "timeout"
    image = image_at(host, before=before)
    return Failure(image=image, stage="fetch", code=code, detail="no answer", is_retryable=is_retryable)


def opens_after(breaker: Breaker, outcomes: Iterable[Failure | str]) -> int | None:
    """The number of outcomes, failures or the hosts of good images, after which it opens; None: never."""
    for count, outcome in enumerate(outcomes, start=1):
        image = image_at(outcome) if isinstance(outcome, str) else outcome.image
        failure = None if isinstance(outcome, str) else outcome
        try:
            breaker.check(image)
        except FetchError as error:
            failure = replace(failing(), image=image, code=error.code)
        breaker.note(image, failure)
        if breaker.is_open:
            return count
    return None


@pytest.mark.parametrize(
    ("outcomes", "opened"),
    [
        ([failing()] * 400, None),  # the end of the run will judge
        ([failing()] * 400 + ["b"] * 1600, None),  # one host of two
        (["b"] * 300 + [failing()] * 300 + ["b"] * 300, None),
        ([failing("http_404")] * 200, 100),  # new products without pictures come in a row
        ([failing("http_404"), "a"] * 200, None),  # half, and no more than half
        ([failing("http_404"), failing("http_404"), "a"] * 200, 100),
        ([failing("http_404", before="http_404")] * 200, None),  # known from earlier nights
    ],
)
def test_the_breaker_opens_when_nobody_answers_or_too_many_fail(
    outcomes: list[Failure | str], opened: int | None
) -> None:
    assert opens_after(Breaker(0.5), outcomes) == opened
    assert opens_after(Breaker(1.0), outcomes) is None


def test_a_host_that_gives_nothing_is_left_alone_and_the_others_go_on() -> None:
    breaker = Breaker(0.5)
    opens_after(breaker, [failing()] * 20)

    with pytest.raises(FetchError) as raised:
        breaker.check(image_at("a"))
    assert raised.value.code == "host_down"
    assert raised.value.message == "its host gave nothing 20 times in a row (timeout) and was left alone"
    opens_after(breaker, ["b"] * 30)
    breaker.judge_all()
    assert not breaker.is_open


def test_the_breaker_judges_a_short_run_at_its_end() -> None:
    few, enough, silent = Breaker(0.5), Breaker(0.5), Breaker(0.5)
    opens_after(few, [failing("http_404")] * 15)
    opens_after(enough, [failing("http_404"), failing("http_404"), "a"] * 8)
    opens_after(silent, [failing()] * 30)
    for breaker in (few, enough, silent):
        breaker.judge_all()

    assert not few.is_open
    with pytest.raises(BreakerError) as raised:
        enough.raise_if_open()
    assert raised.value.message == (
        "16 of the last 24 images failed, more than --max-failure-rate 0.5 allows; 16 of them at a.example "
        "(http_404 16), the last because: no answer"
    )
    with pytest.raises(BreakerError) as raised:
        silent.raise_if_open()
    assert raised.value.message == (
        "30 of 30 images could not be had, more than --max-failure-rate 0.5 allows: nothing is answered at a.example "
        "(timeout), the last because: no answer"
    )


def test_an_open_breaker_ends_the_run_and_keeps_what_is_done() -> None:
    shop = Workshop({number: b"%d" % number for number in range(40)})

    with pytest.raises(BreakerError, match="images failed"):
        shop.run(work=pages(dict.fromkeys(range(5000), b"")), max_failure_rate=0.5)

    fates = shop.fates()
    assert {number: fates[number] for number in range(40)} == dict.fromkeys(range(40), "embedded")
    assert len(fates) < 5000
    assert engine_threads() == []
