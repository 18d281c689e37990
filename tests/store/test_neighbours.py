"""Neighbours found beforehand: the same as the functions give, and found anew only where something changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest

from pipeline.errors import LockedError
from pipeline.store.connect import Session
from pipeline.store.models import register_model
from pipeline.store.neighbours import PAGE, TAKE_LOCK, Refresh, build_neighbours
from pipeline.switch import drop
from tests.fixtures.store import Shop, model_spec, product, unit

if TYPE_CHECKING:
    from pipeline.store.models import StoredModel
    from tests.fixtures.command import Catvec

PRODUCTS = 400

TABLE = "SELECT product_id, neighbour_id, rank FROM catvec.neighbours ORDER BY product_id, rank"
TRUTH = """
SELECT p.product_id, s.product_id, s.rank::integer
  FROM (SELECT DISTINCT product_id FROM catvec.image_embeddings) p
 CROSS JOIN LATERAL catvec.similar_products(p.product_id, 5)
       WITH ORDINALITY AS s (product_id, title, category, brand, price, image_id, url, similarity, rank)
 ORDER BY 1, 3
"""


@pytest.fixture
def crowd(shop: Shop) -> StoredModel:
    """400 products in 20 clusters, without an index: what is found is exact."""
    random = np.random.default_rng(11)
    centres = random.standard_normal((20, 16))
    shop.sync(*(product(f"P{number:03}", f"{number}.jpg", row=number) for number in range(PRODUCTS)))
    model = shop.register(model_spec("crowd", dims=16))
    vectors = centres[np.arange(PRODUCTS) % 20] + 0.3 * random.standard_normal((PRODUCTS, 16))
    shop.embed(model, [unit(*vector) for vector in vectors])
    shop.activate(model)
    return model


def test_the_table_says_what_the_function_says(shop: Shop, crowd: StoredModel, database_url: str) -> None:
    told: list[tuple[int, int]] = []

    refresh = build_neighbours(database_url, crowd, k=5, report=lambda *step: told.append(step))

    assert refresh == Refresh(products=PRODUCTS, found=PRODUCTS, removed=0)
    assert shop.all(TABLE) == shop.all(TRUTH)
    assert told == [(done, PRODUCTS) for done in range(0, PRODUCTS + 1, PAGE)]


def test_a_second_time_nothing_is_found_anew_or_rewritten(shop: Shop, crowd: StoredModel, database_url: str) -> None:
    build_neighbours(database_url, crowd, k=5)
    rows = "SELECT xmin::text, ctid::text, product_id FROM catvec_store.neighbours ORDER BY product_id"
    before = shop.all(rows)

    assert build_neighbours(database_url, crowd, k=5) == Refresh(products=PRODUCTS, found=0, removed=0)

    assert shop.all(rows) == before


def test_only_what_a_change_can_have_altered_is_found_anew(shop: Shop, crowd: StoredModel, database_url: str) -> None:
    """A product goes, one comes, one gets another image: afterwards the table is as if built from nothing."""
    build_neighbours(database_url, crowd, k=5)
    rows = [product(f"P{number:03}", f"{number}.jpg", row=number) for number in range(PRODUCTS) if number != 7]
    rows[100] = product("P101", "101.jpg", "101-more.jpg", row=101)
    rows.append(product("NEW", "new.jpg", row=PRODUCTS))
    shop.sync(*rows)
    random = np.random.default_rng(5)
    near = np.array(
        shop.one("SELECT embedding::real[] FROM catvec.image_embeddings WHERE product_id = 'P050'"), dtype=np.float32
    )
    shop.embed(crowd, [unit(*random.standard_normal(16)), unit(*(near + 0.01 * random.standard_normal(16)))])

    refresh = build_neighbours(database_url, crowd, k=5)

    assert (refresh.products, refresh.removed) == (PRODUCTS, 1)
    assert 2 < refresh.found < 60
    assert shop.all(TABLE) == shop.all(TRUTH)


def test_similarities_are_those_of_the_functions_whatever_is_stored(shop: Shop, database_url: str) -> None:
    """Stored with 32 bits a number, compared with 16: nearly the same direction, as far as 16 bits tell."""
    random = np.random.default_rng(3)
    base = random.standard_normal(16)
    shop.sync(*(product(f"P{number:02}", f"{number}.jpg", row=number) for number in range(40)))
    model = shop.session.run(
        lambda connection: register_model(
            connection, model_spec("full", dims=16), "print", location="/models/full", storage="vector"
        )
    )
    shop.embed(model, [unit(*(base + 1e-2 * random.standard_normal(16))) for _ in range(40)])
    shop.activate(model)
    build_neighbours(database_url, model, k=5)
    rows = [product(f"P{number:02}", f"{number}.jpg", row=number) for number in range(40)]
    rows += [product("NEW", "new.jpg", row=40)]
    shop.sync(*rows)
    shop.embed(model, [unit(*(base + 1e-2 * random.standard_normal(16)))])

    build_neighbours(database_url, model, k=5)

    assert shop.all(TABLE) == shop.all(TRUTH)


def test_a_removed_product_is_no_neighbour_even_before_the_next_build(
    shop: Shop, crowd: StoredModel, database_url: str
) -> None:
    build_neighbours(database_url, crowd, k=5)
    shop.session.connection().execute("UPDATE catvec_store.products SET active = false WHERE product_id = 'P007'")

    assert shop.one("SELECT count(*) FROM catvec.neighbours WHERE neighbour_id = 'P007'") == 0


def test_another_k_is_another_table(shop: Shop, crowd: StoredModel, database_url: str) -> None:
    build_neighbours(database_url, crowd, k=5)

    assert build_neighbours(database_url, crowd, k=3).found == PRODUCTS
    assert shop.one("SELECT max(rank) FROM catvec.neighbours") == 3
    assert build_neighbours(database_url, crowd, k=None).found == 0  # as last time


def test_what_broke_off_goes_on_where_it_stopped(shop: Shop, crowd: StoredModel, database_url: str) -> None:
    class PulledPlugError(Exception):
        pass

    def pull_plug(done: int, _total: int) -> None:
        if done == PAGE:
            raise PulledPlugError

    with pytest.raises(PulledPlugError):
        build_neighbours(database_url, crowd, k=5, report=pull_plug)
    assert shop.one("SELECT count(*) FROM catvec_store.neighbours WHERE NOT is_stale") == PAGE

    assert build_neighbours(database_url, crowd, k=5).found == PRODUCTS - PAGE
    assert shop.all(TABLE) == shop.all(TRUTH)


def test_each_model_has_its_own_and_the_view_shows_the_active_ones(
    shop: Shop, crowd: StoredModel, database_url: str
) -> None:
    build_neighbours(database_url, crowd, k=5)
    other = shop.register(model_spec("other", dims=3, revision="sha256:3"))
    shop.embed(other, [unit(1, number, 0) for number in range(PRODUCTS)])
    shop.activate(other)
    assert shop.all(TABLE) == []

    build_neighbours(database_url, other, k=5)

    assert shop.all(TABLE) == shop.all(TRUTH)
    assert shop.one("SELECT count(*) FROM catvec_store.neighbours") == 2 * PRODUCTS


def test_two_builds_at_once_are_refused(crowd: StoredModel, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute(TAKE_LOCK, (crowd.name,))
        with pytest.raises(LockedError, match="the neighbours of model 'crowd' are being built already"):
            build_neighbours(database_url, crowd, k=5)


def test_a_model_is_not_dropped_under_a_build(shop: Shop, crowd: StoredModel, database_url: str) -> None:
    other = shop.register(model_spec("other", dims=3, revision="sha256:3"))
    shop.embed(other, [unit(1, number, 0) for number in range(PRODUCTS)])
    with psycopg.connect(database_url, autocommit=True) as builder:
        builder.execute(TAKE_LOCK, ("other",))
        with pytest.raises(LockedError, match="the neighbours of model 'other' are being built already"):
            drop(database_url, "other", wait_s=0, is_sure=lambda _: True)


def test_one_lookup_by_primary_key(shop: Shop, crowd: StoredModel, database_url: str) -> None:
    build_neighbours(database_url, crowd, k=5)
    with Session(database_url) as session:
        session.connection().execute("ANALYZE catvec_store.neighbours")

    plan = "\n".join(
        row[0] for row in shop.all("EXPLAIN SELECT neighbour_id FROM catvec.neighbours WHERE product_id = 'P007'")
    )

    assert "Index Scan using neighbours_pkey" in plan


@pytest.mark.usefixtures("crowd")
def test_the_command_says_what_it_did(catvec: Catvec, database_url: str) -> None:
    outcome = catvec("neighbours", "build", "-k", 5, "--db", database_url, "--json")

    found: dict[str, Any] = outcome.json()
    assert (outcome.code, found) == (0, {"products": PRODUCTS, "found": PRODUCTS, "removed": 0})
    assert outcome.err.endswith(
        "400 products have neighbours; found anew for 400, removed with 0 that left; "
        "read them in the view catvec.neighbours\n"
    )
