"""What a run says of itself while it goes on."""

from __future__ import annotations

from dataclasses import replace

from pipeline.commands.live import _counters, _line, _waiting
from pipeline.pace import Outlook
from pipeline.progress import Progress, Steps

UNKNOWN = Outlook(left_s=None, cost=None, expected_cost=None)
NOW = replace(
    Progress().snapshot(), phase="encoding images", total=1000, embedded=400, seconds=20.0, work_seconds=10.0
)


def test_the_line_says_what_is_left_and_what_it_costs() -> None:
    line = "encoding images: 400 of 1,000, 40.0 images/s, 400 embedded, 0 reused, 0 failed"

    assert _line(NOW, UNKNOWN) == line
    assert _line(NOW, replace(UNKNOWN, left_s=3700.0)) == f"{line}, about 1 h 1 min left"
    assert _line(NOW, replace(UNKNOWN, cost=0.5)) == f"{line}, cost 0.50"
    outlook = Outlook(left_s=90.0, cost=0.5, expected_cost=1.25)
    assert _line(NOW, outlook) == f"{line}, about 1 min 30 s left, cost 0.50 of about 1.25"


def test_it_says_that_the_database_is_waited_for() -> None:
    progress = Progress()
    assert _waiting(progress.snapshot()) == ""
    progress.find_away = lambda: 12.34

    now = progress.snapshot()

    assert _waiting(now) == "waiting for the database for 12 s"
    assert _counters(now, UNKNOWN)["database_away_s"] == 12.3


def test_the_line_of_an_index_has_the_cost_too() -> None:
    steps = Steps(done=250, total=1000, unit="vectors", waits_for="", seconds=20)
    now = replace(NOW, phase="building the index", steps=steps)

    line = _line(now, Outlook(left_s=60.0, cost=1.2, expected_cost=1.8))

    assert line == "building the index: 250 of 1,000 vectors, about 60 s left, cost 1.20 of about 1.80"


def test_the_fields_of_a_log_line_are_numbers() -> None:
    found = _counters(NOW, Outlook(left_s=90.04, cost=0.5, expected_cost=1.25))

    assert found == {
        "phase": "encoding images", "unit": "images", "done": 400, "total": 1000, "unchanged": 0, "reused": 0,
        "embedded": 400, "failed": 0, "images_per_s": 40.0, "left_s": 90.0, "cost": 0.5, "expected_cost": 1.25,
    }  # fmt: skip
    assert _counters(NOW, UNKNOWN)["left_s"] is None
    assert "cost" not in _counters(NOW, UNKNOWN)
