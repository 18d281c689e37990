"""What is written for images: vectors, contents, failures and counters in one transaction."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pytest
from pgvector import HalfVector, Vector
from psycopg import sql

from pipeline.errors import ModelError
from pipeline.records import Embedding, Failure, Outcomes
from pipeline.store.connect import Session
from pipeline.store.models import check_table, list_models, register_model
from pipeline.store.vectors import UPDATE_IMAGES, _write, write_outcomes
from pipeline.store.work import find_known
from tests.fixtures.store import content, model_spec, product, unit

if TYPE_CHECKING:
    from pipeline.records import ImageRef
    from tests.fixtures.pooler import Pooler
    from tests.fixtures.store import Shop

RUN = "SELECT seen, unchanged, reused, embedded, failed FROM catvec.run_status WHERE run_id = %s"


def embedding(image: ImageRef, *values: float) -> Embedding:
    return Embedding(content=content(image), width=4, height=3, vector=np.array(values, dtype=np.float32))


def embedding_of(image: ImageRef, data: str) -> Embedding:
    """One whose bytes are these."""
    vector = np.array([1, 0, 0, 0], dtype=np.float32)
    return Embedding(content=content(image, data.encode()), width=4, height=3, vector=vector)


def failure(image: ImageRef, code: str = "http_404") -> Failure:
    return Failure(image=image, stage="fetch", code=code, detail="not there", is_retryable=False)


def test_an_image_with_a_vector_is_no_work_any_more(shop: Shop) -> None:
    shop.sync(product("A", "1.jpg", "2.jpg"), product("B", "3.jpg", row=2))
    model = shop.register()
    run_id = shop.begin(model)
    first, second, third = shop.work(model)

    written = write_outcomes(
        shop.session,
        model,
        run_id,
        Outcomes(embedded=(embedding(first, 1, 0, 0, 0),), failed=(failure(second),)),
    )

    assert (len(written.embedded), len(written.failed)) == (1, 1)
    assert shop.work(model) == [third]
    count = shop.count(model)
    assert (count.missing, count.deferred, count.unchanged) == (1, {"http_404": 1}, 1)
    assert shop.all(RUN, run_id) == [(0, 0, 0, 1, 1)]
    assert shop.all("SELECT product_id, url, code, attempts FROM catvec.failures") == [("A", "2.jpg", "http_404", 1)]


def test_a_second_failure_counts_the_attempts_and_a_success_forgets_them(shop: Shop) -> None:
    shop.sync(product("A", "1.jpg"))
    model = shop.register()
    run_id = shop.begin(model)
    [image] = shop.work(model)
    write_outcomes(shop.session, model, run_id, Outcomes(failed=(failure(image, "timeout"),)))
    write_outcomes(shop.session, model, run_id, Outcomes(failed=(failure(image, "http_404"),)))
    assert shop.all("SELECT code, attempts FROM catvec.failures") == [("http_404", 2)]

    write_outcomes(shop.session, model, run_id, Outcomes(embedded=(embedding(image, 0, 1, 0, 0),)))

    assert shop.all("SELECT * FROM catvec.failures") == []


def test_the_same_bytes_have_one_vector_for_all_their_images(shop: Shop) -> None:
    shop.sync(product("A", "1.jpg"), product("B", "2.jpg", row=2))
    model = shop.register()
    run_id = shop.begin(model)
    first, second = shop.work(model)
    write_outcomes(shop.session, model, run_id, Outcomes(embedded=(embedding(first, 1, 0, 0, 0),)))
    same = content(second, first.url.encode())
    assert find_known(shop.session, model, [same.sha256, b"\0" * 32]) == {same.sha256}

    write_outcomes(shop.session, model, run_id, Outcomes(reused=(same,)))

    assert shop.one("SELECT count(*) FROM catvec_store.emb_tiny") == 1
    assert shop.all("SELECT product_id, embedding::text FROM catvec.image_embeddings_tiny ORDER BY 1") == [
        ("A", "[1,0,0,0]"),
        ("B", "[1,0,0,0]"),
    ]
    assert shop.all("SELECT width, height FROM catvec_store.images") == [(4, 3), (4, 3)]


def test_one_vector_that_the_database_refuses_does_not_take_its_batch_along(shop: Shop) -> None:
    shop.sync(product("A", "1.jpg", "2.jpg", "3.jpg"))
    model = shop.register()
    run_id = shop.begin(model)
    first, second, third = shop.work(model)

    written = write_outcomes(
        shop.session,
        model,
        run_id,
        Outcomes(
            embedded=(embedding(first, 1, 0, 0, 0), embedding(second, 9, 0, 0, 0), embedding(third, 0, 1, 0, 0))
        ),
    )

    assert [e.content.image.url for e in written.embedded] == ["1.jpg", "3.jpg"]
    assert [(f.image.url, f.stage, f.code) for f in written.failed] == [("2.jpg", "store", "refused")]
    assert shop.one("SELECT count(*) FROM catvec_store.emb_tiny") == 2
    assert shop.all(RUN, run_id) == [(0, 0, 0, 2, 1)]


def test_what_is_refused_among_many_is_found_and_the_rest_is_written(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.sync(product("A", *(f"{number}.jpg" for number in range(300))))
    model = shop.register()
    run_id = shop.begin(model)
    images = shop.work(model)
    good = [embedding(image, 1, 0, 0, 0) for image in images]
    mixed = [replace(e, vector=e.vector * 9) if place in {7, 150, 299} else e for place, e in enumerate(good)]

    written = write_outcomes(shop.session, model, run_id, Outcomes(embedded=tuple(mixed)))

    assert sorted(f.image.url for f in written.failed) == ["150.jpg", "299.jpg", "7.jpg"]
    assert shop.all(RUN, run_id) == [(0, 0, 0, 297, 3)]
    assert shop.one("SELECT count(*) FROM catvec_store.emb_tiny") == 297
    assert caplog.records == []


@pytest.mark.parametrize(("storage", "tolerance"), [("halfvec", 5e-4), ("vector", 0.0)])
def test_vectors_are_stored_as_they_are(shop: Shop, storage: str, tolerance: float) -> None:
    """300 of 512 dimensions, against pgvector's own way of sending one."""
    shop.sync(product("A", *(f"{number}.jpg" for number in range(300))))
    spec = model_spec(dims=512)
    model = shop.session.run(lambda c: register_model(c, spec, "print", location="/models/tiny", storage=storage))
    drawn = np.random.default_rng(5).standard_normal((300, 512)).astype(np.float32)
    vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    sent = Vector if storage == "vector" else HalfVector

    shop.embed(model, list(vectors))

    for image_id, vector in zip(range(1, 301), vectors, strict=True):
        query = (
            "SELECT e.embedding, e.embedding = %s FROM catvec_store.emb_tiny e"
            " JOIN catvec_store.images i USING (content_sha256) WHERE image_id = %s"
        )
        [(stored, is_same)] = shop.all(query, sent(vector), image_id)
        assert is_same
        assert np.abs(stored.to_numpy().astype(np.float32) - vector).max() <= tolerance


