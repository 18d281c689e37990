"""Registering models, what a name may stand for, and switching between them while others read."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from pgvector import HalfVector

from pipeline.errors import CatvecError, ConfigError, LockedError, ModelError, StoreError
from pipeline.store.connect import Session
from pipeline.store.index import build_index
from pipeline.store.models import activate_model, check_table, choose_model, mark_ready, register_model
from pipeline.store.runs import take_lock
from pipeline.switch import activate, drop, roll_back
from tests.fixtures.roles import WRITER, grant, login
from tests.fixtures.store import Shop, model_spec, product, unit

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.records import ModelSpec
    from pipeline.store.models import StoredModel

STATES = "SELECT name, state FROM catvec.models ORDER BY name"
SHOWN = "SELECT DISTINCT vector_dims(embedding) FROM catvec.image_embeddings"


def register(shop: Shop, spec: ModelSpec | None = None, **options: Any) -> StoredModel:
    """Register as a run does, at the usual place unless told otherwise."""
    place = {"location": "/models/tiny", **options}
    return shop.session.run(lambda connection: register_model(connection, spec or model_spec(), "print", **place))


def fill(shop: Shop, name: str, dims: int, *, storage: str = "halfvec") -> StoredModel:
    """A ready model with a vector for each image: the n-th points along the n-th axis."""
    model = register(shop, model_spec(name, dims=dims, revision=f"sha256:{name}"), storage=storage)
    shop.embed(model, [np.eye(dims, dtype=np.float32)[number] for number in range(len(shop.work(model)))])
    shop.session.run(lambda connection: mark_ready(connection, model))
    return model


@pytest.fixture
def three(shop: Shop, database_url: str) -> Shop:
    """Three products under a (4 dimensions, active), b (6 dimensions) and c (4 dimensions)."""
    shop.sync(*(product(name, f"{name}.jpg", row=row) for row, name in enumerate("ABC", start=1)))
    for name, dims in (("a", 4), ("b", 6), ("c", 4)):
        fill(shop, name, dims)
    activate(database_url, "a", wait_s=0)
    return shop


# registering


def test_vectors_are_stored_in_half_precision_unless_asked_otherwise(shop: Shop) -> None:
    half = register(shop)
    full = register(shop, model_spec("full", revision="sha256:2"), storage="vector")

    assert (half.storage, full.storage) == ("halfvec", "vector")
    columns = (
        "SELECT format_type(a.atttypid, a.atttypmod) FROM pg_attribute a"
        " WHERE a.attrelid = to_regclass(%s) AND a.attname LIKE 'embedding%%' AND a.attname <> 'embedded_at'"
        " ORDER BY a.attnum"
    )
    assert shop.all(columns, "catvec_store.emb_tiny") == [("halfvec(4)",)]
    assert shop.all(columns, "catvec_store.emb_full") == [("vector(4)",)]
    assert shop.all(columns, "catvec.image_embeddings_tiny") == [("halfvec",)]
    assert shop.all(columns, "catvec.image_embeddings_full") == [("halfvec",), ("vector",)]


def test_vectors_in_full_precision_come_back_as_they_were(shop: Shop) -> None:
    shop.sync(product("A", "1.jpg"), product("B", "2.jpg", row=2))
    model = register(shop, storage="vector")
    vector = unit(0.3, -0.5, 0.7, 0.1)
    shop.embed(model, [vector, unit(0.3, -0.5, 0.1, 0.7)])
    build_index(shop.session.connection(), model)
    shop.activate(model)

    row = "SELECT embedding_fp32, embedding FROM catvec.image_embeddings_tiny WHERE product_id = 'A'"
    [(full, half)] = shop.all(row)

    assert np.array_equal(full.to_numpy(), vector)
    assert 0 < np.abs(half.to_numpy() - vector).max() < 5e-4
    [(found, similarity)] = shop.all(
        "SELECT product_id, similarity FROM catvec.search_by_vector(%s, 1)", HalfVector(vector)
    )
    assert (found, round(similarity, 3)) == ("A", 1.0)
    assert shop.all("SELECT product_id FROM catvec.similar_products('A')") == [("B",)]


def test_another_storage_than_the_stored_one_is_refused(shop: Shop) -> None:
    register(shop, storage="vector")

    assert register(shop).storage == "vector"
    with pytest.raises(ModelError) as caught:
        register(shop, storage="halfvec")

    assert caught.value.message == "model 'tiny' stores its vectors as vector, --storage is 'halfvec'"
    assert caught.value.hint == (
        "leave --storage out to go on with vector; to change it, take the vectors away with catvec models drop tiny, "
        "and run again"
    )


def test_a_table_of_another_storage_is_refused(shop: Shop) -> None:
    model = register(shop)
    shop.session.connection().execute(
        "DROP TABLE catvec_store.emb_tiny CASCADE; CREATE TABLE catvec_store.emb_tiny (embedding vector(4))"
    )

    with pytest.raises(ModelError, match=r"holds vector\(4\), model 'tiny' gives 4 dimensions to store as halfvec"):
        check_table(shop.session.connection(), model)


def test_a_known_model_is_registered_without_a_lock_or_a_write(shop: Shop, database_url: str) -> None:
    register(shop)
    version = "SELECT xmin FROM catvec_store.models"
    before = shop.all(version)

    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE catvec_store.models IN EXCLUSIVE MODE")
        shop.session.connection().execute("SET lock_timeout = '1s'")
        assert register(shop).name == "tiny"

    assert shop.all(version) == before
    register(shop, location="/elsewhere/tiny")
    assert shop.one("SELECT location FROM catvec.models") == "/elsewhere/tiny"


@pytest.mark.usefixtures("roles")
def test_a_writer_runs_known_models_and_the_owner_adds_new_ones(shop: Shop, database_url: str) -> None:
    model = register(shop)
    grant(database_url)

    with Session(login(database_url, WRITER)) as session:
        known = Shop(session)
        assert register(known, location="/elsewhere/tiny").name == "tiny"
        session.run(lambda connection: mark_ready(connection, model))
        with pytest.raises(StoreError, match=f"user '{WRITER}' may not add model 'other': catvec's tables belong to"):
            register(known, model_spec("other", revision="sha256:2"))
    with pytest.raises(StoreError, match=f"user '{WRITER}' may not switch models"):
        activate(login(database_url, WRITER), "tiny", wait_s=0)
    with pytest.raises(StoreError, match=f"user '{WRITER}' may not drop models"):
        drop(login(database_url, WRITER), "tiny", wait_s=0, is_sure=lambda _: True)

    assert shop.all("SELECT name, state, location FROM catvec.models") == [("tiny", "ready", "/elsewhere/tiny")]


def test_two_first_runs_at_once_make_one_model(shop: Shop, database_url: str) -> None:
    def first(results: list[int]) -> None:
        with Session(database_url) as session:
            results.append(register(Shop(session)).model_id)

    results: list[int] = []
    run_at_once([partial(first, results) for _ in range(4)])

    assert results == [shop.one("SELECT model_id FROM catvec.models")] * 4


def test_only_a_loading_model_becomes_ready(three: Shop) -> None:
    for model in (choose_model(three.session.connection(), name) for name in "abc"):
        three.session.run(partial(mark_ready, model=model))

    assert three.all(STATES) == [("a", "active"), ("b", "ready"), ("c", "ready")]


def test_a_retired_model_that_comes_back_begins_anew(three: Shop, database_url: str) -> None:
    spec = model_spec("b", dims=6, revision="sha256:b")
    activate(database_url, "b", wait_s=0)
    activate(database_url, "a", wait_s=0)
    drop(database_url, "b", wait_s=0, is_sure=lambda _: True)

    with pytest.raises(ModelError, match=r"model 'b' in this database was made by another model: weights sha256:9"):
        register(three, model_spec("b", dims=6, revision="sha256:9"))
    with pytest.raises(ModelError, match="this model is stored already, as 'b'"):
        register(three, model_spec("new", dims=6, revision="sha256:b"))
    back = register(three, spec, storage="vector")

    assert (back.state, back.storage, back.retired_at, back.activated_at) == ("loading", "vector", None, None)
    assert three.one("SELECT count(*) FROM catvec.image_embeddings_b") == 0
    with pytest.raises(ModelError, match="no model to go back to"):
        roll_back(database_url, wait_s=0)  # nobody has ever read what b is now
    three.embed(back, [np.eye(6, dtype=np.float32)[number] for number in range(3)])
    three.activate(back)
    assert three.all(SHOWN) == [(6,)]


# switching


def run_at_once(works: list[Any]) -> None:
    """Each in a thread of its own; the first exception is raised here."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result(timeout=30)


