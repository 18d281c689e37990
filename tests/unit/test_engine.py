"""The local engine with small real stages: nothing is lost, nothing is done twice, and it always ends."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import DeviceLostError
from pipeline.progress import Progress
from tests.fixtures.workshop import (
    BROKEN,
    POOR,
    STRANGE,
    Device,
    Numbered,
    Workshop,
    engine_threads,
    forever,
    pages,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from pipeline.records import Fetched, ImageRef


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
    shop = Workshop({number: b"image %d" % number for number in range(200)}, on_encode=lambda: time.sleep(0.03))
    devices = [Device(shop, "cuda:0", 8, threads=2), Device(shop, "cuda:1", 4)]

    shop.run(devices=devices)

    assert Counter(shop.fates().values()) == {"embedded": 200}
    assert sum(shop.batches) == 200
    assert max(shop.batches) <= 8
    assert all(device.batches > 3 for device in devices)


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
