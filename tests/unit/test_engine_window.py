"""How far ahead the local engine fetches, in images and in bytes."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from pipeline.engine import window
from tests.fixtures.workshop import Workshop, pages


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
