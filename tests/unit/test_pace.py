"""What is left of a run and what it costs, from counters as a run makes them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.pace import Outlook, Pace, cost_of, remaining_s, show_cost
from pipeline.progress import Progress, Snapshot, Steps


def at(
    seconds: float, embedded: int, *, total: int | None = 100_000, unchanged: int = 0, failed: int = 0
) -> Snapshot:
    """The counters of a run after so many seconds."""
    now = replace(Progress().snapshot(), seconds=seconds, total=total, unchanged=unchanged, untouched=unchanged)
    return replace(now, embedded=embedded, failed=failed)


def look(pace: Pace, *snapshots: Snapshot) -> Outlook:
    return [pace.look(snapshot) for snapshot in snapshots][-1]


def test_what_is_left_follows_the_rate_of_the_last_minute() -> None:
    pace = Pace()
    slow = [at(second, 10 * second) for second in range(600)]
    assert look(pace, *slow).left_s == pytest.approx((100_000 - 5990) / 10)

    quick = [at(600 + second, 6000 + 100 * second) for second in range(120)]
    assert look(pace, *quick).left_s == pytest.approx((100_000 - quick[-1].done) / 100)


def test_what_needed_no_work_does_not_make_it_look_fast() -> None:
    snapshots = [at(2, 0, total=None), *(at(3 + second, 5 * second, unchanged=90_000) for second in range(20))]

    assert look(Pace(), *snapshots).left_s == pytest.approx((10_000 - 95) / 5)


def test_the_time_until_the_first_image_is_no_work() -> None:
    """The model is loaded, and the first batch fills."""
    snapshots = [*(at(second, 0) for second in range(50)), *(at(50 + second, 100 * second) for second in range(11))]

    assert look(Pace(), *snapshots[:55]).left_s is None  # too early to tell
    assert look(Pace(), *snapshots).left_s == pytest.approx((100_000 - 1000) / 100, rel=0.12)


def test_failures_are_done_too() -> None:
    snapshots = [at(second, 5 * second, failed=5 * second) for second in range(30)]

    assert look(Pace(), *snapshots).left_s == pytest.approx((100_000 - 290) / 10)


def test_a_standstill_has_no_end_and_a_run_that_is_done_no_rest() -> None:
    running = [at(second, 10 * second) for second in range(30)]
    still = [at(30 + second, 290) for second in range(70)]
    pace = Pace()

    assert look(pace, *running).left_s is not None
    assert look(pace, *still).left_s is None
    assert look(pace, at(101, 100_000)).left_s == 0


def test_few_points_are_kept_however_often_it_is_looked() -> None:
    pace = Pace()
    look(pace, *(at(tick / 10, tick) for tick in range(10_000)))

    assert len(pace._points) <= 122


def test_costs_are_those_of_the_whole_run() -> None:
    snapshots = [at(60 + second, 100 * second, total=10_000) for second in range(41)]

    outlook = look(Pace(2.5), *snapshots)

    assert outlook == Outlook(
        left_s=pytest.approx(60), cost=pytest.approx(100 / 3600 * 2.5, abs=1e-4),
        expected_cost=pytest.approx(160 / 3600 * 2.5, abs=1e-4),
    )  # fmt: skip
    early = look(Pace(2.5), at(36, 0, total=None))
    assert early == Outlook(left_s=None, cost=0.025, expected_cost=None)
    assert look(Pace(), *snapshots).cost is None


def test_a_phase_that_counts_something_else_has_its_own_rest() -> None:
    done = at(100, 10_000, total=10_000)
    steps = Steps(done=250, total=1000, unit="vectors", waits_for="", seconds=20)

    outlook = look(Pace(36), done, replace(done, seconds=120, steps=steps))

    assert outlook == Outlook(left_s=60, cost=1.2, expected_cost=1.8)


def test_seconds_and_costs_of_work_to_come() -> None:
    assert (remaining_s(100, 50), remaining_s(0, None), remaining_s(-3, 5), remaining_s(5, 0)) == (2, 0, 0, None)
    assert (cost_of(3600, 2.5), cost_of(None, 2.5), cost_of(10, None), cost_of(0, 2.5)) == (2.5, None, None, 0)
    shown = [show_cost(cost) for cost in (0, 0.00001, 0.0042, 0.123, 12.3, 4321.987)]
    assert shown == ["0.00", "0.0000", "0.0042", "0.12", "12.30", "4,321.99"]