def test_a_switch_tells_what_apps_get_and_what_they_had(three: Shop, database_url: str) -> None:
    three.all("INSERT INTO catvec_store.queries (name, text) VALUES ('summer', 'summer dress') RETURNING 1")
    three.all("DELETE FROM catvec_store.emb_b WHERE embedding <=> '[1,0,0,0,0,0]' < 0.5 RETURNING 1")
    build_index(three.session.connection(), choose_model(three.session.connection(), "a"))

    switch = activate(database_url, "b", wait_s=0)

    assert switch.left is not None
    found = [
        (offer.model.name, offer.images, offer.has_index, offer.missing_queries, offer.has_neighbours)
        for offer in (switch.entered, switch.left)
    ]
    assert found == [("b", 2, False, 1, False), ("a", 3, True, 1, False)]
    assert three.all(STATES) == [("a", "ready"), ("b", "active"), ("c", "ready")]
    assert three.all(SHOWN) == [(6,)]


def test_activating_the_active_model_disturbs_nobody(three: Shop, database_url: str) -> None:
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM catvec.image_embeddings")

        assert activate(database_url, "a", wait_s=0).left is None

    # somebody has cleaned up too much: activating it mends that
    three.session.connection().execute("DROP VIEW catvec.image_embeddings")
    activate(database_url, "a", wait_s=0)
    assert three.all(SHOWN) == [(4,)]


