"""One look at a database: runs alive and lost, trends, the oldest check, what waits, and what a reader sees of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.status import read_status
from pipeline.store.connect import Session
from pipeline.store.runs import take_lock
from tests.fixtures.failures import ailing, end_run
from tests.fixtures.roles import READER, WRITER, grant, login
from tests.fixtures.store import product, unit

if TYPE_CHECKING:
    from tests.fixtures.store import Shop


def test_a_run_that_holds_its_lock_is_alive(shop: Shop, database_url: str) -> None:
    model = shop.register()
    with Session(database_url, on_connect=lambda connection: take_lock(connection, model.name)):
        shop.begin(model)
        [alive] = read_status(database_url).runs
    [gone] = read_status(database_url).runs

    assert (alive.state, alive.is_lost, alive.finished_at, alive.seconds) == ("running", False, None, None)
    assert 0 <= alive.heartbeat_age_s < 60
    assert (gone.state, gone.is_lost) == ("running", True)


def test_the_next_run_closes_a_lost_one(shop: Shop, database_url: str) -> None:
    model = shop.register()
    shop.begin(model)
    shop.begin(model)

    new, old = read_status(database_url).runs

    assert (old.state, old.is_lost, old.error) == ("lost", True, "the process or its connection disappeared")
    assert new.run_id > old.run_id


def test_runs_show_what_their_summary_says(shop: Shop, database_url: str) -> None:
    model = shop.register()
    summary: dict[str, object] = {
        "pending": 3,
        "checked": 7,
        "changed": 2,
        "seconds": 12.5,
        "stopped_by": "max_runtime",
    }
    end_run(shop, model, state="stopped", summary=summary)
    end_run(shop, model, seconds=50)

    old, new = read_status(database_url).runs

    assert (new.pending, new.checked, new.changed, new.seconds, new.stopped_by) == (3, 7, 2, 12.5, "max_runtime")
    assert (old.pending, old.checked, old.seconds, old.stopped_by) == (None, None, 50, None)


def test_the_trend_is_of_the_last_14_finished_runs_of_a_catalog(shop: Shop, database_url: str) -> None:
    model = shop.register()
    for night in range(15):
        end_run(shop, model, seconds=60 + night, embedded=night, failed=night, summary={"seconds": 30 + night})
    end_run(shop, model, state="failed", seconds=9999)
    end_run(shop, model, seconds=500, catalog="shoes")
    end_run(shop, model, seconds=900, catalog="shoes")

    default, shoes = read_status(database_url).trends

    assert (default.model, default.catalog) == ("tiny", "default")
    assert [run.seconds for run in default.runs] == [30 + night for night in range(1, 15)]
    assert [run.embedded for run in default.runs] == list(range(1, 15))
    assert default.runs[-1].failed_share == 0.014
    assert default.medians.seconds == 37
    # no summary: by the clock
    assert [run.seconds for run in shoes.runs] == [500, 900]


def test_the_oldest_check_is_of_images_at_urls_that_have_a_vector(shop: Shop, database_url: str) -> None:
    shop.sync(
        product("A", "https://cdn/a.jpg"),
        product("B", "https://cdn/b.jpg", row=2),
        product("C", "c.jpg", row=3),
    )
    model = shop.register()
    assert read_status(database_url).models[0].oldest_check is None
    shop.embed(model, [unit(1, 0, 0, 0), unit(0, 1, 0, 0), unit(0, 0, 1, 0)])
    for name, age in (("A", "1 day"), ("B", "5 days"), ("C", "9 days")):
        shop.session.connection().execute(
            f"UPDATE catvec_store.images SET checked_at = now() - interval '{age}' WHERE product_id = '{name}'"  # type: ignore[arg-type]
        )
    shop.sync(
        product("A", "https://cdn/a.jpg"),
        product("B", "https://cdn/b.jpg", row=2),
        product("C", "c.jpg", row=3),
        product("NEW", "https://cdn/new.jpg", row=4),
    )

    [found] = read_status(database_url).models

    assert found.oldest_check == shop.one("SELECT checked_at FROM catvec_store.images WHERE product_id = 'B'")
    assert found.coverage is not None
    assert (found.coverage.images, found.coverage.embedded) == (4, 3)


def test_what_waits_to_be_deleted_is_counted(shop: Shop, database_url: str) -> None:
    shop.sync(product("A", "a.jpg", "b.jpg"), product("B", "c.jpg", row=2))
    execute = shop.session.connection().execute
    empty = read_status(database_url).leftovers
    execute("UPDATE catvec_store.products SET missing_since = '2026-01-03Z' WHERE product_id = 'A'")
    execute("UPDATE catvec_store.images SET missing_since = '2026-01-03Z' WHERE product_id = 'A'")
    execute(
        "INSERT INTO catvec_store.unused_contents (model_id, content_sha256, since) VALUES (%s, sha256('x'), %s)",
        (shop.register().model_id, "2026-01-02Z"),
    )

    found = read_status(database_url).leftovers

    assert empty is not None
    assert (empty.products, empty.images, empty.vectors, empty.since) == (0, 0, 0, None)
    assert found is not None
    assert (found.products, found.images, found.vectors) == (1, 2, 1)
    assert f"{found.since:%Y-%m-%d}" == "2026-01-02"


@pytest.mark.usefixtures("roles")
def test_a_reader_sees_what_it_may_and_is_told_the_rest(shop: Shop, database_url: str) -> None:
    model = ailing(shop)
    end_run(shop, model)
    end_run(shop, model)
    grant(database_url)

    owner = read_status(database_url)
    writer = read_status(login(database_url, WRITER))
    reader = read_status(login(database_url, READER))

    assert writer.models == owner.models
    assert (owner.unseen, writer.unseen) == ((), ())
    assert (reader.products, reader.failures, reader.trends) == (owner.products, owner.failures, owner.trends)
    assert [run.run_id for run in reader.runs] == [run.run_id for run in owner.runs]
    [seen] = reader.models
    assert (seen.model, seen.coverage, seen.index, seen.oldest_check) == (owner.models[0].model, None, None, None)
    assert reader.leftovers is None
    assert reader.unseen == (
        "user 'catvec_test_reader' may not see coverage, indexes, checks and what waits to be deleted; "
        "the owner and writers may",
    )


def test_the_trend_of_a_shard_is_its_own(shop: Shop, database_url: str) -> None:
    model = shop.register()
    for seconds in (10, 20):
        for number in (1, 2):
            end_run(shop, model, seconds=seconds * number)
            shop.session.connection().execute(
                "UPDATE catvec_store.runs SET shard = %s WHERE run_id = (SELECT max(run_id) FROM catvec_store.runs)",
                (f"{number}/2",),
            )
    end_run(shop, model, seconds=99)

    trends = read_status(database_url).trends

    assert [(trend.shard, [run.seconds for run in trend.runs]) for trend in trends] == [
        ("1/2", [10, 20]),
        ("2/2", [20, 40]),
    ]
