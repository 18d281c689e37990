"""When too many images fail: which hosts are left alone, and when a run ends."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pipeline.engine.breaker import Breaker
from pipeline.errors import BreakerError, FetchError
from pipeline.records import Failure, ImageRef
from tests.fixtures.workshop import Workshop, engine_threads, pages

if TYPE_CHECKING:
    from collections.abc import Iterable


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
