"""The public functions and views, as apps call them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest

from pipeline.errors import ConfigError, ModelError
from pipeline.store.connect import Session
from pipeline.store.index import build_index, find_index, refresh_statistics
from pipeline.store.models import activate_model
from pipeline.store.search import search_by_vector, similar_products
from tests.fixtures.store import Shop, model_spec, product, unit

if TYPE_CHECKING:
    from pipeline.store.models import StoredModel

SEARCH = "SELECT product_id, round(similarity::numeric, 3)::float8 FROM catvec.search_by_vector"


@pytest.fixture
def four(shop: Shop) -> StoredModel:
    """Four products around the first axis; B has two images."""
    shop.sync(
        product("A", "a.jpg", row=1, category="dress", brand="X", price=Decimal(10), attrs={"colour": "red"}),
        product(
            "B", "b1.jpg", "b2.jpg", row=2, category="dress", brand="Y", price=Decimal(20), attrs={"colour": "red"}
        ),
        product("C", "c.jpg", row=3, category="shoe", brand="X", price=Decimal(30), attrs={"colour": "blue"}),
        product("D", "d.jpg", row=4, category="hat"),
    )
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, 0), unit(1, 1, 0, 0), unit(0, 0, 0, 1), unit(1, 2, 0, 0), unit(0, 1, 0, 0)])
    shop.activate(model)
    return model


@pytest.mark.usefixtures("four")
def test_search_gives_each_product_once_nearest_first(shop: Shop) -> None:
    assert shop.all(SEARCH + "('[1,0,0,0]', 3)") == [("A", 1.0), ("B", 0.707), ("C", 0.447)]


@pytest.mark.usefixtures("four")
def test_every_spelling_of_a_vector_is_understood(shop: Shop) -> None:
    expected = shop.all(SEARCH + "('[1,0,0,0]', 2)")

    for call in (
        "catvec.search_by_vector('[1,0,0,0]'::halfvec, 2)",
        "catvec.search_by_vector('[1,0,0,0]'::vector, 2)",
        "catvec.search_by_array(ARRAY[1,0,0,0]::float8[], 2)",
    ):
        assert shop.all(f"SELECT product_id, round(similarity::numeric, 3)::float8 FROM {call}") == expected


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({}, ["B", "C", "D"]),
        ({"category": "dress"}, ["B"]),
        ({"category": ["dress", "shoe"]}, ["B", "C"]),
        ({"brand": "X"}, ["C"]),
        ({"price": {"min": 25}}, ["C"]),
        ({"price": {"max": 25}}, ["B"]),
        ({"price": {"min": 15, "max": 30.0}}, ["B", "C"]),
        ({"colour": "red"}, ["B"]),
        ({"colour": "green"}, []),
        ({"category": "dr'ess"}, []),
        ({"category": "dress", "colour": "blue"}, []),
    ],
)
def test_similar_products_takes_filters_and_leaves_the_product_out(
    shop: Shop, conditions: dict[str, Any], found: list[str]
) -> None:
    hits = similar_products(shop.session.connection(), "A", k=10, conditions=conditions, model=None)

    assert [hit.product_id for hit in hits] == found


@pytest.mark.usefixtures("four")
def test_similar_products_takes_the_best_pair_of_images(shop: Shop) -> None:
    """D is far from B's second image and near to its first."""
    hits = similar_products(shop.session.connection(), "B", k=2, conditions={}, model=None)

    assert [(hit.product_id, round(hit.similarity, 2), hit.image) for hit in hits] == [
        ("C", 0.95, "c.jpg"),
        ("A", 0.71, "a.jpg"),
    ]