def test_rollback_goes_to_the_model_before_and_back(three: Shop, database_url: str) -> None:
    with pytest.raises(ModelError) as caught:
        roll_back(database_url, wait_s=0)
    assert caught.value.message == (
        "there is no model to go back to: none but the active one has been active and still has its vectors"
    )

    for name in ("b", "c"):
        activate(database_url, name, wait_s=0)

    steps = [roll_back(database_url, wait_s=0) for _ in range(2)]
    assert [step.entered.model.name for step in steps] == ["b", "c"]
    drop(database_url, "b", wait_s=0, is_sure=lambda _: True)
    assert roll_back(database_url, wait_s=0).entered.model.name == "a"


@pytest.mark.parametrize("name", ["b", "nix", "gone"])
def test_only_a_ready_model_is_activated(shop: Shop, database_url: str, name: str) -> None:
    shop.sync(product("A", "a.jpg"))
    fill(shop, "a", 4)
    activate(database_url, "a", wait_s=0)
    register(shop, model_spec("b", dims=6, revision="sha256:b"))
    fill(shop, "gone", 5)
    drop(database_url, "gone", wait_s=0, is_sure=lambda _: True)

    with pytest.raises(CatvecError) as caught:
        activate(database_url, name, wait_s=0)

    assert (caught.value.message, caught.value.hint) == {
        "b": ('model "b" is loading, expected ready', "finish a run with this model first"),
        "nix": ("no model 'nix' in this database, there are: a, b", "see: catvec models"),
        "gone": (
            f'model "gone" was retired on {date.today()}, its vectors are gone',
            "a run with this model makes them anew",
        ),
    }[name]
    assert shop.all(STATES) == [("a", "active"), ("b", "loading"), ("gone", "retired")]


def test_two_activations_at_once_both_end_well(three: Shop, database_url: str) -> None:
    for _ in range(5):
        run_at_once([partial(activate, database_url, name, wait_s=20) for name in ("b", "c", "b", "c")])

        [active] = [name for name, state in three.all(STATES) if state == "active"]
        assert three.all(SHOWN) == [({"b": 6, "c": 4}[active],)]


def test_a_switch_gives_up_and_names_who_reads_on(three: Shop, database_url: str) -> None:
    with psycopg.connect(database_url, application_name="monthly report") as reader:
        reader.execute("SELECT count(*) FROM catvec.image_embeddings")
        pid, user = reader.info.backend_pid, reader.info.user

        with pytest.raises(StoreError) as caught:
            activate(database_url, "b", wait_s=0.5)

        assert caught.value.message.startswith(
            "catvec.image_embeddings could not be locked within 0.5 s: "
            f"held by process {pid} of user {user!r} (monthly report) since 20"
        )
        assert caught.value.hint == (
            "nothing has changed; wait until that transaction ends and run the same command again (--wait SECONDS "
            f"waits longer), or end it as its user or an administrator: SELECT pg_terminate_backend({pid});"
        )
        assert three.all(STATES)[0] == ("a", "active")
        assert reader.execute(SHOWN).fetchall() == [(4,)]


