"""The timeline of a run: bounded, and true to the counters however often it was thinned out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from pipeline.progress import Progress
from pipeline.report.chart import draw
from pipeline.timeline import MOST_POINTS, MOST_SPANS, Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.progress import Snapshot


def snapshots(phases: list[tuple[str, int, int]]) -> Iterator[Snapshot]:
    """One a second: for each (phase, seconds, embedded per second); three times as many are checked."""
    template, second, embedded = Progress().snapshot(), 0, 0
    for phase, seconds, rate in phases:
        for _ in range(seconds):
            second, embedded = second + 1, embedded + rate
            yield replace(
                template, phase=phase, seconds=float(second), embedded=embedded, checked=3 * embedded, total=1
            )


def timeline_of(*phases: tuple[str, int, int]) -> Timeline:
    timeline = Timeline()
    for snapshot in snapshots(list(phases)):
        timeline.add(snapshot)
    return timeline


@pytest.mark.parametrize("seconds", [1, 2, 299, 300, 301, 10_000])
def test_the_points_are_bounded_and_keep_the_totals(seconds: int) -> None:
    timeline = timeline_of(("encoding images", seconds, 5))
    assert len(timeline.points) <= MOST_POINTS
    assert timeline.points[-1].seconds == timeline.seconds == seconds
    rates = list(timeline.rates(10))
    assert rates == [pytest.approx((5, 15))] * 10


def test_a_long_run_has_points_all_over_its_time() -> None:
    points = timeline_of(("encoding images", 7_200, 5)).points
    gaps = [after.seconds - before.seconds for before, after in pairwise(points)]
    assert len(points) >= MOST_POINTS // 4
    assert max(gaps) <= 7_200 / 70


def test_rates_show_when_a_run_stood_still() -> None:
    timeline = timeline_of(("encoding images", 60, 10), ("encoding images", 20, 0), ("encoding images", 20, 10))
    assert [round(embedded) for embedded, _ in timeline.rates(10)] == [10, 10, 10, 10, 10, 10, 0, 0, 10, 10]


def test_a_timeline_of_nothing_has_no_rates_and_no_drawing() -> None:
    assert list(Timeline().rates(10)) == []
    assert draw(Timeline()) is None


def test_phases_have_their_times() -> None:
    timeline = timeline_of(("syncing products", 4, 0), ("encoding images", 90, 2), ("building the index", 6, 0))
    assert [(span.phase, span.began_s, span.seconds) for span in timeline.spans] == [
        ("syncing products", 0, 4),
        ("encoding images", 4, 90),
        ("building the index", 94, 6),
    ]


def test_phases_that_alternate_for_ever_are_bounded() -> None:
    timeline = timeline_of(("encoding images", 30, 1), *([("waiting", 1, 0), ("building the index", 2, 0)] * 200))
    assert len(timeline.spans) <= MOST_SPANS
    assert timeline.spans[0].phase == "encoding images"
    assert sum(span.seconds for span in timeline.spans) == timeline.seconds == 630
    for before, after in pairwise(timeline.spans):
        assert before.ended_s == after.began_s


def test_the_drawing_has_curves_marks_and_phases() -> None:
    chart = draw(timeline_of(("syncing products", 10, 0), ("encoding images", 90, 40)))
    assert chart is not None
    assert [(curve.name, curve.most, curve.top) for curve in chart.curves] == [
        ("embedded", "40", "50"),
        ("checked", "120", "200"),
    ]
    assert [tick.words for tick in chart.ticks] == ["0", "30 s", "1 min", "1 min 30 s"]
    assert [(part.name, part.at, part.width, part.time) for part in chart.band] == [
        ("syncing products", 0, 10, "10 s"),
        ("encoding images", 10, 90, "1 min 30 s"),
    ]
    assert len(chart.curves[0].bins) == 100
    assert chart.curves[0].bins[-1].words == "1 min 39 s – 1 min 40 s: 40 images/s embedded"


def test_a_drawing_without_images_has_no_curves() -> None:
    chart = draw(timeline_of(("syncing products", 10, 0)))
    assert chart is not None
    assert chart.curves == []
    assert [part.name for part in chart.legend] == ["syncing products"]