def test_two_runs_that_write_the_same_contents_in_other_orders_wait_for_each_other(
    shop: Shop, database_url: str
) -> None:
    """As two shards do that show the same bytes."""
    shop.sync(product("A", *(f"{number}.jpg" for number in range(200))))
    model = shop.register()
    run_id = shop.begin(model)
    images = shop.work(model)
    rounds = [
        [embedding_of(image, f"{number} {(image.image_id * step) % 211}") for image in images]
        for number in range(10)
        for step in (1, 210)
    ]

    def write(which: list[list[Embedding]]) -> None:
        with Session(database_url) as session:
            for embedded in which:
                write_outcomes(session, model, run_id, Outcomes(embedded=tuple(embedded)))

    before = shop.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    writers = [threading.Thread(target=write, args=(rounds[half::2],)) for half in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    assert shop.one("SELECT embedded FROM catvec.run_status WHERE run_id = %s", run_id) == 4000
    assert shop.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before


def test_vectors_are_written_through_a_pooler_that_shares_sessions(
    shop: Shop, pooler: Pooler, database_url: str
) -> None:
    shop.sync(product("A", "1.jpg", "2.jpg"))
    model = shop.register()
    run_id = shop.begin(model)
    first, second = shop.work(model)

    with pooler(database_url) as url, Session(url) as session:
        outcomes = Outcomes(embedded=(embedding(first, 1, 0, 0, 0), embedding(second, 9, 0, 0, 0)))
        write_outcomes(session, model, run_id, outcomes)
        left = session.rows("SELECT current_setting('enable_hashjoin'), current_setting('enable_mergejoin')")

    assert shop.all(RUN, run_id) == [(0, 0, 0, 1, 1)]
    assert left == [("on", "on")]


def test_a_commit_whose_answer_was_lost_counts_once(shop: Shop) -> None:
    """The same transaction again, as after a connection that broke while COMMIT was under way."""
    shop.sync(product("A", "1.jpg"))
    model = shop.register()
    run_id = shop.begin(model)
    [image] = shop.work(model)
    outcomes, token = Outcomes(embedded=(embedding(image, 1, 0, 0, 0),)), uuid.uuid4()

    update = sql.Composed([sql.SQL(UPDATE_IMAGES)])
    for _ in range(2):
        shop.session.run_in_one_trip(lambda connection: _write(connection, model, run_id, outcomes, token, update))

    assert shop.all(RUN, run_id) == [(0, 0, 0, 1, 0)]
    assert shop.one("SELECT count(*) FROM catvec_store.emb_tiny") == 1


@pytest.mark.parametrize("bad", ["[0,0,0,0]", "[2,0,0,0]"])
def test_the_table_itself_refuses_vectors_that_are_not_of_unit_length(shop: Shop, bad: str) -> None:
    model = shop.register()

    with pytest.raises(psycopg.errors.CheckViolation):
        shop.all(
            f"INSERT INTO catvec_store.{model.table} (content_sha256, embedding, run_id)"
            f" VALUES (sha256('x'), '{bad}', 1) RETURNING 1"
        )


def test_an_image_deleted_meanwhile_is_no_error(shop: Shop) -> None:
    shop.sync(product("A", "1.jpg", "2.jpg"))
    model = shop.register()
    run_id = shop.begin(model)
    first, second = shop.work(model)
    shop.all("DELETE FROM catvec_store.images RETURNING 1")

    outcomes = Outcomes(embedded=(embedding(first, 1, 0, 0, 0),), failed=(failure(second),))
    write_outcomes(shop.session, model, run_id, outcomes)

    assert shop.all("SELECT * FROM catvec.failures") == []


def test_a_name_stands_for_one_vector_space(shop: Shop) -> None:
    stored = shop.register()

    assert shop.register() == stored
    for spec, words in (
        (model_spec(revision="sha256:2"), "weights sha256:2 instead of sha256:1"),
        (model_spec(dims=8), "dimensions 8 instead of 4"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            shop.register(spec)
        assert "--model-name" in str(caught.value.hint)
    with pytest.raises(ModelError, match="this model is stored already, as 'tiny'"):
        shop.register(model_spec("other"))
    assert [model.name for model in list_models(shop.session.connection())] == ["tiny"]


def test_another_preprocessing_is_another_model(shop: Shop) -> None:
    shop.register()

    with pytest.raises(ModelError, match="preprocessing other instead of print"):
        shop.session.run(
            lambda connection: register_model(connection, model_spec(), "other", location="/models/tiny")
        )


def test_a_table_of_another_dimension_is_refused(shop: Shop) -> None:
    model = shop.register()
    shop.session.connection().execute(
        "DROP VIEW catvec.image_embeddings_tiny;"
        "ALTER TABLE catvec_store.emb_tiny ALTER COLUMN embedding TYPE halfvec(8)"
    )

    with pytest.raises(ModelError, match=r"holds halfvec\(8\), model 'tiny' gives 4 dimensions"):
        check_table(shop.session.connection(), model)

    shop.session.connection().execute("DROP TABLE catvec_store.emb_tiny")
    with pytest.raises(ModelError, match="is gone"):
        check_table(shop.session.connection(), model)


def test_vectors_survive_the_round_trip_in_half_precision(shop: Shop) -> None:
    shop.sync(product("A", "1.jpg"))
    model = shop.register()
    vector = unit(0.3, -0.5, 0.7, 0.1)
    shop.embed(model, [vector])

    stored = shop.one("SELECT embedding FROM catvec.image_embeddings_tiny").to_numpy().astype(np.float32)

    assert np.abs(stored - vector).max() < 5e-4  # half precision keeps 11 bits