@pytest.mark.usefixtures("four")
def test_a_removed_product_is_found_no_more(shop: Shop) -> None:
    shop.sync(product("A", "a.jpg"), product("C", "c.jpg", row=2), product("D", "d.jpg", row=3), max_remove_rate=1)

    assert [row[0] for row in shop.all(SEARCH + "('[1,0,0,0]', 10)")] == ["A", "C", "D"]
    assert shop.one("SELECT count(*) FROM catvec.image_embeddings") == 3


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("catvec.search_by_vector('[1,0,0]')", 'the query vector has 3 dimensions, model "tiny" has 4'),
        ("catvec.search_by_vector('[0,0,0,0]')", "the query vector is zero"),
        ("catvec.search_by_vector('[NaN,0,0,0]')", "NaN not allowed in halfvec"),
        ("catvec.search_by_vector(NULL)", "the query vector is null"),
        ("catvec.search_by_vector('[1,0,0,0]', 0)", "k is 0, expected 1 to 1000"),
        ("catvec.search_by_vector('[1,0,0,0]', 1001)", "k is 1001, expected 1 to 1000"),
        ("catvec.search_by_vector('[1,0,0,0]', NULL)", "k is null, expected 1 to 1000"),
        ("catvec.search_by_vector('[1,0,0,0]', 5, '[]')", "filter is a JSON array, expected an object"),
        ("catvec.search_by_vector('[1,0,0,0]', 5, '\"a\"')", "filter is a JSON string, expected an object"),
        ("catvec.search_by_vector('[1,0,0,0]', 5, '{\"price\": 5}')", 'filter key "price" is 5, expected'),
        ("catvec.search_by_vector('[1,0,0,0]', 5, '{\"category\": 5}')", 'filter key "category" is 5, expected'),
        ("catvec.search_by_vector('[1,0,0,0]', 5, '{}', 'nix')", 'no model "nix", there are: tiny'),
        ("catvec.similar_products('nix')", "no product 'nix'"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(shop: Shop, call: str, message: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        shop.all(f"SELECT * FROM {call}")

    assert message in str(caught.value.diag.message_primary)


def test_before_the_first_model_the_view_is_empty_and_the_functions_say_so(shop: Shop) -> None:
    assert shop.all("SELECT product_id, image_id, url, position, embedding FROM catvec.image_embeddings") == []
    with pytest.raises(psycopg.Error, match="no model is active yet"):
        shop.all("SELECT * FROM catvec.search_by_vector('[1,0]')")


@pytest.mark.usefixtures("four")
def test_activation_switches_the_view_across_dimensions(shop: Shop) -> None:
    other = shop.register(model_spec("wide", dims=6, revision="sha256:6"))
    with pytest.raises(ModelError, match='model "wide" is loading, expected ready'):
        activate_model(shop.session.connection(), "wide")
    with pytest.raises(ModelError, match="no model 'nix'"):
        activate_model(shop.session.connection(), "nix")

    shop.embed(other, [np.eye(6, dtype=np.float32)[number] for number in range(5)])
    shop.activate(other)

    assert shop.all("SELECT name, state FROM catvec.models ORDER BY name") == [("tiny", "ready"), ("wide", "active")]
    assert shop.one("SELECT vector_dims(embedding) FROM catvec.image_embeddings LIMIT 1") == 6
    # an app that has not followed yet names the model its vectors come from
    assert [row[0] for row in shop.all(SEARCH + "('[1,0,0,0]', 1, '{}', 'tiny')")] == ["A"]


def fill(shop: Shop, rows: int, *, dims: int = 32) -> StoredModel:
    """Many vectors, sixteen to a cluster."""
    random = np.random.default_rng(3)
    centres = random.standard_normal((rows // 16 + 1, dims))
    shop.sync(*(product(f"P{number:05}", f"{number}.jpg", row=number) for number in range(rows)))
    model = shop.register(model_spec("wide", dims=dims))
    vectors = centres[np.arange(rows) // 16] + 0.3 * random.standard_normal((rows, dims))
    shop.embed(model, list((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)))
    return model


def test_the_index_is_built_and_used_by_view_and_functions(shop: Shop) -> None:
    model = fill(shop, 6000, dims=128)  # fewer, narrower rows the planner rightly reads one by one
    assert not find_index(shop.session.connection(), model).exists

    refresh_statistics(shop.session.connection(), model)
    state = build_index(shop.session.connection(), model)

    assert state.is_valid
    shop.activate(model)
    plan = "\n".join(
        row[0]
        for row in shop.all(
            "EXPLAIN SELECT product_id FROM catvec.image_embeddings ORDER BY embedding <=>"
            " (SELECT embedding FROM catvec.image_embeddings WHERE product_id = 'P00007') LIMIT 5"
        )
    )
    assert f"Index Scan using {state.name}" in plan
    scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s"
    shop.all("SELECT pg_stat_force_next_flush()")
    before = shop.one(scans, state.name)
    assert len(shop.all("SELECT * FROM catvec.similar_products('P00007', 15)")) == 15
    shop.all("SELECT pg_stat_force_next_flush()")
    assert shop.one(scans, state.name) == before + 1


def test_functions_find_what_an_exact_search_finds(shop: Shop) -> None:
    model = fill(shop, 3000)
    shop.activate(model)
    exact = set(shop.all("SELECT product_id FROM catvec.similar_products('P00100', 15)"))

    build_index(shop.session.connection(), model)

    found = set(shop.all("SELECT product_id FROM catvec.similar_products('P00100', 15)"))
    assert len(found & exact) >= 14


@pytest.mark.slow
def test_a_filter_that_leaves_only_what_is_far_away_still_gives_the_nearest_of_it(shop: Shop) -> None:
    """By itself an index scan gives up after 20,000 rows and answers with what it has come across."""
    model = fill(shop, 25_000)
    near = "(SELECT embedding FROM catvec.image_embeddings_wide WHERE product_id = 'P00007')"
    shop.session.connection().execute(
        "UPDATE catvec_store.products p SET attrs = '{\"far\": 1}' FROM catvec.image_embeddings_wide v"
        f" WHERE v.product_id = p.product_id AND v.embedding <=> {near} > 1.2"
    )
    refresh_statistics(shop.session.connection(), model)
    build_index(shop.session.connection(), model)
    shop.activate(model)
    exact = shop.all(
        "SELECT v.product_id FROM catvec.image_embeddings v JOIN catvec.products p ON p.product_id = v.product_id"
        f" WHERE p.attrs @> '{{\"far\": 1}}' ORDER BY (v.embedding <=> {near}) + 0 LIMIT 10"
    )

    found = shop.all("SELECT product_id FROM catvec.similar_products('P00007', 10, '{\"far\": 1}')")

    assert len(found) == 10
    assert len(set(found) & set(exact)) >= 9


def test_products_with_many_images_do_not_crowd_the_others_out(shop: Shop) -> None:
    crowd = [f"{number}.jpg" for number in range(300)]
    shop.sync(product("CROWD", *crowd), *(product(f"P{number}", f"p{number}.jpg", row=number) for number in range(5)))
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, 0.001 * number) for number in range(300)] + [unit(0, 1, 0, 0)] * 5)
    shop.activate(model)

    found = shop.all("SELECT product_id FROM catvec.search_by_vector('[1,0,0,0]', 4)")

    assert found == [("CROWD",), ("P0",), ("P1",), ("P2",)]


def test_a_broken_off_index_is_replaced(shop: Shop, postgres: str, database_url: str) -> None:
    model = fill(shop, 100)
    build_index(shop.session.connection(), model)
    with psycopg.connect(f"{postgres.rsplit('/', 1)[0]}/{database_url.rsplit('/', 1)[1]}") as admin:
        admin.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'catvec_store.emb_wide_hnsw'::regclass"
        )
    assert not find_index(shop.session.connection(), model).is_valid

    assert build_index(shop.session.connection(), model).is_valid


@pytest.mark.usefixtures("four")
def test_functions_leave_the_callers_settings_alone(shop: Shop) -> None:
    with shop.session.connection().transaction():
        shop.session.connection().execute("SET LOCAL hnsw.ef_search = 77")
        shop.all(SEARCH + "('[1,0,0,0]', 3)")

        assert shop.one("SHOW hnsw.ef_search") == "77"
        assert shop.one("SHOW hnsw.iterative_scan") == "off"
        assert shop.one("SHOW hnsw.max_scan_tuples") == "20000"
        assert shop.one("SHOW hnsw.scan_mem_multiplier") == "1"


@pytest.mark.usefixtures("four")
def test_a_read_only_transaction_can_search(shop: Shop) -> None:
    with shop.session.connection().transaction():
        shop.session.connection().execute("SET TRANSACTION READ ONLY")

        assert len(shop.all(SEARCH + "('[1,0,0,0]', 3)")) == 3


@pytest.mark.usefixtures("four")
def test_the_functions_raise_configuration_errors_in_python(shop: Shop) -> None:
    connection = shop.session.connection()

    with pytest.raises(ConfigError, match="no product 'nix'"):
        similar_products(connection, "nix", k=5, conditions={}, model=None)
    with pytest.raises(ConfigError, match="3 dimensions"):
        search_by_vector(connection, unit(1, 0, 0), k=5, conditions={}, model=None)


def test_everything_works_with_the_extension_in_another_schema(postgres: str, empty_database_url: str) -> None:
    from pipeline.store.migrate import migrate

    admin_url = f"{postgres.rsplit('/', 1)[0]}/{empty_database_url.rsplit('/', 1)[1]}"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute('CREATE SCHEMA "Ext 1"; ALTER EXTENSION vector SET SCHEMA "Ext 1"')
        admin.execute('GRANT USAGE ON SCHEMA "Ext 1" TO PUBLIC')
    migrate(empty_database_url)

    with Session(empty_database_url) as session:
        shop = Shop(session)
        shop.sync(product("A", "a.jpg"), product("B", "b.jpg", row=2))
        model = shop.register()
        shop.embed(model, [unit(1, 0, 0, 0), unit(1, 1, 0, 0)])
        build_index(session.connection(), model)
        shop.activate(model)
    with psycopg.connect(empty_database_url) as app:  # nothing of ours on its search_path
        rows = app.execute("SELECT product_id FROM catvec.similar_products('A')").fetchall()
        assert rows == [("B",)]
        assert app.execute("SELECT product_id FROM catvec.search_by_vector('[1,0,0,0]', 1)").fetchall() == [("A",)]
