"""An index that is not as it should be: of another kind or name, of other settings, left over, not swapped in."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest

from pipeline.errors import StoreError
from pipeline.indexing import IndexOptions, build, drop, read_reports, rebuild
from pipeline.progress import Progress
from pipeline.store.connect import Session
from pipeline.store.explain.calls import explain_product
from pipeline.store.index import (
    IndexSettings,
    build_index,
    drop_index,
    find_index,
    find_leftovers,
    replace_index,
    settings_of,
)
from tests.fixtures.roles import READER, grant, login
from tests.fixtures.store import Shop
from tests.store.test_index import again, fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.indexing import IndexReport

FIRST = IndexSettings(kind="hnsw", m=16, ef_construction=128)
OTHER = IndexSettings(kind="hnsw", m=8, ef_construction=32)
BINARY = IndexSettings(kind="binary", m=16, ef_construction=64)


def look(url: str) -> IndexReport:
    [report] = read_reports(url, "wide", Progress(), with_recall=False)
    return report


def oid(shop: Shop, name: str) -> int | None:
    found: int | None = shop.one("SELECT to_regclass(%s)::oid::bigint", f"catvec_store.{name}")
    return found


def change(shop: Shop, statement: str) -> None:
    shop.session.connection().execute(statement)


WRONG = {
    "l2": "USING hnsw (embedding halfvec_l2_ops)",
    "btree": "USING btree (embedded_at)",
    "partial": "USING hnsw (embedding halfvec_cosine_ops) WHERE run_id > 0",
    "ivfflat": "USING ivfflat (embedding halfvec_cosine_ops) WITH (lists = 1)",
}


@pytest.mark.parametrize("what", WRONG)
def test_an_index_that_the_functions_cannot_use_is_replaced(shop: Shop, database_url: str, what: str) -> None:
    model = fill(shop, 100)
    change(shop, f"CREATE INDEX emb_wide_hnsw ON catvec_store.emb_wide {WRONG[what]}")
    assert look(database_url).advice == "the functions ask for a hnsw index: catvec index rebuild wide"

    state = build_index(shop.session.connection(), model)

    assert state.is_as(FIRST)
    assert state.name == "emb_wide_hnsw"
    assert shop.all("SELECT indexname FROM pg_indexes WHERE tablename = 'emb_wide' AND indexname ~ 'hnsw'") == [
        ("emb_wide_hnsw",)
    ]
    assert look(database_url).advice is None


def test_explain_knows_an_index_that_the_functions_cannot_use(shop: Shop) -> None:
    fill(shop, 6000, dims=8)
    change(shop, f"CREATE INDEX emb_wide_hnsw ON catvec_store.emb_wide {WRONG['l2']}")

    found = explain_product(shop.session.connection(), "P7", k=10, conditions={}, model=None)

    assert (found.verdict, [reason.key for reason in found.reasons]) == ("scan", ["no_index"])
    assert found.reasons[0].why == (
        "the functions order by <=>, and model 'wide' has no index for that: emb_wide_hnsw answers <->"
    )


def test_a_build_gives_the_index_the_settings_of_its_model(shop: Shop, database_url: str) -> None:
    fill(shop, 100)
    build_index(shop.session.connection(), again(shop))
    change(shop, "UPDATE catvec_store.models SET index_m = 48")
    assert look(database_url).advice == (
        "made with m 16, ef_construction 128, not m 48, ef_construction 128: catvec index rebuild wide"
    )

    assert build(database_url, "wide", IndexOptions(), Progress()).m == 48
    assert look(database_url).advice is None
    first = oid(shop, "emb_wide_hnsw")
    assert build(database_url, "wide", IndexOptions(), Progress()).m == 48
    assert oid(shop, "emb_wide_hnsw") == first
    assert build(database_url, "wide", IndexOptions(m=8), Progress()).m == 8
    assert settings_of(again(shop)).m == 8


def test_a_run_keeps_an_index_that_works(shop: Shop) -> None:
    """A catalog of millions is not indexed anew because a release has other defaults."""
    fill(shop, 100)
    before = build_index(shop.session.connection(), again(shop))
    change(shop, "UPDATE catvec_store.models SET index_m = 48")

    assert build_index(shop.session.connection(), again(shop)) == before


def test_what_was_tuned_is_forgotten_with_the_index_it_was_tuned_for(shop: Shop) -> None:
    fill(shop, 100)
    connection = shop.session.connection()
    tuned = "UPDATE catvec_store.models SET ef_search = 1000, tuned_at = now()"
    replace_index(connection, again(shop), BINARY)
    change(shop, tuned)

    replace_index(connection, again(shop), BINARY)
    assert again(shop).ef_search == 1000  # the same anew
    for wanted in (FIRST, replace(FIRST, m=8), replace(FIRST, m=8, ef_construction=64)):
        change(shop, tuned)
        replace_index(connection, again(shop), wanted)
        assert (again(shop).ef_search, again(shop).tuned_at) == (100, None)


def test_a_finished_index_that_could_not_take_its_place_does_so_the_next_time(shop: Shop, database_url: str) -> None:
    model = fill(shop, 100)
    connection = shop.session.connection()
    build_index(connection, model)
    with psycopg.connect(database_url, application_name="nightly") as other:
        other.execute("UPDATE catvec_store.models SET location = location")
        with pytest.raises(StoreError) as caught:
            replace_index(connection, model, OTHER, wait_s=0.5)
        pid = other.info.backend_pid
        other.rollback()

    assert caught.value.message.startswith(
        f"catvec_store.models could not be locked within 0.5 s: held by process {pid} of user "
    )
    assert caught.value.hint == (
        "searches go on as before; index emb_wide_hnsw_new is ready: when that transaction has ended, run the same "
        "command again, and it takes its place without another build"
    )
    built = oid(shop, "emb_wide_hnsw_new")
    assert built is not None
    assert look(database_url).advice == (
        "every write pays for emb_wide_hnsw_new, which no search uses: catvec index build wide"
    )
    state = replace_index(connection, model, OTHER)
    assert state.is_as(OTHER)
    assert oid(shop, "emb_wide_hnsw") == built
    assert find_leftovers(connection, model) == []


def test_a_finished_index_of_other_settings_is_not_taken(shop: Shop) -> None:
    fill(shop, 100)
    connection = shop.session.connection()
    change(shop, "CREATE INDEX emb_wide_hnsw_new ON catvec_store.emb_wide USING hnsw (embedding halfvec_cosine_ops)")

    assert replace_index(connection, again(shop), OTHER).is_as(OTHER)
    assert find_leftovers(connection, again(shop)) == []


@pytest.mark.parametrize("name", ["emb_wide_hnsw_new", "emb_wide_hnsw_old", "emb_wide_hnsw_ccnew"])
def test_what_a_broken_off_rebuild_left_is_told_and_removed(
    shop: Shop, database_url: str, superuser: psycopg.Connection, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    model = fill(shop, 100)
    build_index(shop.session.connection(), model)
    change(shop, f"CREATE INDEX {name} ON catvec_store.emb_wide USING hnsw (embedding halfvec_cosine_ops)")
    superuser.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'catvec_store.{name}'::regclass")
    report = look(database_url)
    assert (report.leftovers, report.advice) == (
        (name,),
        f"every write pays for {name}, which no search uses: catvec index build wide",
    )

    build_index(shop.session.connection(), model)

    assert f"removing {name}, which a build or a rebuild that broke off has left" in caplog.text
    assert (look(database_url).leftovers, look(database_url).advice) == ((), None)


def test_a_leftover_is_told_where_no_index_is_needed(shop: Shop, database_url: str) -> None:
    model = fill(shop, 100)
    assert look(database_url).advice is None
    change(shop, "CREATE INDEX emb_wide_hnsw_old ON catvec_store.emb_wide USING hnsw (embedding halfvec_cosine_ops)")
    assert look(database_url).advice == "searches read every vector: catvec index build wide"

    assert build_index(shop.session.connection(), model).is_as(FIRST)
    assert look(database_url).leftovers == ()


def test_a_rebuild_that_goes_on_is_no_leftover(shop: Shop, database_url: str) -> None:
    model = fill(shop, 100)
    build_index(shop.session.connection(), model)
    with psycopg.connect(database_url) as writer:
        writer.execute("DELETE FROM catvec_store.emb_wide WHERE false")
        worker = threading.Thread(target=_replace, args=(database_url,))
        worker.start()
        deadline = time.monotonic() + 10
        while oid(shop, "emb_wide_hnsw_new") is None and time.monotonic() < deadline:
            time.sleep(0.02)
        report = look(database_url)
        writer.rollback()
    worker.join()

    assert (report.leftovers, report.advice) == ((), "wait until that is done")


def _replace(url: str) -> None:
    with Session(url) as session:
        replace_index(session.connection(), again(Shop(session)), OTHER)


def test_an_index_with_another_name_is_the_index(
    shop: Shop, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = fill(shop, 6000, dims=8)
    connection = shop.session.connection()
    build_index(connection, model)
    change(shop, "ALTER INDEX catvec_store.emb_wide_hnsw RENAME TO my_hnsw")
    made = oid(shop, "my_hnsw")
    report = look(database_url)
    assert (report.state, report.advice, find_index(connection, model).name) == ("valid", None, "my_hnsw")

    state = build_index(connection, model)

    assert (state.name, oid(shop, "emb_wide_hnsw"), oid(shop, "my_hnsw")) == ("emb_wide_hnsw", made, None)
    assert "index my_hnsw is used by searches; it gets its name back: emb_wide_hnsw" in caplog.text


def test_an_index_with_another_name_is_replaced_and_dropped(shop: Shop) -> None:
    model = fill(shop, 100)
    connection = shop.session.connection()
    build_index(connection, model)
    rename = "ALTER INDEX catvec_store.emb_wide_hnsw RENAME TO my_hnsw"
    change(shop, rename)
    change(shop, f"CREATE INDEX emb_wide_hnsw ON catvec_store.emb_wide {WRONG['btree']}")  # and another has its name

    assert replace_index(connection, model, OTHER).is_as(OTHER)
    hnsw = "SELECT indexname FROM pg_indexes WHERE tablename = 'emb_wide' AND indexname ~ 'hnsw'"
    assert shop.all(hnsw) == [("emb_wide_hnsw",)]
    change(shop, rename)
    drop_index(connection, again(shop))
    assert shop.all(hnsw) == []


def test_an_index_of_somebody_else_is_left_alone(shop: Shop) -> None:
    model = fill(shop, 100)
    connection = shop.session.connection()
    build_index(connection, model)
    change(shop, f"CREATE INDEX emb_wide_hnsw_new ON catvec_store.emb_wide {WRONG['btree']}")

    build_index(connection, model)
    with pytest.raises(StoreError) as caught:
        replace_index(connection, model, OTHER)

    assert caught.value.message == (
        "catvec_store.emb_wide_hnsw_new is not one of catvec's indexes, and has the name that a new one needs"
    )
    assert caught.value.hint == (
        "run the same command again after: ALTER INDEX catvec_store.emb_wide_hnsw_new RENAME TO …"
    )
    drop_index(connection, model)
    assert oid(shop, "emb_wide_hnsw_new") is not None


@pytest.mark.parametrize("work", [drop_index, partial(replace_index, wanted=OTHER)])
def test_whoever_keeps_the_old_index_is_named(
    shop: Shop, database_url: str, caplog: pytest.LogCaptureFixture, work: Callable[..., object]
) -> None:
    fill(shop, 100)
    build_index(shop.session.connection(), again(shop))

    def change_index() -> None:
        with Session(database_url) as session:
            work(session.connection(), again(Shop(session)))

    with psycopg.connect(database_url, application_name="report") as reader:
        reader.execute("SELECT * FROM catvec.similar_products('P7', 10)").fetchall()
        worker = threading.Thread(target=change_index)
        worker.start()
        deadline = time.monotonic() + 10
        while "goes as soon as" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = reader.info.backend_pid
    worker.join()

    assert f" goes as soon as the transactions have ended of process {pid} of user " in caplog.text
    assert find_leftovers(shop.session.connection(), again(shop)) == []


@pytest.fixture
def reader_url(shop: Shop, roles: None, database_url: str) -> str:
    fill(shop, 50)
    build_index(shop.session.connection(), again(shop))
    grant(database_url)
    return login(database_url, READER)


def test_a_reader_is_told_whose_the_index_is(shop: Shop, reader_url: str) -> None:
    owner = shop.one("SELECT current_user")
    of: tuple[str, None] = (reader_url, None)
    works: list[Callable[[], object]] = [
        partial(build, *of, IndexOptions(), Progress()),
        partial(rebuild, *of, IndexOptions(), Progress()),
        partial(drop, *of, is_sure=lambda *_: True),
    ]
    for work in works:
        with pytest.raises(StoreError) as caught:
            work()
        assert caught.value.message == (
            f"user {READER!r} may not change the index of model 'wide': catvec's tables belong to {owner!r}"
        )


@pytest.mark.parametrize("kind", ["hnsw", "binary"])
def test_the_functions_search_with_the_ef_search_of_the_model(shop: Shop, kind: str) -> None:
    """What a search reads of the index grows with it."""
    fill(shop, 3000, dims=64)
    replace_index(shop.session.connection(), again(shop), replace(BINARY, kind=kind))
    change(shop, "SET enable_seqscan = off")  # so few rows the planner rightly reads one by one
    search = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM catvec.similar_products('P7', 1)"
    read = {}
    for ef_search in (20, 1000):
        change(shop, f"UPDATE catvec_store.models SET ef_search = {ef_search}")
        shop.all(search)  # the first of a session compiles the functions
        [[[plan]]] = shop.all(search)
        read[ef_search] = plan["Plan"]["Shared Hit Blocks"]

    assert read[1000] > 2 * read[20]


@pytest.mark.parametrize("kind", ["hnsw", "binary"])
def test_vectors_of_2500_dimensions_are_indexed_and_found(shop: Shop, kind: str) -> None:
    """More than an index on the type vector can take."""
    fill(shop, 300, dims=2500, storage="vector")
    change(shop, "SET enable_seqscan = off; SET enable_sort = off")  # so few rows the planner rightly reads all
    search = "SELECT product_id FROM catvec.similar_products('P7', 10)"
    exact = set(shop.all(search))

    state = replace_index(shop.session.connection(), again(shop), replace(BINARY, kind=kind))

    assert state.is_as(replace(BINARY, kind=kind))
    assert len(exact & set(shop.all(search))) >= 9
    shop.all("SELECT pg_stat_force_next_flush()")
    assert shop.one("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'emb_wide_hnsw'") == 1
