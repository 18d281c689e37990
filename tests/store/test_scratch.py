"""The tables that `catvec bench` writes to: like those of a run, and gone afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pytest

from pipeline.errors import StoreError
from pipeline.records import Embedding, ImageRef, Outcomes
from pipeline.store.scratch import OURS, scratch_tables
from tests.fixtures.roles import WRITER, grant, login
from tests.fixtures.store import content, unit

if TYPE_CHECKING:
    from tests.fixtures.store import Shop

COLUMNS = """
SELECT column_name, data_type, is_nullable FROM information_schema.columns WHERE table_schema = %s AND table_name = %s
"""
INDEXES = "SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = %s AND tablename = %s"


def embedding(number: int) -> Embedding:
    image = ImageRef(image_id=number, product_id="P", url=f"{number}.jpg")
    return Embedding(content=content(image), width=4, height=3, vector=unit(1, number, 0, 0))


@pytest.mark.parametrize("storage", [None, "vector"])
def test_embeddings_are_written_as_a_run_does(shop: Shop, database_url: str, storage: str | None) -> None:
    rows = tuple(embedding(number) for number in (1, 2, 3))
    with scratch_tables(database_url, dims=4, storage=storage) as scratch:
        written = scratch.write(Outcomes(embedded=rows))
        known = scratch.find_known([rows[0].content.sha256, bytes(32)])
        stored = shop.all(
            "SELECT image_id, width FROM catvec_bench.images WHERE content_sha256 IS NOT NULL ORDER BY 1"
        )
        counted = shop.one("SELECT embedded FROM catvec_bench.runs")

    assert (written.embedded, known) == (rows, {rows[0].content.sha256})
    assert (stored, counted) == ([(1, 4), (2, 4), (3, 4)], 3)
    assert shop.one("SELECT to_regnamespace('catvec_bench')") is None
    assert np.isclose(np.linalg.norm(rows[0].vector), 1)


def test_the_tables_are_those_of_a_run_as_far_as_writing_goes(shop: Shop, database_url: str) -> None:
    model = shop.register()
    with scratch_tables(database_url, dims=4):
        for table, real in (
            ("images", "images"),
            ("vectors", model.table),
            ("runs", "runs"),
            ("failures", "failures"),
        ):
            own = set(shop.all(COLUMNS, "catvec_bench", table))
            assert {(name, kind) for name, kind, _ in own} <= {
                (name, kind) for name, kind, _ in shop.all(COLUMNS, "catvec_store", real)
            }, table
        own_indexes = {row[0].replace("vectors", model.table) for row in shop.all(INDEXES, "catvec_bench", "images")}
        assert own_indexes == {row[0] for row in shop.all(INDEXES, "catvec_store", "images")}
        assert shop.one("SELECT reloptions FROM pg_class WHERE oid = 'catvec_bench.images'::regclass") == shop.one(
            "SELECT reloptions FROM pg_class WHERE oid = 'catvec_store.images'::regclass"
        )


def test_what_a_killed_one_left_is_replaced(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE SCHEMA catvec_bench; CREATE TABLE catvec_bench.images ()")
        connection.execute(f"COMMENT ON SCHEMA catvec_bench IS '{OURS}'")

    with scratch_tables(database_url, dims=4) as scratch:
        assert scratch.find_known([bytes(32)]) == set()


def test_somebody_elses_schema_of_that_name_stays(database_url: str, shop: Shop) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE SCHEMA catvec_bench; CREATE TABLE catvec_bench.notes ()")

    with (
        pytest.raises(
            StoreError, match=r"there is a schema catvec_bench in database .* that catvec bench has not made"
        ),
        scratch_tables(database_url, dims=4),
    ):
        pass
    assert shop.one("SELECT to_regclass('catvec_bench.notes')") is not None


@pytest.mark.usefixtures("roles")
def test_who_may_not_create_a_schema_is_told(database_url: str) -> None:
    grant(database_url)

    with pytest.raises(StoreError) as caught, scratch_tables(login(database_url, WRITER), dims=4):
        pass

    assert caught.value.message.endswith(
        ": measuring the database takes a schema of its own, catvec_bench, for a moment"
    )
    assert caught.value.hint == (
        "connect as the owner of catvec's tables; or let --db be another database of the same server"
    )
