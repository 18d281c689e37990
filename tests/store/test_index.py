"""The index of a model: built, waited for, replaced, dropped, healed, and what is measured of it."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.indexing import read_reports
from pipeline.progress import Progress, Snapshot
from pipeline.store.bloat import expected_bytes
from pipeline.store.build import watched
from pipeline.store.connect import Session
from pipeline.store.index import (
    IndexSettings,
    build_index,
    drop_index,
    find_index,
    find_leftovers,
    index_name,
    refresh_statistics,
    replace_index,
    settings_of,
)
from pipeline.store.models import find_model, register_model
from pipeline.store.recall import measure, sample_queries
from tests.fixtures.store import Shop, model_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.store.models import StoredModel

BINARY = IndexSettings(kind="binary", m=16, ef_construction=64)


def fill(shop: Shop, rows: int, *, dims: int = 32, storage: str = "halfvec", slow: bool = False) -> StoredModel:
    """The active model `wide` with clustered vectors, one product each; `slow` lets its index take long to build."""
    model = shop.session.run(
        lambda connection: register_model(
            connection, model_spec("wide", dims=dims), "print", location="/m", storage=storage
        )
    )
    random = np.random.default_rng(5)
    vectors = random.standard_normal((rows // 16 + 1, dims))[np.arange(rows) // 16]
    vectors = vectors + 0.4 * random.standard_normal((rows, dims))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    connection = shop.session.connection()
    connection.execute(
        "INSERT INTO catvec_store.products (product_id, catalog)"
        " SELECT 'P' || i, 'default' FROM generate_series(1, %s) AS i",
        (rows,),
    )
    connection.execute(
        "INSERT INTO catvec_store.images (product_id, url, position, content_sha256)"
        " SELECT 'P' || i, i || '.jpg', 0, sha256(i::text::bytea) FROM generate_series(1, %s) AS i",
        (rows,),
    )
    copy = "COPY catvec_store.emb_wide (content_sha256, embedding, run_id) FROM STDIN"
    keys = [row[0] for row in shop.all("SELECT content_sha256 FROM catvec_store.images ORDER BY image_id")]
    with connection.cursor().copy(copy) as rows_in:  # type: ignore[arg-type]
        for key, vector in zip(keys, vectors, strict=True):
            rows_in.write_row((key, "[" + ",".join(f"{value:.5f}" for value in vector) + "]", 0))
    if slow:
        connection.execute("UPDATE catvec_store.models SET index_m = 64, index_ef_construction = 1000")
    shop.activate(model)
    shop.all("SELECT pg_stat_force_next_flush()")  # else the rows are counted once more after ANALYZE
    refresh_statistics(connection, model)
    return again(shop)


def again(shop: Shop) -> StoredModel:
    """The model as it is stored now."""
    model = find_model(shop.session.connection(), "wide")
    assert model is not None
    return model


@contextmanager
def admin(postgres: str, database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(
        f"{postgres.rsplit('/', 1)[0]}/{database_url.rsplit('/', 1)[1]}", autocommit=True
    ) as connection:
        yield connection


def wait_for_build(shop_url: str, least: int = 1) -> int:
    """The server process that builds an index, once it has done so many rows."""
    with psycopg.connect(shop_url, autocommit=True) as connection:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            row = connection.execute(
                "SELECT pid FROM pg_stat_progress_create_index"
                " WHERE datname = current_database() AND tuples_done >= %s",
                (least,),
            ).fetchone()
            if row:
                return int(row[0])
            time.sleep(0.02)
    raise AssertionError("no index is being built")


PLANS = {
    "hnsw": "SELECT product_id FROM catvec.image_embeddings_wide ORDER BY embedding <=> ({one}) LIMIT 10",
    "binary": "SELECT product_id FROM catvec.image_embeddings_wide ORDER BY binary_quantize(embedding)::bit(64) <~>"
    " binary_quantize(({one}))::bit(64) LIMIT 10",
}


@pytest.mark.parametrize("storage", ["halfvec", "vector"])
def test_the_index_of_each_kind_answers_what_a_reader_asks_of_each_storage(shop: Shop, storage: str) -> None:
    model = fill(shop, 3000, dims=64, storage=storage)
    connection = shop.session.connection()
    one = "SELECT embedding FROM catvec.image_embeddings_wide WHERE product_id = 'P7'"
    scans = "SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname = 'emb_wide_hnsw'"
    connection.execute("SET enable_seqscan = off")  # so few rows the planner rightly reads one by one
    for kind in ("hnsw", "binary"):
        state = replace_index(connection, again(shop), replace(BINARY, kind=kind))

        assert (state.is_valid, state.kind, state.m, state.ef_construction) == (True, kind, 16, 64)
        plan = "\n".join(row[0] for row in shop.all("EXPLAIN " + PLANS[kind].format(one=one)))
        assert "Index Scan using emb_wide_hnsw" in plan
        shop.all("SELECT pg_stat_force_next_flush()")
        before = shop.one(scans)
        assert len(shop.all("SELECT * FROM catvec.similar_products('P7', 10)")) == 10
        shop.all("SELECT pg_stat_force_next_flush()")
        assert shop.one(scans) == before + 1
        assert settings_of(again(shop)) == replace(BINARY, kind=kind)
    assert find_leftovers(connection, model) == []


def test_a_plain_query_is_not_answered_by_a_binary_index(shop: Shop) -> None:
    """docs/index.md says so."""
    fill(shop, 500, dims=64)
    replace_index(shop.session.connection(), again(shop), BINARY)
    shop.session.connection().execute("SET enable_seqscan = off")
    one = "SELECT embedding FROM catvec.image_embeddings_wide WHERE product_id = 'P7'"

    assert "emb_wide_hnsw" not in str(shop.all("EXPLAIN " + PLANS["hnsw"].format(one=one)))


def test_a_build_tells_how_far_it_is(shop: Shop, database_url: str) -> None:
    model = fill(shop, 1500, slow=True)
    progress, seen = Progress(), []

    def look() -> None:
        while not ended.wait(0.05):
            seen.append(progress.snapshot())

    ended = threading.Event()
    looker = threading.Thread(target=look)
    looker.start()
    with watched(database_url, model, progress):
        build_index(shop.session.connection(), model, progress)
    ended.set()
    looker.join()

    steps = [now.steps for now in seen if now.steps]
    assert {(step.total, step.unit) for step in steps} == {(1500, "vectors")}
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert any(0 < count < 1500 for count in done)
    assert any(step.left_s for step in steps)


def test_a_build_says_what_it_waits_for(shop: Shop, database_url: str) -> None:
    model, progress = fill(shop, 50), Progress()
    seen: list[Snapshot] = []
    with psycopg.connect(database_url) as writer:
        writer.execute("DELETE FROM catvec_store.emb_wide WHERE false")
        builder = threading.Thread(target=_build, args=(database_url, model, progress))
        builder.start()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not (seen and seen[-1].steps and seen[-1].steps.waits_for):
            seen.append(progress.snapshot())
            time.sleep(0.05)
        writer.rollback()
        pid = writer.info.backend_pid
    builder.join()

    assert seen[-1].steps is not None
    assert seen[-1].steps.waits_for == f"waiting for writers before build (server process {pid})"
    assert find_index(shop.session.connection(), model).is_valid


def _build(url: str, model: StoredModel, progress: Progress) -> None:
    with Session(url) as session, watched(url, model, progress):
        build_index(session.connection(), model, progress)


def test_a_build_that_goes_on_elsewhere_is_waited_for(
    shop: Shop, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = fill(shop, 1500, slow=True)
    builder = threading.Thread(target=_build, args=(database_url, model, Progress()))
    builder.start()
    pid = wait_for_build(database_url)
    progress, seen = Progress(), set()

    def look() -> None:
        while not ended.wait(0.05):
            seen.add(progress.snapshot().phase)

    ended = threading.Event()
    looker = threading.Thread(target=look)
    looker.start()
    state = build_index(shop.session.connection(), model, progress)
    ended.set()
    looker.join()

    builder.join()
    assert state.is_valid
    notice = f"index emb_wide_hnsw is being worked on by server process {pid}; waiting for it"
    assert caplog.messages.count(notice) == 1
    assert "waiting" in seen  # who is waited for is said once
    made = shop.one("SELECT count(*) FROM pg_stat_user_indexes WHERE indexrelname LIKE 'emb_wide_hnsw%%'")
    assert made == 1


def test_a_terminated_build_is_told_and_the_next_one_heals(shop: Shop, database_url: str) -> None:
    model, failed = fill(shop, 1500, slow=True), []

    def build() -> None:
        try:
            _build(database_url, model, Progress())
        except StoreError as error:
            failed.append(error)

    builder = threading.Thread(target=build)
    builder.start()
    pid = wait_for_build(database_url)
    shop.all("SELECT pg_terminate_backend(%s)", pid)
    builder.join()

    [error] = failed
    assert error.message.startswith("the connection was lost while the index was built: terminating connection")
    assert error.hint == "run the same command again; what is left of this build is removed first"
    assert find_index(shop.session.connection(), model).exists
    assert not find_index(shop.session.connection(), model).is_valid
    shop.session.connection().execute("UPDATE catvec_store.models SET index_m = 16, index_ef_construction = 64")
    assert build_index(shop.session.connection(), again(shop)).is_valid


def test_a_graph_that_outgrows_its_memory_is_told(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    model = fill(shop, 3000)

    build_index(shop.session.connection(), model, memory_mb=1)

    assert "the graph does not fit into the memory for the build any more (after " in caplog.text
    assert "catvec index rebuild --memory MB" in caplog.text


def test_a_build_leaves_the_settings_of_its_session_as_they_were(shop: Shop) -> None:
    names = ("maintenance_work_mem", "lock_timeout", "statement_timeout", "client_connection_check_interval")
    shop.session.connection().execute("SET lock_timeout = '7s'")
    before = [shop.one(f"SELECT current_setting('{name}')") for name in names]

    build_index(shop.session.connection(), fill(shop, 50))

    assert [shop.one(f"SELECT current_setting('{name}')") for name in names] == before
    assert shop.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") == 0


def test_readers_search_on_while_the_index_is_replaced_by_another_kind(shop: Shop, database_url: str) -> None:
    fill(shop, 2000)
    build_index(shop.session.connection(), again(shop))
    ended, slowest, failures = threading.Event(), [0.0], []

    def read() -> None:
        with psycopg.connect(database_url, autocommit=True) as app:
            while not ended.is_set():
                started = time.monotonic()
                try:
                    rows = app.execute("SELECT * FROM catvec.similar_products('P7', 10)").fetchall()
                    assert len(rows) == 10
                except (psycopg.Error, AssertionError) as error:
                    failures.append(error)
                slowest[0] = max(slowest[0], time.monotonic() - started)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for kind in ("binary", "hnsw"):
        replace_index(shop.session.connection(), again(shop), replace(BINARY, kind=kind))
    ended.set()
    for reader in readers:
        reader.join()

    assert failures == []
    assert slowest[0] < 1


def test_a_reader_in_a_long_transaction_does_not_keep_the_new_index_from_its_place(
    shop: Shop, database_url: str
) -> None:
    """The old one goes when the reader has gone; nobody waits for the swap."""
    fill(shop, 200)
    build_index(shop.session.connection(), again(shop))
    with psycopg.connect(database_url) as reader, psycopg.connect(database_url, autocommit=True) as watch:
        reader.execute("SELECT * FROM catvec.similar_products('P7', 10)").fetchall()
        worker = threading.Thread(target=_replace, args=(database_url, again(shop)))
        worker.start()
        deadline = time.monotonic() + 10
        kind = "SELECT index_kind FROM catvec.models"
        while time.monotonic() < deadline and watch.execute(kind).fetchone() != ("binary",):
            time.sleep(0.05)
        assert watch.execute(kind).fetchone() == ("binary",)
        assert len(reader.execute("SELECT * FROM catvec.similar_products('P8', 10)").fetchall()) == 10
        assert worker.is_alive()
        reader.rollback()
        worker.join()

    assert find_leftovers(shop.session.connection(), again(shop)) == []


def _replace(url: str, model: StoredModel) -> None:
    with Session(url) as session:
        replace_index(session.connection(), model, BINARY)


def test_a_replacement_that_broke_off_changes_nothing_and_the_next_command_removes_it(
    shop: Shop, database_url: str
) -> None:
    model = fill(shop, 1500)
    before = build_index(shop.session.connection(), model)
    slow = IndexSettings(kind="binary", m=64, ef_construction=1000)

    def rebuild() -> None:
        with Session(database_url) as session, pytest.raises(StoreError, match="the connection was lost"):
            replace_index(session.connection(), model, slow)

    worker = threading.Thread(target=rebuild)
    worker.start()
    shop.all("SELECT pg_terminate_backend(%s)", wait_for_build(database_url))
    worker.join()

    assert find_leftovers(shop.session.connection(), model) == ["emb_wide_hnsw_new"]
    assert settings_of(again(shop)) == settings_of(model)
    assert build_index(shop.session.connection(), model) == before
    assert find_leftovers(shop.session.connection(), model) == []


def test_dead_rows_are_gone_after_a_rebuild(shop: Shop, database_url: str) -> None:
    model = fill(shop, 2000)
    connection = shop.session.connection()
    connection.execute("ALTER TABLE catvec_store.emb_wide SET (autovacuum_enabled = false)")
    build_index(connection, model)
    connection.execute("DELETE FROM catvec_store.emb_wide WHERE get_byte(content_sha256, 0) < 90")
    shop.all("SELECT pg_stat_force_next_flush()")
    [report] = read_reports(database_url, None, Progress(), with_recall=True)
    assert report.dead_share > 0.3
    assert report.advice == "dead rows stand in the way of searches: catvec index rebuild wide"

    replace_index(connection, model, settings_of(model))

    shop.all("SELECT pg_stat_force_next_flush()")
    [report] = read_reports(database_url, None, Progress(), with_recall=True)
    assert (report.dead_share, report.advice) == (0.0, None)


def test_status_names_what_is_wrong(shop: Shop, postgres: str, database_url: str) -> None:
    model = fill(shop, 6000, dims=8)
    connection = shop.session.connection()

    def look() -> tuple[str, str | None]:
        [report] = read_reports(database_url, "wide", Progress(), with_recall=False)
        assert (report.rows, report.recall) == (6000, None)
        return report.state, report.advice

    build = "searches read every vector: catvec index build wide"
    assert look() == ("missing", build)
    build_index(connection, model)
    assert look() == ("valid", None)
    connection.execute("UPDATE catvec_store.models SET index_kind = 'binary'")
    assert look() == ("valid", "the functions ask for a binary index: catvec index rebuild wide")
    connection.execute("UPDATE catvec_store.models SET index_kind = 'hnsw'")
    with admin(postgres, database_url) as superuser:
        superuser.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
                          (f"catvec_store.{index_name(model)}",))  # fmt: skip
    assert look() == ("invalid", build)
    drop_index(connection, model)
    assert look() == ("missing", build)


def test_an_index_dropped_by_hand_is_built_again(shop: Shop) -> None:
    model = fill(shop, 100)
    connection = shop.session.connection()
    build_index(connection, model)
    connection.execute("DROP INDEX catvec_store.emb_wide_hnsw")

    assert build_index(connection, model).is_valid


def test_only_the_owner_may_change_an_index(shop: Shop, postgres: str, database_url: str) -> None:
    model = fill(shop, 50)
    with admin(postgres, database_url) as superuser:
        superuser.execute("DROP ROLE IF EXISTS catvec_index_writer")
        superuser.execute("CREATE ROLE catvec_index_writer LOGIN PASSWORD 'w'")
        superuser.execute("GRANT USAGE ON SCHEMA catvec, catvec_store TO catvec_index_writer")
        superuser.execute("GRANT SELECT ON ALL TABLES IN SCHEMA catvec, catvec_store TO catvec_index_writer")
        owner = shop.one("SELECT current_user")
        try:
            tail = database_url.split("@")[1]
            with Session(f"postgresql://catvec_index_writer:w@{tail}") as session:
                for work in (build_index, drop_index):
                    with pytest.raises(StoreError) as caught:
                        work(session.connection(), model)
                    assert caught.value.message == (
                        "user 'catvec_index_writer' may not change the index of model 'wide': catvec's tables "
                        f"belong to '{owner}'"
                    )
                    assert caught.value.hint == f"run the same command once as '{owner}', with --db"
        finally:
            superuser.execute("DROP OWNED BY catvec_index_writer; DROP ROLE catvec_index_writer")


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="--ef-construction is 64, expected at least twice --m 48"):
        IndexSettings(kind="hnsw", m=48, ef_construction=64)


@pytest.mark.parametrize(("kind", "m"), [("hnsw", 8), ("hnsw", 32), ("binary", 16)])
def test_the_size_of_a_fresh_index_is_foretold(shop: Shop, kind: str, m: int) -> None:
    fill(shop, 3000, dims=64)
    settings = IndexSettings(kind=kind, m=m, ef_construction=64)

    state = replace_index(shop.session.connection(), again(shop), settings)

    assert state.size_bytes / expected_bytes(3000, kind=kind, dims=64, m=m) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["hnsw", "binary"])
@pytest.mark.parametrize("storage", ["halfvec", "vector"])
def test_recall_is_measured_through_the_function_against_an_exact_search(shop: Shop, kind: str, storage: str) -> None:
    fill(shop, 2000, dims=64, storage=storage)
    connection = shop.session.connection()
    replace_index(connection, again(shop), replace(BINARY, kind=kind))

    queries = sample_queries(connection, again(shop), 20)

    exact = connection.execute(
        "SELECT array_agg(s ORDER BY s DESC) FROM (SELECT 1 - (v.embedding <=> %s) AS s"
        " FROM catvec.image_embeddings v WHERE v.product_id <> %s ORDER BY s DESC LIMIT 10) x",
        (queries[3].vector, queries[3].product),
    ).fetchone()
    assert exact is not None
    assert list(queries[3].similarities) == pytest.approx(exact[0])
    assert len({query.product for query in queries}) == 20
    assert 0.9 <= measure(connection, again(shop), queries).recall <= 1
