"""`catvec doctor` on what catvec keeps: models, vectors, indexes and runs, each broken on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pipeline.records import Failure, Outcomes
from pipeline.store.models import register_model
from pipeline.store.runs import end_run, take_lock
from pipeline.store.vectors import write_outcomes
from tests.fixtures.doctor import change, look, seen, states
from tests.fixtures.store import Shop, model_spec, product, unit

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel


# models, vectors, indexes


def test_no_active_model_is_a_problem_when_one_is_ready(
    shop: Shop, database_url: str, first_model: StoredModel
) -> None:
    change(shop, "UPDATE catvec_store.models SET state = 'ready'")
    assert seen(look(database_url)["active model"]) == (
        "problem",
        "none, although tiny is ready: searches find nothing",
        "catvec models activate tiny",
    )


def test_a_first_load_that_is_not_done_is_a_warning(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    change(shop, "UPDATE catvec_store.models SET state = 'loading'")
    findings = look(database_url)
    assert states(findings) == {"active model": "warning"}
    assert findings["active model"].detail == "none yet: tiny is loading"


def test_a_model_folder_that_moved_is_seen(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    change(shop, "UPDATE catvec_store.models SET location = '/nowhere/clip'")
    findings = look(database_url)
    assert states(findings) == {"weights of tiny": "warning"}
    assert seen(findings["weights of tiny"])[1:] == (
        "no whole model in '/nowhere/clip' on this machine",
        "if it was moved, name its new place: catvec run --model FOLDER, catvec search --weights FOLDER",
    )


def test_a_hub_model_that_is_not_cached_is_seen(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    change(shop, "UPDATE catvec_store.models SET source = 'someone/unheard-of-clip', revision = 'abc'")
    finding = look(database_url)["weights of tiny"]
    assert (finding.state, finding.detail) == ("warning", "someone/unheard-of-clip is not in this machine's cache")


def test_tags_that_stayed_under_the_model_before_are_seen(
    shop: Shop, database_url: str, first_model: StoredModel, tiny_clip: Path
) -> None:
    add = (
        "INSERT INTO catvec_store.tag_attributes (model_id, attribute, labels, question, threshold, is_current)"
        " SELECT model_id, %s, '{red}', 'q', 0.5, %s FROM catvec_store.models WHERE name = %s"
    )
    for attribute, is_current in (("colour", True), ("kind", True), ("size", False)):
        change(shop, add, attribute, is_current, "tiny")
    assert look(database_url)["tags"].detail == "colour, kind under tiny"
    spec = model_spec("next", revision="sha256:2")
    following = shop.session.run(
        lambda connection: register_model(connection, spec, "print", location=str(tiny_clip))
    )
    shop.embed(following, [unit(1, 0, 0, 0), unit(0, 1, 0, 0), unit(0, 0, 1, 0)])
    change(shop, add, "kind", True, "next")
    assert look(database_url)["tags"].state == "ok"

    shop.activate(following)

    assert seen(look(database_url)["tags"]) == (
        "warning",
        "catvec.product_tags has colour under tiny, not under next, which apps read",
        "catvec tag LABELS --model next, with the labels or the head of each",
    )


def test_a_vector_table_that_is_gone_is_a_problem(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    change(shop, "DROP TABLE catvec_store.emb_tiny CASCADE")
    finding = look(database_url)["vectors of tiny"]
    assert (finding.state, finding.detail) == ("problem", "the table catvec_store.emb_tiny of model 'tiny' is gone")


def test_images_without_a_vector_are_counted(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    shop.sync(product("A", "1.jpg", "2.jpg"), product("B", "3.jpg", row=2), product("C", "4.jpg", "5.jpg", row=3))
    run_id = shop.begin(first_model)
    fourth, fifth = shop.work(first_model)
    failed = Failure(image=fourth, stage="fetch", code="http_404", detail="not there", is_retryable=False)
    write_outcomes(shop.session, first_model, run_id, Outcomes(failed=(failed,)))
    shop.session.run(lambda connection: end_run(connection, run_id, "finished"))

    findings = look(database_url)
    assert states(findings) == {"vectors of tiny": "warning"}
    assert seen(findings["vectors of tiny"])[1:] == (
        "3 of 5 images have one; 1 failed, 1 not tried yet",
        "run the same catvec run again",
    )
    assert seen(findings["failures"])[1:] == ("1 image or row: http_404 1", "see each with: catvec failures")

    also = Failure(image=fifth, stage="fetch", code="timeout", detail="slow", is_retryable=True)
    write_outcomes(shop.session, first_model, run_id, Outcomes(failed=(also,)))
    assert look(database_url)["vectors of tiny"].detail == "3 of 5 images have one; 2 failed"


def test_a_broken_index_is_a_problem(superuser: Connection, database_url: str, first_model: StoredModel) -> None:
    superuser.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'catvec_store.emb_tiny_hnsw'::regclass"
    )
    findings = look(database_url)
    assert states(findings) == {"index of tiny": "problem"}
    assert seen(findings["index of tiny"])[1:] == (
        "emb_tiny_hnsw is what a broken off build left: every write pays for it, no search uses it",
        "catvec index build tiny",
    )


CREATE_INDEX = """
CREATE INDEX CONCURRENTLY emb_tiny_hnsw
    ON catvec_store.emb_tiny USING hnsw (embedding halfvec_cosine_ops)
