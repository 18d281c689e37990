"""What `catvec status` says of the last run beside those before it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline.commands.look import sparkline
from pipeline.status import Medians, find_trends
from pipeline.store.status import PastRun


def past(seconds: float, *, embedded: int = 10, failed_share: float = 0.0, catalog: str = "default") -> PastRun:
    return PastRun(
        model="tiny",
        catalog=catalog,
        run_id=1,
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=seconds,
        embedded=embedded,
        failed_share=failed_share,
        shard=None,
    )


def test_a_run_like_those_before_it_is_worth_no_words() -> None:
    [trend] = find_trends([past(60), past(61, embedded=12), past(70, embedded=30), past(62, embedded=8)])

    assert trend.remarks == ()
    assert trend.medians == Medians(seconds=61, embedded=12, failed_share=0.0)


def test_a_slow_run_is_remarked_on() -> None:
    [trend] = find_trends([*(past(100) for _ in range(13)), past(310)])
    assert trend.remarks == ("the last run took 3.1 times the median of the 13 before it",)


def test_a_run_with_more_failures_is_remarked_on() -> None:
    [trend] = find_trends([*(past(100, failed_share=0.002) for _ in range(13)), past(100, failed_share=0.12)])
    assert trend.remarks == ("in the last run 12.0% of the images failed, the median of the 13 before it is 0.2%",)


@pytest.mark.parametrize(
    "runs",
    [
        [past(100), past(100), past(900)],  # two runs are no habit
        [past(1), past(1), past(1), past(9)],  # nine times nearly nothing
        [past(60, failed_share=0.001)] * 3 + [past(60, failed_share=0.009)],
        [past(60)] * 13 + [past(20)],  # quicker is fine
    ],
)
def test_what_means_little_is_not_remarked_on(runs: list[PastRun]) -> None:
    [trend] = find_trends(runs)
    assert trend.remarks == ()


def test_catalogs_are_compared_with_themselves() -> None:
    trends = find_trends(
        [past(10), past(11), past(500, catalog="shoes"), past(600, catalog="shoes"), past(1, catalog="x")]
    )
    assert [(trend.catalog, trend.medians.seconds) for trend in trends] == [("default", 10), ("shoes", 500)]


def test_a_sparkline_shows_the_greatest_as_the_highest() -> None:
    assert sparkline([0, 1, 2, 4, 8, 7]) == "▁▂▃▅█▇"
    assert sparkline([0, 0]) == "▁▁"
