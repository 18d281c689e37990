"""Nights as cron meets them: failures, plans, reports and metrics, limits of time, and one run at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.catalogs import photo
from tests.fixtures.command import wait_until
from tests.fixtures.http import Answer
from tests.fixtures.nights import DUMP

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Starter
    from tests.fixtures.nights import NightShop

WRITTEN = """
SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)
  FROM pg_stat_user_tables
 WHERE schemaname = 'catvec_store'
"""


# ---- failures


def test_a_passing_failure_is_tried_again_after_a_growing_while(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    night_shop.server.serve("/p/3.jpg", [Answer(status=503)])
    assert night_shop.did(code=3) == {"embedded": 11, "failed": 1}

    assert night_shop.did(code=3) == {"unchanged": 11, "failed": 1, "deferred": 1}
    tried = []
    for _ in range(12):
        night_shop.later("23 hours 55 minutes")
        tried.append("deferred" not in night_shop.did("--recheck", "never", code=3))
    # after 1, 4 and 16 hours the next night tries it, then after 64 hours, then after a week
    assert [place for place, was_tried in enumerate(tried) if was_tried] == [0, 1, 2, 5]
    night_shop.serve("/p/3.jpg", photo(3))
    night_shop.later("7 days")
    assert night_shop.did("--recheck", "never") == {"unchanged": 11, "embedded": 1}
    assert night_shop.query("SELECT * FROM catvec.failures") == []


def test_a_lasting_failure_waits_for_its_row_its_validator_or_somebody_who_asks(night_shop: NightShop) -> None:
    night_shop.stock(*range(24))
    night_shop.serve("/p/3.jpg", photo(3)[:400], etag='"1"')
    assert night_shop.did() == {"embedded": 23, "failed": 1}
    night_shop.later("1 day")
    assert night_shop.did("--recheck", "never")["deferred"] == 1

    # the weekly look is one conditional request
    assert night_shop.did("--recheck", "always") == {"unchanged": 23, "failed": 1, "checked": 23}
    assert [r.headers.get("If-None-Match") for r in night_shop.asked if r.path == "/p/3.jpg"] == ['"1"']
    # a row that changes
    night_shop.rows["P3"]["title"] = "renamed"
    assert "deferred" not in night_shop.did("--recheck", "never")
    assert [r.path for r in night_shop.asked] == ["/p/3.jpg"]
    # somebody who asks
    assert night_shop.did("--recheck", "never")["deferred"] == 1
    assert night_shop.catvec("retry", "--code", "nothing_like_it", "--db", night_shop.url).code == 0
    assert night_shop.did("--recheck", "never")["deferred"] == 1
    assert night_shop.catvec("retry", "--db", night_shop.url).code == 0
    assert night_shop.plan("--recheck", "never")["images"]["retry"] == 1
    assert "deferred" not in night_shop.did("--recheck", "never")
    # another validator
    night_shop.serve("/p/3.jpg", photo(3), etag='"2"')
    assert night_shop.did("--recheck", "always") == {"unchanged": 23, "embedded": 1, "checked": 23}


def test_an_image_that_cannot_be_checked_keeps_its_vector(night_shop: NightShop) -> None:
    night_shop.stock(*range(24))
    night_shop.did()
    night_shop.server.serve("/p/3.jpg", [Answer(status=404)])

    assert night_shop.did("--recheck", "always") == {"unchanged": 23, "failed": 1, "checked": 24}
    assert night_shop.found() == set(night_shop.rows)
    night_shop.serve("/p/3.jpg", photo(3))
    assert night_shop.did("--recheck", "always") == {"unchanged": 24, "checked": 24}
    assert night_shop.query("SELECT * FROM catvec.failures") == []


@pytest.mark.parametrize("answer", [Answer(status=503), Answer(body=b"<html>We are down for maintenance</html>")])
def test_a_server_that_is_down_stops_the_run_and_removes_nothing(night_shop: NightShop, answer: Answer) -> None:
    night_shop.stock(*range(30))
    night_shop.did()
    images = [f"/p/{number}.jpg" for number in range(30)]
    for path in images:
        night_shop.server.serve(path, [answer])
    del night_shop.rows["P0"]

    outcome = night_shop.run("--recheck", "always")

    summary = outcome.json()
    assert (outcome.code, summary["stopped_by"], summary["removed"]) == (4, "failure_rate", 0)
    assert "at 127.0.0.1" in outcome.err  # the host
    if answer.body:
        assert "We are down for maintenance" in outcome.err
    assert "nothing was removed" in outcome.err
    assert "P0" in night_shop.found()
    assert night_shop.query("SELECT state FROM catvec.run_status ORDER BY run_id") == [("finished",), ("failed",)]
    # the next run tries them at once, and then removes what is gone
    for number, path in enumerate(images):
        night_shop.serve(path, photo(number))
    assert night_shop.did()["removed"] == 1
    assert (night_shop.query("SELECT * FROM catvec.failures"), night_shop.found()) == ([], set(night_shop.rows))


# ---- plan, report, metrics


def test_a_plan_says_what_the_run_then_does_and_writes_nothing(night_shop: NightShop) -> None:
    night_shop.stock(*range(24))
    night_shop.server.serve("/p/9.jpg", [Answer(status=503)])
    night_shop.did()
    night_shop.stock(30, 31)
    del night_shop.rows["P0"]
    night_shop.rows["P1"]["title"] = "renamed"
    night_shop.serve("/moved/2.jpg", photo(2))
    night_shop.rows["P2"]["images"] = ["/moved/2.jpg"]
    before, written = night_shop.query(DUMP), night_shop.query(WRITTEN)

    plan = night_shop.plan("--recheck", "always")

    assert plan["products"] == {"new": 2, "changed": 1, "unchanged": 22, "removed": 1}
    assert plan["images"] == {
        "new": 2,
        "moved": 1,
        "back": 0,
        "missing": 0,
        "recheck": 21,
        "retry": 0,
        "deferred": 1,
        "unchanged": 0,
        "removed": 1,
    }
    assert (plan["to_fetch"], plan["refusal"]) == (24, None)
    assert (night_shop.query(DUMP), night_shop.query(WRITTEN)) == (before, written)
    dry = night_shop.run("--recheck", "always", "--dry-run")
    assert (dry.code, dry.json()) == (0, plan)
    summary = night_shop.run("--recheck", "always").json()
    assert len(night_shop.asked) == plan["to_fetch"]
    assert (summary["embedded"], summary["reused"], summary["checked"], summary["removed"]) == (2, 1, 21, 1)


def test_a_plan_of_a_database_that_catvec_has_never_seen(night_shop: NightShop, empty_database_url: str) -> None:
    night_shop.stock(0, 1)
    options = ("--model", night_shop.model, "--db", empty_database_url, "--json")

    plan = night_shop.catvec("plan", night_shop.write(), *options).json()

    assert (plan["is_new_model"], plan["products"]["new"], plan["to_fetch"]) == (True, 2, 2)


def test_a_plan_foretells_a_refusal(night_shop: NightShop) -> None:
    night_shop.stock(*range(20))
    night_shop.did()
    night_shop.rows = {"P0": night_shop.rows["P0"]}

    outcome = night_shop.catvec("plan", night_shop.write(), *night_shop.options)

    assert outcome.code == 0
    assert "19 of the 20 products" in outcome.json()["refusal"]


def test_report_and_metrics_are_written_also_when_the_run_fails(night_shop: NightShop, tmp_path: Path) -> None:
    night_shop.stock(*range(24))
    report, metrics = tmp_path / "night.html", tmp_path / "catvec.prom"
    outputs = ("--report", report, "--metrics-file", metrics)

    outcome = night_shop.run(*outputs)

    assert outcome.code == 0, outcome.err
    assert f"report: {report}" in outcome.err
    assert "<svg" in report.read_text(encoding="utf-8")
    assert "catvec_run_exit_code{" in metrics.read_text(encoding="utf-8")
    night_shop.rows = {"P0": night_shop.rows["P0"]}
    assert night_shop.run(*outputs).code == 1
    lines = metrics.read_text(encoding="utf-8").splitlines()
    assert [line.rpartition(" ")[2] for line in lines if line.startswith("catvec_run_exit_code{")] == ["1.0"]
    assert night_shop.run("--report", tmp_path).code == 2


# ---- one at a time, time, interruptions


@pytest.mark.slow
def test_a_second_run_waits_as_long_as_it_is_told_to(night_shop: NightShop, catvec_process: Starter) -> None:
    night_shop.stock(*range(3))
    may_go_on = threading.Event()
    night_shop.server.serve("/p/2.jpg", [Answer(body=photo(2), after=may_go_on)])
    command = ("run", night_shop.write(), *night_shop.options)
    first = catvec_process(*command)
    wait_until(lambda: night_shop.server.requests["/p/2.jpg"] > 0, first)

    impatient = night_shop.catvec(*command, "--wait", "1s")
    threading.Timer(1.0, may_go_on.set).start()
    patient = night_shop.catvec(*command, "--wait", "2m")

    assert (impatient.code, f"process {first.pid}" in impatient.err) == (75, True)
    assert "waiting for another run" in patient.err
    assert (patient.code, patient.json()["unchanged"]) == (0, 3)
    first.communicate(timeout=30)
    assert first.returncode == 0


@pytest.mark.slow
def test_a_run_whose_time_is_up_ends_in_order_and_the_next_goes_on(night_shop: NightShop) -> None:
    night_shop.stock(*range(30))
    night_shop.did()
    night_shop.stock(30, 31)
    night_shop.server.serve("/p/31.jpg", [Answer(body=photo(31), wait_s=25)])
    del night_shop.rows["P0"]

    outcome = night_shop.run("--max-runtime", "4s")

    summary = outcome.json()
    assert outcome.code == 0
    assert (summary["finished"], summary["stopped_by"], summary["pending"]) == (False, "max_runtime", 1)
    assert (summary["removed"], "P0" in night_shop.found()) == (1, False)
    assert "stopped early (max_runtime); to go on, run the same command again" in outcome.err
    night_shop.serve("/p/31.jpg", photo(31))
    assert night_shop.did() == {"unchanged": 30, "embedded": 1}


@pytest.mark.slow
def test_a_run_that_was_killed_is_closed_as_lost_and_removes_nothing(
    night_shop: NightShop, catvec_process: Starter
) -> None:
    night_shop.stock(*range(30))
    night_shop.did()
    night_shop.stock(30)
    night_shop.server.serve("/p/30.jpg", [Answer(body=photo(30), wait_s=60)])
    del night_shop.rows["P0"]
    killed = catvec_process("run", night_shop.write(), *night_shop.options)
    wait_until(lambda: night_shop.server.requests["/p/30.jpg"] > 0, killed)
    killed.kill()
    killed.communicate()

    assert "P0" in night_shop.found()
    night_shop.serve("/p/30.jpg", photo(30))
    assert night_shop.did() == {"unchanged": 29, "embedded": 1, "removed": 1}
    states = [row[0] for row in night_shop.query("SELECT state FROM catvec.run_status ORDER BY run_id")]
    assert states == ["finished", "lost", "finished"]
    assert night_shop.found() == set(night_shop.rows)


@pytest.mark.parametrize("option", ["--max-runtime", "--wait", "--recheck", "--forget-after"])
def test_a_duration_that_is_none_is_named(night_shop: NightShop, option: str) -> None:
    night_shop.stock(0)

    outcome = night_shop.run(option, "soon")

    assert outcome.code == 2
    assert "'soon' is no duration, expected for example 90s, 30m, 3h, 7d or 1h30m" in outcome.err


@pytest.mark.parametrize("option", ["--recheck", "--full-check", "--forget-after"])
def test_an_age_without_a_unit_is_refused(night_shop: NightShop, option: str) -> None:
    night_shop.stock(0)

    outcome = night_shop.run(option, "30")

    assert (outcome.code, "'30' has no unit, expected for example 30d, or always or never" in outcome.err) == (
        2,
        True,
    )


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a small file system of its own needs root")
def test_a_report_for_which_there_is_no_room_does_not_undo_the_run(night_shop: NightShop, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", full], check=False, capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no small file system: {mount.stderr.strip()}")
    night_shop.stock(*range(3))
    try:
        outcome = night_shop.run("--report", full / "night.html")
        left = list(full.iterdir())
    finally:
        subprocess.run(["umount", full], check=True)

    assert (outcome.code, outcome.json()["embedded"], left) == (0, 3, [])
    assert "warning: no report:" in outcome.err
    assert "no space left on device" in outcome.err