"""


def test_a_build_that_was_cancelled_leaves_a_broken_index(
    shop: Shop, database_url: str, first_model: StoredModel
) -> None:
    change(shop, "DROP INDEX catvec_store.emb_tiny_hnsw")
    with psycopg.connect(database_url) as other:
        other.execute("DELETE FROM catvec_store.emb_tiny WHERE false")  # holds a lock that the build waits for
        change(shop, "SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            change(shop, CREATE_INDEX)
    assert states(look(database_url)) == {"index of tiny": "problem"}


def test_an_index_of_other_operators_is_a_problem(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    change(shop, "DROP INDEX catvec_store.emb_tiny_hnsw")
    change(shop, "CREATE INDEX emb_tiny_hnsw ON catvec_store.emb_tiny USING hnsw (embedding halfvec_l2_ops)")
    change(shop, MANY_PRODUCTS)
    change(shop, MANY_IMAGES)
    change(shop, MANY_VECTORS)
    findings = look(database_url)
    assert seen(findings["index of tiny"]) == (
        "problem",
        "emb_tiny_hnsw is hnsw with halfvec_l2_ops, expected hnsw with halfvec_cosine_ops",
        "catvec index rebuild tiny",
    )
    # one cure is enough
    assert seen(findings["use of the index of tiny"]) == ("skipped", "there is no valid index to use", None)


def test_an_index_with_another_name_is_the_index(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    change(shop, "ALTER INDEX catvec_store.emb_tiny_hnsw RENAME TO my_hnsw")
    findings = look(database_url)
    assert states(findings) == {}
    assert findings["index of tiny"].detail.startswith("my_hnsw, ")


def test_what_a_broken_off_rebuild_left_is_seen(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    change(shop, CREATE_INDEX.replace("emb_tiny_hnsw", "emb_tiny_hnsw_new"))
    findings = look(database_url)
    assert states(findings) == {"index of tiny": "warning"}
    assert seen(findings["index of tiny"])[1:] == (
        "emb_tiny_hnsw_new: left of a rebuild that broke off, every write pays for it",
        "catvec index build tiny",
    )


def test_a_small_table_without_an_index_is_only_a_warning(
    shop: Shop, database_url: str, first_model: StoredModel
) -> None:
    change(shop, "DROP INDEX catvec_store.emb_tiny_hnsw")
    findings = look(database_url)
    assert states(findings) == {"index of tiny": "warning"}
    assert findings["index of tiny"].detail == "none; 3 vectors are searched exactly, which is quick up to 5,000"


MANY_PRODUCTS = """
INSERT INTO catvec_store.products (product_id, catalog)
SELECT 'P' || n, 'default'
  FROM generate_series(1, 5500) n