def test_a_waiting_switch_holds_no_reader_up_and_is_made_when_the_long_one_ends(
    three: Shop, database_url: str
) -> None:
    """The long reader keeps its answer; those who come meanwhile wait for a fraction of a second."""
    slowest_s, dims = 0.0, set()
    with psycopg.connect(database_url) as long_reader, psycopg.connect(database_url, autocommit=True) as app:
        long_reader.execute("SELECT count(*) FROM catvec.image_embeddings")
        waiting = threading.Thread(target=partial(activate, database_url, "b", wait_s=20))
        waiting.start()
        ends = time.monotonic() + 2.5
        while time.monotonic() < ends:
            began = time.monotonic()
            dims |= {row[0] for row in app.execute(SHOWN)}
            slowest_s = max(slowest_s, time.monotonic() - began)
            time.sleep(0.01)
        assert waiting.is_alive()
        long_reader.rollback()
        waiting.join(timeout=10)

    assert dims == {4}
    assert 0.05 < slowest_s < 1
    assert three.all(SHOWN) == [(6,)]


def test_a_statement_that_was_prepared_before_the_switch_reads_the_new_model(three: Shop, database_url: str) -> None:
    nearest = (
        "SELECT product_id FROM catvec.image_embeddings ORDER BY embedding <=>"
        " (SELECT v.embedding FROM catvec.image_embeddings v WHERE v.product_id = %s LIMIT 1), product_id LIMIT 1"
    )
    with psycopg.connect(database_url, autocommit=True) as app:
        for name, dims in (("b", 6), ("a", 4), ("c", 4), ("b", 6)):
            activate(database_url, name, wait_s=5)
            assert app.execute(nearest, ("B",), prepare=True).fetchall() == [("B",)]
            assert app.execute(SHOWN, prepare=True).fetchall() == [(dims,)]
            similar = "SELECT product_id FROM catvec.similar_products(%s, 5)"
            assert app.execute(similar, ("B",), prepare=True).fetchall() == [("A",), ("C",)]


# dropping


def test_dropping_says_what_goes_and_asks(three: Shop, database_url: str) -> None:
    asked = []

    assert drop(database_url, "b", wait_s=0, is_sure=lambda going: bool(asked.append(going))) is None
    assert three.all(STATES)[1] == ("b", "ready")
    gone = drop(database_url, "b", wait_s=0, is_sure=lambda _: True)

    [told] = asked
    assert gone == told
    assert (told.model.name, told.vectors) == ("b", 3)
    assert told.size_bytes >= 16_384
    assert three.all("SELECT to_regclass('catvec_store.emb_b'), to_regclass('catvec.image_embeddings_b')") == [
        (None, None)
    ]
    assert three.one("SELECT retired_at IS NOT NULL FROM catvec.models WHERE name = 'b'")


def test_what_cannot_be_dropped_is_said_before_anybody_is_asked(three: Shop, database_url: str) -> None:
    def is_sure(_: object) -> bool:
        raise AssertionError("asked")

    drop(database_url, "b", wait_s=0, is_sure=lambda _: True)
    for name, message in (
        ("a", "model 'a' is active: apps read it"),
        ("b", "model 'b' was retired on "),
        ("nix", "no model 'nix' in this database, there are: a, c"),
    ):
        with pytest.raises(CatvecError) as caught:
            drop(database_url, name, wait_s=0, is_sure=is_sure)
        assert caught.value.message.startswith(message)


