"""What waits for a database that is away: in order, bounded, and nothing left behind."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.engine import backlog, local, spill
from pipeline.engine.ahead import ReadAhead
from pipeline.engine.backlog import Backlog
from pipeline.engine.channel import Aborted
from pipeline.engine.stop import Stop
from pipeline.progress import Progress
from pipeline.records import Content, Embedding, Failure, ImageRef
from tests.fixtures.workshop import Numbered, Workshop, engine_threads, forever, pages, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Item = Embedding | Failure
CHUNK = 100
DIMS = 512


class Away:
    """Whether the database is."""

    def __init__(self, is_away: bool = True) -> None:
        self.now = is_away

    def __call__(self) -> bool:
        return self.now


def chunk(first: int) -> list[Item]:
    """99 vectors and a failure."""
    images = [ImageRef(image_id=n, product_id=f"P{n}", url=f"{n}.jpg") for n in range(first, first + CHUNK)]
    vectors = np.random.default_rng(first).standard_normal((CHUNK, DIMS), dtype=np.float32)
    items: list[Item] = [
        Embedding(content=Content(image=image, sha256=bytes(32), size_bytes=1), width=4, height=3, vector=vector)
        for image, vector in zip(images, vectors, strict=True)
    ]
    items[-1] = Failure(image=images[-1], stage="fetch", code="timeout", detail="no answer", is_retryable=True)
    return items


def make(is_away: Callable[[], bool]) -> Backlog[Item]:
    return Backlog(is_away, threading.Event())


def ids(items: list[Item]) -> list[int]:
    return [item.image.image_id for item in items]


def puts_at_once(waiting: Backlog[Item], items: list[Item]) -> bool:
    """Whether there was room; what found none is still waiting in its thread."""
    thread = threading.Thread(target=waiting.put, args=(items,), daemon=True)
    thread.start()
    thread.join(0.5)
    return not thread.is_alive()


def test_one_chunk_waits_for_a_database_that_answers() -> None:
    waiting = make(Away(False))

    assert puts_at_once(waiting, chunk(0))
    assert not puts_at_once(waiting, chunk(100))

    assert ids(waiting.take(CHUNK)) == list(range(100))
    assert ids(waiting.take(CHUNK)) == list(range(100, 200))


def test_all_waits_for_one_that_is_away_and_comes_out_as_it_went_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backlog, "MEMORY_BYTES", 1_000_000)
    away = Away()
    waiting = make(away)
    chunks = [chunk(first) for first in range(0, 2000, CHUNK)]
    for items in chunks:
        waiting.put(items)
    away.now = False
    waiting.put(chunk(2000))  # comes while the others are written
    waiting.close()

    out = []
    while items := waiting.take(250):
        assert len(items) <= 250
        out += items

    expected = [item for items in [*chunks, chunk(2000)] for item in items]
    assert ids(out) == ids(expected)
    for found, wanted in zip(out, expected, strict=True):
        assert type(found) is type(wanted)
        if isinstance(found, Embedding) and isinstance(wanted, Embedding):
            assert found.content == wanted.content
            assert np.array_equal(found.vector, wanted.vector)
        else:
            assert found == wanted
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    began, ended = [record.message for record in caplog.records]
    assert began.startswith("200 images wait for the database in 1 MB of memory; what follows waits in a file in /")
    assert ended == "what waited for the database is written: 2000 images, 4 MB of it from the file"


def test_memory_is_bounded_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MEMORY_BYTES", 5_000_000)
    waiting = make(Away())
    with waiting:
        tracemalloc.start()
        for first in range(0, 20_000, CHUNK):
            waiting.put(chunk(first))
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert 20_000 * DIMS * 4 > 40_000_000
    assert now < 6_000_000
    assert peak < 7_000_000


def test_the_file_is_nobody_elses_and_nothing_is_left_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = spill.SpillFile()
    place = file.append(b"secret")
    descriptor = file._file.fileno()
    state = os.fstat(descriptor)

    assert file.read(place) == b"secret"
    assert list(tmp_path.iterdir()) == []
    assert (state.st_nlink, state.st_mode & 0o777) == (0, 0o600)
    file.close()


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("FILE_BYTES", 300_000, "it has reached 0.0 GB"),
        ("LEFT_FREE_BYTES", 1 << 60, "less than 1152921504607 MB would stay free"),
    ],
)
def test_a_full_disk_holds_up_the_device_and_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str, value: int, words: str
) -> None:
    monkeypatch.setattr(backlog, "MEMORY_BYTES", 1)
    monkeypatch.setattr(spill, limit, value)
    away = Away()
    waiting = make(away)
    taken: list[int] = []
    put: list[int] = []

    def put_all() -> None:
        for first in range(0, 1000, CHUNK):
            waiting.put(chunk(first))
            put.append(first)
        waiting.close()

    thread = threading.Thread(target=put_all, daemon=True)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    assert len(put) in {1, 2}
    away.now = False
    while items := waiting.take(CHUNK):
        taken += ids(items)
    thread.join(5)

    assert taken == list(range(1000))
    [full] = [record.message for record in caplog.records if "no more can wait" in record.message]
    assert words in full


def test_no_folder_for_the_file_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(backlog, "MEMORY_BYTES", 1)
    waiting = make(Away())
    waiting.put(chunk(0))

    assert not puts_at_once(waiting, chunk(100))

    assert "No such file or directory" in caplog.text
    assert ids(waiting.take(CHUNK)) == list(range(100))
    assert ids(waiting.take(CHUNK)) == list(range(100, 200))


def test_waiting_ends_when_the_engine_fails() -> None:
    aborted = threading.Event()
    waiting: Backlog[Item] = Backlog(Away(False), aborted)
    waiting.put(chunk(0))
    aborted.set()

    with pytest.raises(Aborted):
        waiting.put(chunk(100))
    with pytest.raises(Aborted):
        ReadAhead(aborted).take()


# ---- in the engine


class Outage:
    """The workshop's database goes away with its second transaction, until `back` is set."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.back = threading.Event()
        self.away = Away(False)
        shop.on_write = self.maybe_wait
        shop.is_away = self.away

    def maybe_wait(self) -> None:
        if len(self.shop.written) == 1 and not self.back.is_set():
            self.away.now = True
            assert self.back.wait(20)
            self.away.now = False

    def run(self, images: int, **settings: Any) -> threading.Thread:
        settings |= {"work": pages(range(images))}
        thread = threading.Thread(target=self.shop.run, kwargs=settings, daemon=True)
        thread.start()
        return thread


