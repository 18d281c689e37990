"""Catalogs that cannot be read, catalogs with rows that cannot be used, and odd ones that can.

Each error has its exit code, its sentence and its cure; and nothing that was stored before is lost.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.catalogs import photo, write_catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fixtures.command import Catvec
    from tests.fixtures.healthy import Healthy

REMOVAL = (
    "if they are really gone, raise --max-remove-rate; if this is another catalog beside the first, "
    "name it with --catalog-name; if it holds only what changed, add --partial"
)


def unknown_id_column(path: Path) -> list[object]:
    path.write_text("sku,image\nP00,0.jpg\n")
    return [path, "--id-column", "artno"]


def unknown_image_column(path: Path) -> list[object]:
    path.write_text("sku,image_url\nP00,0.jpg\n")
    return [path, "--image-column", "imageurls"]


def missing_file(path: Path) -> list[object]:
    path.with_name("catalogue.csv").touch()
    return [path]


def no_column_is_an_id(path: Path) -> list[object]:
    path.write_text("colour,image\nred,0.jpg\n")
    return [path]


def two_columns_of_one_name(path: Path) -> list[object]:
    path.write_text("sku,image,image\nP00,0.jpg,1.jpg\n")
    return [path]


def written(data: str | bytes) -> Callable[[Path], list[object]]:
    """Write the catalog and give no options."""

    def write(path: Path) -> list[object]:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return [path]

    return write


def empty_json(path: Path) -> list[object]:
    path.write_text('{"products": []}')
    return [path, "--format", "json"]


def empty_folder(path: Path) -> list[object]:
    path.mkdir()
    return [path]


def unknown_ending(path: Path) -> list[object]:
    return [shutil.copy(__file__, path.with_suffix(".doc"))]


def unknown_encoding(path: Path) -> list[object]:
    path.write_text("sku,image\nP00,0.jpg\n")
    return [path, "--encoding", "utf-9"]


def no_query(path: Path) -> list[object]:
    sqlite3.connect(path).close()
    path.touch()
    return [f"sqlite:///{path}"]


def query_without_table(path: Path) -> list[object]:
    path.touch()
    return [f"sqlite:///{path}", "--query", "SELECT * FROM products"]


def no_image_root(path: Path) -> list[object]:
    path.write_text("sku,image\nP00,0.jpg\n")
    return [path, "--image-root", path.with_name("nowhere")]


@pytest.mark.parametrize(
    ("make", "code", "error", "hint"),
    [
        (
            unknown_id_column,
            2,
            "--id-column names 'artno', which the catalog does not have; it has 'sku', 'image'",
            None,
        ),
        (
            unknown_image_column,
            2,
            "--image-column names 'imageurls', which the catalog does not have; it has 'sku', 'image_url'",
            "did you mean 'image_url'?",
        ),
        (
            no_column_is_an_id,
            2,
            "none of the catalog's columns is known to hold the id; it has 'colour', 'image'",
            "name it with --id-column",
        ),
        (missing_file, 1, "no such file '{path}'", "did you mean '{folder}/catalogue.csv'?"),
        (
            two_columns_of_one_name,
            1,
            "'{path}' has more than one column named 'image'",
            "rename them, for example to image_1 and image_2",
        ),
        (written(""), 1, "'{path}' holds no products", None),
        (written("sku,image\r\n"), 1, "'{path}' holds no products", None),
        (empty_json, 1, "'{path}' holds no products: the array in it is empty", None),
        (empty_folder, 1, "'{path}' holds no products", "images are .jpg, .png, .webp, .avif and the like"),
        (
            written("sku,title,image\nP00,für Kinder,0.jpg\n".encode("cp1252")),
            1,
            "'{path}' is not utf-8: byte 0xfc at position 21, before its first row ends",
            "try --encoding cp1252",
        ),
        (
            written("sku,image\nP00,0.jpg\n".encode("utf-16")),
            1,
            "'{path}' begins with the byte order mark of utf-16, expected utf-8",
            "add --encoding utf-16",
        ),
        (
            written("<!DOCTYPE html><title>Log in</title>\n"),
            1,
            "'{path}' begins with '<!DOCTYPE html><titl', expected CSV: this is an HTML or XML page",
            "look into the file: the server may have sent an error page",
        ),
        (
            written('sku,image\nP00,0.jpg\nP01,"1.jpg\nP02,2.jpg\n'),
            1,
            "'{path}' has a quote in the row of line 3 that is never closed, after row 1",
            'the file may be cut off there; else close the quote, or write "" for a quote inside a quoted cell',
        ),
        (
            unknown_encoding,
            2,
            "unknown encoding 'utf-9'",
            "for example --encoding utf-8, cp1252, latin-1 or utf-16",
        ),
        (
            no_query,
            2,
            "a database as catalog needs --query",
            "for example --query 'SELECT id, image_url, title, price FROM products'",
        ),
        (query_without_table, 1, "sqlite database '{path}' refuses: no such table: products", None),
        (no_image_root, 2, "--image-root '{folder}/nowhere' is no folder", None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_catalog_that_cannot_be_read(
    catvec: Catvec,
    unchanged: Healthy,
    tmp_path: Path,
    make: Callable[[Path], list[object]],
    code: int,
    error: str,
    hint: str | None,
) -> None:
    path = tmp_path / "catalog.csv"

    outcome = catvec("run", *make(path), *unchanged.options)

    names = {"path": path, "folder": tmp_path}
    assert outcome.complaint() == (code, error.format(**names), hint and hint.format(**names))


def test_an_unknown_ending_is_named(catvec: Catvec, unchanged: Healthy, tmp_path: Path) -> None:
    [path] = unknown_ending(tmp_path / "catalog.csv")

    code, error, hint = catvec("run", path, *unchanged.options).complaint()

    assert code == 2
    assert error.startswith(f"unknown ending '.doc' of '{path}', expected .csv, .tsv, ")
    assert hint == "name the kind with --format csv|tsv|json|jsonl|parquet|folder|sql; save a spreadsheet as CSV"


def test_a_catalog_that_breaks_off_late_changes_nothing(catvec: Catvec, unchanged: Healthy, tmp_path: Path) -> None:
    """The damage is only seen while the rows are already on their way into the database."""
    rows = "".join(f"P{number:02},new title,{number}.jpg\n" for number in range(12))
    path = tmp_path / "catalog.csv"
    path.write_bytes(f"sku,title,image\n{rows}P12,".encode() + b"\xff\n")

    outcome = catvec("run", path, *unchanged.options)

    assert outcome.complaint()[:2] == (1, f"'{path}' is not utf-8: byte 0xff at position 262, after row 12")
    assert unchanged.execute("SELECT state, error FROM catvec.run_status ORDER BY run_id DESC LIMIT 1") == [
        ("failed", outcome.complaint()[1])
    ]


def test_another_shops_catalog_removes_nothing(catvec: Catvec, unchanged: Healthy, tmp_path: Path) -> None:
    path = write_catalog(tmp_path / "other.csv", [{"sku": "X1", "image": "0.jpg"}])

    assert catvec("run", path, *unchanged.options).complaint() == (
        1,
        "12 of the 12 products stored from catalog 'default' are missing in this one, "
        "more than --max-remove-rate 0.1 allows; nothing was changed",
        REMOVAL,
    )


def test_an_export_whose_image_column_came_out_empty_removes_nothing(
    catvec: Catvec, unchanged: Healthy, tmp_path: Path
) -> None:
    """Every product is there; without their images all of them would leave the search results."""
    path = write_catalog(tmp_path / "catalog.csv", [{**row, "image": ""} for row in unchanged.rows])

    assert catvec("run", path, *unchanged.options).complaint() == (
        1,
        "12 of the 12 products stored from catalog 'default' are missing in this one, or have no image in it, "
        "more than --max-remove-rate 0.1 allows; nothing was changed",
        REMOVAL,
    )


def test_rows_that_are_no_products_are_failures_and_the_others_go_on(
    catvec: Catvec, healthy: Healthy, tmp_path: Path
) -> None:
    folder = shutil.copytree(healthy.folder, tmp_path / "shop")
    with (folder / "catalog.csv").open("a", encoding="utf-8", newline="") as file:
        file.write(
            "RAGGED,one cell too few,odd,0.jpg,1\r\n"
            ",no id,odd,0.jpg,1,red\r\n"
            "NUL,a\0b,odd,0.jpg,1,red\r\n"
            "NONE,no image,odd,,1,red\r\n"
            "FTP,scheme,odd,ftp://host/0.jpg,1,red\r\n"
            "OUT,path,odd,../0.jpg,1,red\r\n"
            "ETC,path,odd,/etc/passwd,1,red\r\n"
            f"LONG,category,{'x' * 501},0.jpg,1,red\r\n"
            "P03,another title,odd,3.jpg,3.50,red\r\n"
            "p03,another case is another product,odd,3.jpg,3.50,red\r\n"
            " P04 ,thing 4,even,4.jpg,4.50,red\r\n"
        )
    before = healthy.stored()

    outcome = catvec("run", folder / "catalog.csv", *healthy.options, "--json")

    assert outcome.code == 3
    summary = outcome.json()
    assert (summary["seen"], summary["unchanged"], summary["reused"], summary["failed"]) == (22, 12, 1, 9)
    assert healthy.failures() == {
        "RAGGED": ("catalog", "ragged_row", "5 cells, expected 6 (line 14)"),
        "row 14": ("catalog", "missing_id", "column 'sku' is empty"),
        "NUL": ("catalog", "bad_text", "column 'title' holds a NUL character or half a surrogate pair"),
        "NONE": ("catalog", "no_image", "no image"),
        "FTP": ("catalog", "unsupported_url", "scheme 'ftp', expected http, https, data or a path"),
        "OUT": ("catalog", "outside_root", "a path that leaves the image root"),
        "ETC": ("catalog", "outside_root", "an absolute path outside the image root"),
        "LONG": ("catalog", "too_long", "column 'category' has 501 characters, expected at most 500"),
        "P03": ("catalog", "duplicate_id", "product P03 stands in row 4 already, with other values"),
    }
    assert healthy.lost(before) == {}
    assert healthy.execute("SELECT title FROM catvec.products WHERE product_id IN ('P03', 'p03') ORDER BY 1") == [
        ("another case is another product",),
        ("thing 3",),
    ]


ODD_ROWS = (
    {"id": "Ä-1", "title": 'grün, "fein"\nund neu', "image": "a.jpg", "price": "1.234,50 €"},
    {"id": "2", "title": "日本語 👕", "image": "b.jpg", "price": "7"},
)
ODD_PRODUCTS = [
    ("2", "日本語 👕", Decimal(7), "b.jpg"),
    ("Ä-1", 'grün, "fein"\nund neu', Decimal("1234.50"), "a.jpg"),
]
WESTERN_ROWS = tuple({**row, "title": row["title"].replace("日本語 👕", "für 5 €")} for row in ODD_ROWS)
WESTERN_PRODUCTS = [(ODD_PRODUCTS[0][0], "für 5 €", *ODD_PRODUCTS[0][2:]), ODD_PRODUCTS[1]]


def as_csv(rows: tuple[dict[str, str], ...], delimiter: str = ",", end: str = "\r\n") -> str:
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in cells]
    return "".join(delimiter.join(line) + end for line in quoted)


def as_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(ODD_ROWS)), path)


def as_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE goods (id, title, image, price)")
        connection.executemany("INSERT INTO goods VALUES (:id, :title, :image, :price)", ODD_ROWS)
    connection.close()


def lines_of_json(rows: tuple[dict[str, str], ...]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


@pytest.mark.parametrize(
    ("name", "data", "options", "products"),
    [
        ("bom.csv", as_csv(ODD_ROWS).encode("utf-8-sig"), [], ODD_PRODUCTS),
        ("excel.csv", as_csv(WESTERN_ROWS, ";").encode("cp1252"), ["--encoding", "cp1252"], WESTERN_PRODUCTS),
        ("utf16.csv", as_csv(ODD_ROWS, "\t").encode("utf-16"), ["--encoding", "utf-16"], ODD_PRODUCTS),
        ("one-row.csv", as_csv(ODD_ROWS[1:], end="\n").rstrip().encode(), [], ODD_PRODUCTS[:1]),
        ("packed.tsv.gz", gzip.compress(as_csv(ODD_ROWS, "\t").encode()), [], ODD_PRODUCTS),
        ("array.json", json.dumps({"total": 2, "products": ODD_ROWS}).encode(), [], ODD_PRODUCTS),
        ("lines.jsonl", lines_of_json(ODD_ROWS).encode(), [], ODD_PRODUCTS),
        ("table.parquet", as_parquet, [], ODD_PRODUCTS),
        (
            "goods.db",
            as_sqlite,
            ["--query", "SELECT id, title, image, price FROM goods", "--image-root", "{folder}"],
            ODD_PRODUCTS,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_catalogs_of_every_kind_become_the_same_products(
    catvec: Catvec,
    unchanged_beside: Healthy,
    tmp_path: Path,
    name: str,
    data: bytes | Callable[[Path], None],
    options: list[str],
    products: list[tuple[object, ...]],
) -> None:
    for number, image in enumerate(("a.jpg", "b.jpg")):
        (tmp_path / image).write_bytes(photo(100 + number))
    path = tmp_path / name
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        data(path)
    uri = f"sqlite:///{path}" if name.endswith(".db") else path
    words = [word.format(folder=tmp_path) for word in options]

    outcome = catvec("run", uri, *words, *unchanged_beside.options, "--catalog-name", "odd", "--json")

    assert outcome.code == 0, outcome.err
    assert outcome.json()["embedded"] == len(products)
    assert unchanged_beside.execute(ODD_STORED) == products


ODD_STORED = """
SELECT p.product_id, p.title, p.price, i.url
  FROM catvec_store.products p
  JOIN catvec_store.images i USING (product_id)
 WHERE p.catalog = 'odd'
   AND i.content_sha256 IS NOT NULL
 ORDER BY p.product_id COLLATE "C"
"""


@pytest.fixture
def unchanged_beside(healthy: Healthy) -> Iterator[Healthy]:
    """The healthy shop; after the test all of it must still be there, beside what was added."""
    before = healthy.stored()
    yield healthy
    assert healthy.lost(before) == {}


def test_a_catalog_from_standard_input(unchanged_beside: Healthy, tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(photo(101))
    command = [sys.executable, "-m", "cli", "run", "-", "--image-root", tmp_path, "--catalog-name", "odd"]

    process = subprocess.run(
        [*map(str, command), *map(str, unchanged_beside.options)],
        input=as_csv(ODD_ROWS[1:]).encode(),
        capture_output=True,
        check=False,
        env=dict(os.environ),
    )

    assert process.returncode == 0, process.stderr.decode()
    assert unchanged_beside.execute(ODD_STORED) == ODD_PRODUCTS[:1]
