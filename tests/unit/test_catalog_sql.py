"""A database as catalog: SQLite as a file, and a real Postgres."""

from __future__ import annotations

import sqlite3
import tracemalloc
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING

import psycopg
import pytest

from pipeline.catalog import image_root, read_catalog
from pipeline.errors import CatalogError, CatvecError, ConfigError
from pipeline.records import BadRow, Product
from pipeline.settings import CatalogSettings

if TYPE_CHECKING:
    from pathlib import Path

SELECT = "SELECT id, image_url, title FROM products"


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """The URL of a database with two products."""
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE products (id INTEGER, image_url TEXT, title TEXT, price REAL)")
        rows = [(1, "https://x.y/a.jpg", "shirt :blue 50%", 12.5), (2, "b.jpg", None, None)]
        connection.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", rows)
    connection.close()
    return f"sqlite:///{tmp_path / 'shop.db'}"


def read(uri: str, query: str | None = SELECT, **settings: object) -> list[Product | BadRow]:
    return list(read_catalog(CatalogSettings(uri=uri, query=query, **settings)))  # type: ignore[arg-type]


def error(uri: str, query: str | None = SELECT) -> CatvecError:
    with pytest.raises(CatvecError) as caught:
        read(uri, query)
    return caught.value


def test_the_rows_of_a_query_become_products(shop: str, tmp_path: Path) -> None:
    query = "SELECT id, image_url, title, price, 1.5 AS weight FROM products WHERE title LIKE '%:blue%' OR id > 1;"
    assert read(shop, query, image_root=tmp_path) == [
        Product(
            row=1,
            product_id="1",
            images=("https://x.y/a.jpg",),
            title="shirt :blue 50%",
            price=Decimal("12.5"),
            attrs={"weight": 1.5},
        ),
        Product(row=2, product_id="2", images=("b.jpg",), attrs={"weight": 1.5}),
    ]


def test_relative_paths_of_a_database_need_an_image_root(shop: str) -> None:
    assert image_root(CatalogSettings(uri=shop)) is None
    assert [record.code for record in read(shop) if isinstance(record, BadRow)] == ["no_image_root"]


def test_a_query_that_writes_is_refused_and_rolled_back(shop: str) -> None:
    assert error(shop, "DELETE FROM products").message == "--query returns no rows, expected a SELECT"
    assert len(read(shop)) == 3


def test_what_cannot_work_is_said_before_anything_runs(shop: str, tmp_path: Path) -> None:
    assert error(shop, None).message == "a database as catalog needs --query"
    assert str(error(shop, None).hint).startswith("for example --query 'SELECT id, image_url")
    missing = error(f"sqlite:///{tmp_path / 'missing.db'}")
    assert isinstance(missing, CatalogError)
    assert missing.message == f"no such file {str(tmp_path / 'missing.db')!r}"
    assert not (tmp_path / "missing.db").exists()
    assert error(shop, "SELECT id, title FROM products").hint == "name it with --image-column"
    assert error(shop, f"{SELECT} WHERE false").message == "the result of --query holds no products"


def test_a_wrong_query_is_in_the_databases_own_words(shop: str) -> None:
    wrong = error(shop, "SELECT * FROM produkts")
    assert isinstance(wrong, CatalogError)
    assert wrong.message.startswith("sqlite database ")
    assert wrong.message.endswith("refuses: no such table: produkts")


def test_columns_of_one_name_are_refused(shop: str) -> None:
    assert error(shop, "SELECT id, image_url, title AS id FROM products").message == (
        "the result of --query has more than one column named 'id'"
    )


@pytest.mark.parametrize(
    ("uri", "package"),
    [
        ("mysql://me:secret@host/shop", "pymysql"),
        ("mssql+pyodbc://me:secret@host/shop", "pyodbc"),
        ("snowflake://me:secret@host/shop", "snowflake-sqlalchemy"),
    ],
)
def test_a_missing_driver_names_its_package(uri: str, package: str) -> None:
    missing = error(uri)
    assert isinstance(missing, ConfigError)
    assert missing.message.startswith("no driver for ")
    assert missing.hint == f"pip install {package}"
    assert "secret" not in missing.message


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:secret@127.0.0.1:1/shop",
        "postgresql://me:secret@127.0.0.1:1/shop?password=secret",
        "postgresql://me:se:cret@127.0.0.1:secret/shop",
        "postgresql://me:secret@127.0.0.1:1/shop?nonsense=secret",
        "mysql+pymysql://me:secret@[/shop",
    ],
)
def test_no_error_holds_a_password(uri: str) -> None:
    found = error(uri)
    assert "secret" not in found.message + str(found.hint)
    # what `-v` prints
    chain: BaseException | None = found
    while chain is not None:
        assert "secret" not in str(chain)
        chain = chain.__cause__


def test_postgres_is_streamed_and_read_only(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE products (id uuid, image_url text[], price numeric, attrs jsonb, at date)")
        connection.execute(
            "INSERT INTO products "
            "SELECT md5(n::text)::uuid, ARRAY['https://x.y/%41.jpg', 'https://x.y/' || n], 9.90, "
            "jsonb_build_object('note', repeat('x', 1000)), '2024-02-29' FROM generate_series(1, 8000) AS n"
        )
    query = "SELECT * FROM products WHERE image_url[1] LIKE '%:%' ORDER BY image_url[2] COLLATE \"C\" -- all\n;"
    tracemalloc.start()
    try:
        records = read_catalog(CatalogSettings(uri=empty_database_url, query=query))
        first = next(records)
        assert sum(1 for _ in records) == 7_999
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000  # all rows would be more than 16 MB
    assert first == Product(
        row=1,
        product_id=str(uuid.UUID("c4ca4238a0b923820dcc509a6f75849b")),
        images=("https://x.y/%41.jpg", "https://x.y/1"),
        price=Decimal("9.90"),
        attrs={"attrs": {"note": "x" * 1000}, "at": "2024-02-29"},
    )
    refused = error(empty_database_url, "WITH gone AS (DELETE FROM products RETURNING *) SELECT * FROM gone")
    assert isinstance(refused, CatalogError)
    wrong = error(empty_database_url.replace("@", "x@", 1))
    assert "password authentication failed" in wrong.message