"""
MANY_IMAGES = """
INSERT INTO catvec_store.images (product_id, url, position, content_sha256)
SELECT 'P' || n, n || '.jpg', 0, sha256(n::text::bytea)
  FROM generate_series(1, 5500) n
"""
MANY_VECTORS = """
INSERT INTO catvec_store.emb_tiny (content_sha256, embedding, run_id)
SELECT sha256(n::text::bytea), l2_normalize(ARRAY[sin(n), cos(n), sin(3 * n), cos(7 * n)]::real[]::halfvec), 1
  FROM generate_series(1, 5500) n
"""


def test_many_vectors_need_their_index(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    for statement in (MANY_PRODUCTS, MANY_IMAGES, MANY_VECTORS):
        change(shop, statement)
    change(shop, "ANALYZE catvec_store.products, catvec_store.images, catvec_store.emb_tiny")
    findings = look(database_url)
    assert states(findings) == {}
    assert findings["use of the index of tiny"].detail.endswith("reads the index")

    user, database = (sql.Identifier(str(conninfo_to_dict(database_url)[part])) for part in ("user", "dbname"))
    off = sql.SQL("ALTER ROLE {} IN DATABASE {} SET enable_indexscan = off").format(user, database)
    shop.session.connection().execute(off)
    findings = look(database_url)
    assert states(findings) == {"use of the index of tiny": "warning"}
    assert (findings["use of the index of tiny"].cure or "").startswith("RESET enable_indexscan ")

    change(shop, "DROP INDEX catvec_store.emb_tiny_hnsw")
    findings = look(database_url)
    assert states(findings) == {"index of tiny": "problem", "use of the index of tiny": "skipped"}
    assert findings["index of tiny"].detail == "none, for more than 5,000 vectors: every search reads them all"


def test_many_dead_rows_are_seen(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    change(shop, "ALTER TABLE catvec_store.products SET (autovacuum_enabled = off)")
    change(shop, MANY_PRODUCTS)
    change(shop, "UPDATE catvec_store.products SET brand = 'x'")
    change(shop, "SELECT pg_stat_force_next_flush()")
    finding = look(database_url)["statistics"]
    assert (finding.state, finding.detail) == (
        "warning",
        "products is 50% dead rows: searches are slower and less complete",
    )
    assert (finding.cure or "").startswith("VACUUM (ANALYZE) catvec_store.products;")


# runs


def test_a_run_whose_process_is_gone_is_seen(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    shop.begin(first_model)
    findings = look(database_url)
    assert states(findings) == {"last run": "warning"}
    assert "run 2 of catalog 'default' says it is running, but process" in findings["last run"].detail
    assert " is gone; last sign of life " in findings["last run"].detail


def test_a_run_that_is_going_on_is_well_until_it_falls_silent(
    shop: Shop, database_url: str, first_model: StoredModel
) -> None:
    with psycopg.connect(database_url, autocommit=True) as runner:
        take_lock(runner, first_model.name)
        run_id = shop.begin(first_model)
        assert states(look(database_url)) == {}

        change(shop, "UPDATE catvec_store.runs SET heartbeat_at = now() - interval '3 h' WHERE run_id = %s", run_id)
        finding = look(database_url)["last run"]
    assert finding.state == "warning"
    assert finding.detail.endswith("has given no sign of life for 3 h")
    assert finding.cure == "look at that process: it hangs, or builds a very large index"


@pytest.mark.parametrize(
    ("state", "error", "found", "words"),
    [
        ("lost", "the process or its connection disappeared", "warning", "disappeared 0 s ago"),
        ("stopped", None, "warning", "was stopped 0 s ago"),
        ("failed", "no space left", "problem", "failed 0 s ago: no space left"),
    ],
)
def test_a_last_run_that_did_not_finish_is_seen(
    shop: Shop, database_url: str, first_model: StoredModel, state: str, error: str | None, found: str, words: str
) -> None:
    run_id = shop.begin(first_model)
    shop.session.run(lambda connection: end_run(connection, run_id, state, error=error))
    finding = look(database_url)["last run"]
    assert finding.state == found
    assert finding.detail.endswith(words)
    assert finding.cure