def test_a_model_that_a_run_fills_is_not_dropped(three: Shop, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as run:
        take_lock(run, "b")

        with pytest.raises(LockedError, match="another run with model 'b' is going on"):
            drop(database_url, "b", wait_s=0, is_sure=lambda _: True)

    assert three.one("SELECT count(*) FROM catvec.image_embeddings_b") == 3


def test_a_model_that_is_being_read_or_built_upon_is_not_dropped(three: Shop, database_url: str) -> None:
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM catvec.image_embeddings_b")
        with pytest.raises(StoreError, match=f"held by process {reader.info.backend_pid} of user"):
            drop(database_url, "b", wait_s=0, is_sure=lambda _: True)

    three.session.connection().execute("CREATE VIEW mine AS SELECT product_id FROM catvec.image_embeddings_b")
    with pytest.raises(ModelError) as caught:
        drop(database_url, "b", wait_s=0, is_sure=lambda _: True)

    assert caught.value.message == (
        "model 'b' cannot be dropped: view mine depends on view catvec.image_embeddings_b"
    )
    assert three.one("SELECT count(*) FROM catvec.image_embeddings_b") == 3


def test_a_model_whose_table_was_removed_by_hand_can_only_be_dropped(three: Shop, database_url: str) -> None:
    three.session.connection().execute("DROP TABLE catvec_store.emb_b CASCADE")

    with pytest.raises(ModelError, match=r"the table catvec_store\.emb_b of model 'b' is gone"):
        activate(database_url, "b", wait_s=0)
    gone = drop(database_url, "b", wait_s=0, is_sure=lambda _: True)

    assert gone is not None
    assert (gone.vectors, gone.size_bytes) == (0, 0)
    assert three.all(STATES) == [("a", "active"), ("b", "retired"), ("c", "ready")]


# law 6: vectors of two models never meet


def refusal(shop: Shop, call: str) -> tuple[str | None, str | None]:
    with pytest.raises(psycopg.Error) as caught:
        shop.all(f"SELECT * FROM catvec.{call}")
    return caught.value.diag.message_primary, caught.value.diag.message_hint


def test_a_query_vector_of_another_dimension_is_refused(three: Shop, database_url: str) -> None:
    assert len(three.all("SELECT * FROM catvec.search_by_vector('[1,0,0,0]')")) == 3
    activate(database_url, "b", wait_s=0)

    assert refusal(three, "search_by_vector('[1,0,0,0]')") == (
        'the query vector has 4 dimensions, model "b" has 6',
        "was it made by another model? name that one in the argument model",
    )
    with pytest.raises(psycopg.errors.DataException, match="different halfvec dimensions 6 and 4"):
        three.all("SELECT product_id FROM catvec.image_embeddings ORDER BY embedding <=> '[1,0,0,0]' LIMIT 1")
    assert len(three.all("SELECT * FROM catvec.search_by_vector('[1,0,0,0]', model => 'a')")) == 3


def test_a_retired_model_is_refused_with_the_reason(three: Shop, database_url: str) -> None:
    drop(database_url, "b", wait_s=0, is_sure=lambda _: True)
    today = three.one("SELECT current_date")

    for call in ("search_by_vector('[1,0,0,0,0,0]', model => 'b')", "similar_products('A', model => 'b')"):
        assert refusal(three, call) == (
            f'model "b" was retired on {today}, its vectors are gone',
            'encode the query with model "a" and name that one, or none',
        )
    with pytest.raises(ConfigError) as caught:
        choose_model(three.session.connection(), "b")
    assert caught.value.message == f"model 'b' was retired on {today}, its vectors are gone"


def test_a_pinned_model_of_the_same_dimension_is_read_from_its_own_table(three: Shop) -> None:
    """a and c have 4 dimensions; in c, the vectors of A and C have changed places."""
    three.all(
        "WITH places AS (SELECT v.product_id, v.content_sha256, v.embedding FROM catvec.image_embeddings_c v)"
        " UPDATE catvec_store.emb_c e SET embedding = other.embedding FROM places own, places other"
        " WHERE own.content_sha256 = e.content_sha256"
        " AND (own.product_id, other.product_id) IN (('A', 'C'), ('C', 'A')) RETURNING 1"
    )
    search = "SELECT product_id FROM catvec.search_by_vector('[1,0,0,0]', 1, model => %s)"

    assert [three.one(search, name) for name in (None, "a", "c")] == ["A", "A", "C"]


def test_activation_inside_a_run_is_one_try_of_its_transaction(three: Shop, database_url: str) -> None:
    """A run activates the first model by itself; its session tries again by itself."""
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM catvec.image_embeddings")
        with pytest.raises(psycopg.errors.LockNotAvailable), three.session.connection().transaction():
            activate_model(three.session.connection(), "b")
    three.session.run(lambda connection: activate_model(connection, "b"))

    assert three.all(SHOWN) == [(6,)]


def test_a_misspelled_model_names_its_nearest_neighbour(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the place that it was loaded from, in place of its name."""
    monkeypatch.chdir(tmp_path)
    register(shop, model_spec("fashion", revision="sha256:f"), location=str(tmp_path / "models" / "clip"))
    register(shop, model_spec("shoes", revision="sha256:s"))
    for name, meant in (("fashon", "fashion"), ("models/clip", "fashion"), ("shoe", "shoes")):
        with pytest.raises(ConfigError) as caught:
            choose_model(shop.session.connection(), name)
        assert caught.value.message == f"no model {name!r} in this database, there are: fashion, shoes"
        assert caught.value.hint == f"did you mean {meant!r}? see: catvec models"