def test_the_device_goes_on_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (local, "WRITE_IMAGES", 20),
        (local, "OUTCOMES", 40),
        (backlog, "MEMORY_BYTES", 50_000),
    ):
        monkeypatch.setattr(module, name, value)
    shop, progress = Workshop(Numbered()), Progress()
    outage = Outage(shop)

    thread = outage.run(1000, progress=progress)
    wait_until(lambda: sum(shop.batches) == 1000)  # the device has seen all of them
    assert progress.snapshot().embedded == 20
    outage.back.set()
    thread.join(20)

    assert shop.fates() == dict.fromkeys(range(1000), "embedded")
    assert progress.snapshot().embedded == 1000
    assert engine_threads() == []


def test_a_slow_database_holds_up_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there: what kill -9 could cost stays small."""
    for name, value in (("WRITE_IMAGES", 20), ("OUTCOMES", 40)):
        monkeypatch.setattr(local, name, value)
    shop = Workshop(Numbered())
    ahead_most = []

    def be_slow() -> None:
        time.sleep(0.02)
        ahead_most.append(sum(shop.batches) - sum(len(done) for done in shop.written))

    shop.on_write = be_slow
    shop.run(work=pages(range(1000)))

    assert max(ahead_most) <= 20 + 20 + 20 + 40 + 8 + 8  # written, waiting, collected, channel, batch


def test_images_of_the_same_bytes_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in ((local, "TWINS", 300), (local, "LOOKUP_IMAGES", 50)):
        monkeypatch.setattr(module, name, value)
    shop = Workshop(dict.fromkeys(range(900), b"good") | {0: b"other"})
    shop.fetch_wait_s = lambda number: 0.0 if number == 0 else 0.01 if number > 40 else 1.5  # one transaction before
    outage = Outage(shop)

    thread = outage.run(900)
    wait_until(lambda: len(shop.arrived) > 300)
    time.sleep(1.0)
    assert len(shop.arrived) < 500
    outage.back.set()
    thread.join(20)

    assert len(shop.fates()) == 900


def test_less_than_a_chunk_can_be_taken() -> None:
    waiting = make(Away())
    waiting.put(chunk(0))
    waiting.put(chunk(100))
    waiting.close()

    assert [ids(waiting.take(64)) for _ in range(4)] == [
        list(range(64)),
        list(range(64, 100)),
        list(range(100, 164)),
        list(range(164, 200)),
    ]
    assert waiting.take(64) == []


def test_what_was_dropped_is_not_told_as_written(caplog: pytest.LogCaptureFixture) -> None:
    waiting = make(Away())
    for first in (0, 100, 200):
        waiting.put(chunk(first))
    waiting.close()

    waiting.take(CHUNK)
    waiting.drop(waiting.take(CHUNK))
    waiting.drop(waiting.take(CHUNK))
    assert waiting.take(CHUNK) == []

    assert [record.message for record in caplog.records] == [
        "not all that waited for the database is written: 200 images are left to the next run"
    ]


def test_an_overdue_stop_leaves_undone_what_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in ((local, "WRITE_IMAGES", 20), (local, "DRAIN_S", 0.0)):
        monkeypatch.setattr(module, name, value)
    stop = Stop()
    shop = Workshop(Numbered())
    outage = Outage(shop)

    thread = outage.run(1000, stop=stop)
    wait_until(lambda: sum(shop.batches) == 1000)
    stop.ask("SIGTERM")
    outage.back.set()
    thread.join(5)

    assert not thread.is_alive()
    assert set(shop.fates().values()) == {"embedded"}
    assert 20 <= len(shop.fates()) <= 100


def test_the_work_list_is_read_ahead_and_no_further() -> None:
    read = [0]

    def counted() -> object:
        for page in forever():
            read[0] += len(page)
            yield page

    stop = Stop()
    shop = Workshop(Numbered(), fetch_wait_s=lambda _: 0.01)
    thread = threading.Thread(target=shop.run, kwargs={"work": counted(), "stop": stop, "window": 5, "ahead": 1000})
    thread.start()
    wait_until(lambda: read[0] >= 1000)
    time.sleep(0.2)
    stop.ask("SIGTERM")
    thread.join(5)

    assert read[0] <= 1000 + len(shop.begun) + 150
    assert not thread.is_alive()
