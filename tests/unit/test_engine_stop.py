"""The local engine that is asked to stop: it ends in time, whatever hangs, and keeps what is done."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pipeline.engine import local
from pipeline.engine.stop import Stop
from pipeline.errors import AwayError
from pipeline.progress import Progress
from tests.fixtures.workshop import Numbered, Workshop, engine_threads, forever, pages, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.records import ImageRef, Outcomes


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


def test_a_batch_that_would_not_end_in_time_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop comes with the second one: a third would be too late."""
    monkeypatch.setattr(local, "DRAIN_S", 2.0)
    stop, progress = Stop(), Progress()
    shop = Workshop(Numbered())

    def encode_slowly() -> None:
        if len(shop.batches) == 1:
            stop.ask("SIGTERM")
        time.sleep(1)

    shop.on_encode = encode_slowly
    progress.begin_images("encoding", total=100, untouched=0)

    shop.run(work=pages(range(100)), stop=stop, progress=progress, batch_size=4)

    assert len(shop.batches) == 2
    now = progress.snapshot()
    assert (now.embedded, now.failed, now.done) == (len(shop.fates()), 0, sum(shop.batches))
    assert not stop.left_behind


def test_a_batch_that_does_not_end_in_time_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was encoded before is written; images that nobody encodes any more do not hold up the others."""
    monkeypatch.setattr(local, "DRAIN_S", 2.0)
    stop, is_over = Stop(), threading.Event()
    shop = Workshop(Numbered())

    def hang() -> None:
        if len(shop.batches) == 2:
            stop.ask("SIGTERM")
            assert is_over.wait(20)

    shop.on_encode = hang
    started = time.monotonic()

    shop.run(work=pages(range(300)), stop=stop, batch_size=4)

    took_s = time.monotonic() - started
    fates = shop.fates()
    is_over.set()
    assert took_s < 4
    assert stop.left_behind
    assert set(fates.values()) == {"embedded"}
    assert len(fates) == sum(shop.batches[:2])
    wait_until(lambda: engine_threads() == [])
    assert shop.fates() == fates


def test_an_overdue_stop_decodes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of large photos may wait for the decoder."""
    monkeypatch.setattr(local, "DRAIN_S", 0.2)
    stop = Stop()
    shop = Workshop(Numbered(), on_decode=lambda _: (stop.ask("SIGTERM"), time.sleep(0.1)))
    started = time.monotonic()

    shop.run(work=forever(), stop=stop, window=400, batch_size=4)

    assert time.monotonic() - started < 3
    assert sum(shop.decoded.values()) < 40
    assert engine_threads() == []


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
