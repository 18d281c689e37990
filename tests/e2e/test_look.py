"""`catvec status`, `failures` and `retry`, as they are read in the morning."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from pipeline.store.connect import Session
from pipeline.store.runs import take_lock
from tests.fixtures.catalogs import photo
from tests.fixtures.failures import CDN, ailing, end_run
from tests.fixtures.roles import READER, grant, login

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec
    from tests.fixtures.http import ImageServer
    from tests.fixtures.store import Shop


def test_failures_are_shown_by_code_and_host(shop: Shop, catvec: Catvec, database_url: str) -> None:
    ailing(shop)

    outcome = catvec("failures", "--db", database_url)

    assert outcome.code == 0
    lines = [line.split() for line in outcome.out.splitlines() if line.strip()]
    assert lines[0] == ["code", "host", "kind", "count", "tried", "next", "try", "for", "example"]
    change = ["on", "change"]
    assert lines[2] == ["http_404", "cdn.example.com", "permanent", "3", "1–3", *change, "P1", f"{CDN}/1.jpg"]
    assert lines[3] == ["not", "there"]
    assert [line[0] for line in lines[2:] if len(line) > 3] == ["http_404", "http_503", "missing_id", "timeout"]
    assert "missing_id   –" in outcome.out
    assert outcome.err.splitlines() == [
        "one by one: catvec failures --list --db …; to try them in the next run: catvec retry --code CODE --db …"
    ]
    assert "s3cret" not in outcome.out
    assert "t0ken" not in outcome.out


def test_failures_are_shown_one_by_one(shop: Shop, catvec: Catvec, database_url: str) -> None:
    ailing(shop)

    outcome = catvec("failures", "--list", "--host", "cdn.example.com", "--limit", 3, "--db", database_url)

    lines = [line.split() for line in outcome.out.splitlines() if line.strip()]
    assert lines[0] == ["product", "code", "stage", "kind", "tries", "next", "try", "image", "why"]
    assert lines[2] == ["P1", "http_404", "fetch", "permanent", "1", "on", "change", f"{CDN}/1.jpg", "not", "there"]
    assert [line[0] for line in lines[2:]] == ["P1", "P2", "P3"]
    assert outcome.err == "the newest 3 of 4; more with --limit\n"


def test_failures_as_json(shop: Shop, catvec: Catvec, database_url: str) -> None:
    ailing(shop)

    found = catvec("failures", "--kind", "transient", "--limit", 1, "--json", "--db", database_url).json()

    assert set(found) == {"groups", "failures"}
    busy, _ = found["groups"]
    assert busy.pop("next_try_at") == found["failures"][0]["next_try_at"]
    assert busy == {
        "code": "http_503",
        "host": "cdn.example.com",
        "stage": "fetch",
        "kind": "transient",
        "failures": 1,
        "due": 0,
        "attempts_least": 2,
        "attempts_most": 2,
        "samples": [{"product_id": "P4", "url": f"{CDN}/4.jpg", "detail": "not there"}],
    }
    assert [(entry["product_id"], entry["kind"]) for entry in found["failures"]] == [("P4", "transient")]


def test_without_failures_there_is_nothing_to_show(shop: Shop, catvec: Catvec, database_url: str) -> None:
    assert catvec("failures", "--db", database_url).err == "nothing has failed\n"
    assert catvec("failures", "--json", "--db", database_url).json() == {"groups": [], "failures": []}
    ailing(shop)
    outcome = catvec("failures", "--code", "http_999", "--db", database_url)
    assert (outcome.code, outcome.err) == (0, "no failure is like that; without options all show\n")


def test_retry_says_what_is_due_and_what_comes_next(shop: Shop, catvec: Catvec, database_url: str) -> None:
    ailing(shop)

    some = catvec("retry", "--code", "http_404", "--host", "cdn.example.com", "--db", database_url)
    one = catvec("retry", "--product", "P4", "--db", database_url)
    everything = catvec("retry", "--json", "--db", database_url)

    assert (some.code, some.out) == (0, "")
    assert some.err == "3 images are due in the next run; next: catvec run CATALOG --db …\n"
    assert one.err == "1 image is due in the next run; next: catvec run CATALOG --db …\n"
    assert everything.json() == {"due": 5, "catalog_rows": 1}
    assert everything.err.startswith("1 catalog row is among them: every run reads the catalog anew\n")
    table = catvec("failures", "--db", database_url).out
    assert table.count("next run") == 4


def test_the_next_run_tries_what_was_asked_for(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str, image_server: ImageServer
) -> None:
    catalog = shop_catalog(3)
    with catalog.open("a", encoding="utf-8") as file:
        file.write(f"GONE,gone,odd,{image_server.url('/gone.jpg')},1,red\n")
    options = ("--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--tolerate-failures", 1)
    command = ("run", catalog, *options, "--json")
    assert catvec(*command).json()["failures_by_code"] == {"http_404": 1}
    image_server.serve("/gone.jpg", photo(99))

    alone = catvec(*command).json()
    retried = catvec("retry", "--host", "127.0.0.1", "--db", database_url, "--json").json()
    asked = catvec(*command).json()

    assert (alone["embedded"], alone["failed"], alone["deferred"]) == (0, 1, 1)
    assert retried == {"due": 1, "catalog_rows": 0}
    assert (asked["embedded"], asked["failed"], asked["deferred"]) == (1, 0, 0)
    assert catvec("failures", "--db", database_url).err == "nothing has failed\n"
    [oldest] = [entry["oldest_check"] for entry in catvec("status", "--db", database_url, "--json").json()["models"]]
    assert oldest is not None


def test_retry_of_nothing_is_no_error(shop: Shop, catvec: Catvec, database_url: str) -> None:
    ailing(shop)

    outcome = catvec("retry", "--code", "http_999", "--db", database_url)

    assert (outcome.code, outcome.err) == (0, "no failed image is like that; see: catvec failures --db …\n")


def test_retry_under_an_unknown_model_is_refused(shop: Shop, catvec: Catvec, database_url: str) -> None:
    ailing(shop)
    assert catvec("retry", "--model", "nope", "--db", database_url).complaint() == (
        2,
        "no model 'nope' in this database, there are: tiny",
        "see: catvec models",
    )


def test_status_begins_with_what_to_do(catvec: Catvec, database_url: str) -> None:
    outcome = catvec("status", "--db", database_url)
    assert (outcome.code, outcome.out) == (0, "0 products\n")
    assert outcome.err == "no run yet; begin with: catvec run CATALOG\n"


def test_status_says_what_became_of_the_last_runs(shop: Shop, catvec: Catvec, database_url: str) -> None:
    model = ailing(shop)
    for _ in range(3):
        end_run(shop, model, seconds=100)
    end_run(shop, model, seconds=420, failed=250)
    end_run(shop, model, state="failed", error="the catalog is empty")
    end_run(shop, model, state="stopped", summary={"stopped_by": "max_runtime", "pending": 1234})
    with Session(database_url, on_connect=lambda connection: take_lock(connection, model.name)):
        shop.begin(model)
        alive = catvec("status", "--db", database_url)
    gone = catvec("status", "--db", database_url)

    assert alive.code == 0
    assert "5 products" in alive.out.splitlines()[0]
    assert f"run 7 is going on: process {os.getpid()} on {socket.gethostname()}, since 20" in alive.out
    assert (
        f"run 7 is lost: process {os.getpid()} on {socket.gethostname()} disappeared, last sign of life " in gone.out
    )
    assert "run 6 was stopped by max_runtime, 1,234 images pending\n" in gone.out
    assert "run 5 failed: the catalog is empty\n" in gone.out
    assert "the last run took 4.2 times the median of the 3 before it\n" in gone.out
    assert "in the last run 25.0% of the images failed, the median of the 3 before it is 0.0%\n" in gone.out
    assert "▃▃▃█" in gone.out
    assert gone.err == "see why: catvec failures --db …\n"


def test_status_as_json_has_the_keys_that_are_promised(shop: Shop, catvec: Catvec, database_url: str) -> None:
    model = ailing(shop)
    end_run(shop, model, seconds=100)
    end_run(shop, model, seconds=100)

    found = catvec("status", "--json", "--db", database_url).json()

    assert list(found) == ["products", "models", "runs", "trends", "failures", "leftovers", "unseen"]
    assert list(found["models"][0]) == ["model", "coverage", "index", "oldest_check"]
    assert {"run_id", "model", "state", "is_lost", "heartbeat_age_s", "pending", "stopped_by"} < set(found["runs"][0])
    [trend] = found["trends"]
    assert list(trend) == ["model", "catalog", "shard", "runs", "medians", "remarks"]
    assert trend["medians"] == {"seconds": 100.0, "embedded": 10, "failed_share": 0.0}
    assert list(found["failures"][0]) == ["stage", "code", "failures", "due", "deferred", "sample"]
    assert found["leftovers"] == {"products": 0, "images": 0, "vectors": 0, "since": None}
    assert found["unseen"] == []


@pytest.mark.usefixtures("roles")
def test_status_works_for_a_reader(shop: Shop, catvec: Catvec, database_url: str) -> None:
    end_run(shop, ailing(shop))
    grant(database_url)

    outcome = catvec("status", "--db", login(database_url, READER))

    assert outcome.code == 0
    assert "about 0" in outcome.out
    assert outcome.err.splitlines()[-1] == (
        f"user {READER!r} may not see coverage, indexes, checks and what waits to be deleted; "
        "the owner and writers may"
    )
