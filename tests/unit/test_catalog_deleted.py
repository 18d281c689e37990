"""Products that a catalog, or a file of ids, says are gone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.catalog import read_catalog, read_deleted_ids
from pipeline.errors import CatalogError, ConfigError
from pipeline.records import BadRow, Deletion, Product
from pipeline.settings import CatalogSettings

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, text: str, **settings: Any) -> list[Product | BadRow | Deletion]:
    path.write_text(text, encoding="utf-8")
    return list(read_catalog(CatalogSettings(uri=str(path), **settings)))


def deleted_ids(path: Path, content: str | bytes) -> list[Deletion]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_deleted_ids(path))


def refused(path: Path, content: str | bytes) -> tuple[str, str | None]:
    """The message (with FILE for the path) and the hint."""
    with pytest.raises(CatalogError) as caught:
        deleted_ids(path, content)
    return caught.value.message.replace(repr(str(path)), "FILE"), caught.value.hint


def test_a_row_that_says_so_is_a_deletion_whatever_else_it_holds(tmp_path: Path) -> None:
    text = "id,title,image,gone\n1,shirt,a.jpg,\n2,,,yes\n3,hat,ftp://x/[[[,Yes\n 4 ,,,1\n"
    assert read(tmp_path / "c.csv", text, deleted_column="Gone") == [
        Product(row=1, product_id="1", images=("a.jpg",), title="shirt"),
        Deletion(row=2, product_id="2"),
        Deletion(row=3, product_id="3"),
        Deletion(row=4, product_id="4"),
    ]


def test_without_the_option_a_column_of_that_name_is_an_attribute(tmp_path: Path) -> None:
    (product,) = read(tmp_path / "c.csv", "id,image,deleted\n1,a.jpg,yes\n")
    assert product == Product(row=1, product_id="1", images=("a.jpg",), attrs={"deleted": "yes"})


@pytest.mark.parametrize("word", ["true", "T", "YES", "y", "1", " Deleted ", "removed", "X"])
def test_every_word_for_yes_deletes(tmp_path: Path, word: str) -> None:
    text = f"id,image,gone\n1,a.jpg,{word}\n"
    assert read(tmp_path / "c.csv", text, deleted_column="gone") == [Deletion(row=1, product_id="1")]


@pytest.mark.parametrize("word", ["", "  ", "false", "F", "No", "n", "0", "ACTIVE", "NULL"])
def test_every_word_for_no_keeps_the_product(tmp_path: Path, word: str) -> None:
    expected = [Product(row=1, product_id="1", images=("a.jpg",))]
    assert read(tmp_path / "c.csv", f"id,image,gone\n1,a.jpg,{word}\n", deleted_column="gone") == expected


def test_booleans_and_numbers_of_json_are_understood(tmp_path: Path) -> None:
    values = [True, 1, 1.0, "true", False, 0, 0.0, None, float("nan")]
    rows = [{"id": row, "image": "a.jpg", "gone": value} for row, value in enumerate(values)]
    records = read(tmp_path / "c.json", json.dumps([*rows, {"id": 9, "image": "a.jpg"}]), deleted_column="gone")
    assert [type(record) for record in records] == [Deletion] * 4 + [Product] * 6


def test_another_word_is_a_bad_row_and_deletes_nothing(tmp_path: Path) -> None:
    values = ["soon", 2, ["yes"], {"name": 1}]
    rows = [{"id": row, "image": "a.jpg", "gone": value} for row, value in enumerate(values)]
    records = read(tmp_path / "c.json", json.dumps(rows), deleted_column="gone")
    assert [record.code for record in records if isinstance(record, BadRow)] == ["bad_deleted"] * 4
    assert records[0] == BadRow(
        row=1,
        code="bad_deleted",
        detail="column 'gone' is 'soon', expected true, t, yes, y, 1, deleted, removed, x for a product that is "
        "gone, false, f, no, n, 0, active, null or nothing for one that is not",
        product_id="0",
    )


def test_a_password_in_the_wrong_column_is_not_shown(tmp_path: Path) -> None:
    text = "id,image\n1,https://me:secret@x.y/a.jpg\n"
    (bad,) = read(tmp_path / "c.csv", text, deleted_column="image")
    assert isinstance(bad, BadRow)
    assert bad.detail.startswith("column 'image' is 'https://***@x.y/a.jpg', expected true, ")


@pytest.mark.parametrize(
    ("row", "code"), [(",a.jpg,yes", "missing_id"), ("1,yes", "ragged_row"), ("1\0,a.jpg,yes", "bad_text")]
)
def test_a_row_that_cannot_be_trusted_deletes_nothing(tmp_path: Path, row: str, code: str) -> None:
    records = read(tmp_path / "c.csv", f"id,image,gone\n{row}\n2,b.jpg,no\n", deleted_column="gone")
    assert isinstance(records[0], BadRow)
    assert (records[0].code, len(records)) == (code, 2)


@pytest.mark.parametrize("name", ["delted", ""])
def test_a_deleted_column_that_is_not_there_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "c.csv", "id,image,deleted\n1,a.jpg,yes\n", deleted_column=name)
    assert caught.value.message == (
        f"--deleted-column names {name!r}, which the catalog does not have; it has 'id', 'image', 'deleted'"
    )
    assert caught.value.hint == ("did you mean 'deleted'?" if name else None)


def test_parquet_says_it_with_a_boolean(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra: pip install 'catvec[parquet]'")
    table = pa.table({"id": [1, 2, 3], "image": ["a.jpg", None, "c.jpg"], "gone": pa.array([False, True, None])})
    pq.write_table(table, tmp_path / "c.parquet")
    records = read_catalog(CatalogSettings(uri=str(tmp_path / "c.parquet"), deleted_column="gone"))
    assert [type(record) for record in records] == [Product, Deletion, Product]


def test_a_file_of_ids_has_one_on_each_line(tmp_path: Path) -> None:
    expected = [
        Deletion(row=1, product_id="A 1"),
        Deletion(row=3, product_id="ö2"),
        Deletion(row=4, product_id="3,4"),
    ]
    for end in ("\n", "\r\n", "\r"):
        lines = ["\ufeff A 1\t", "  ", "ö2", "3,4"]
        assert deleted_ids(tmp_path / "gone.txt", end.join(lines)) == expected
        assert deleted_ids(tmp_path / "gone.txt", end.join([*lines, "", ""])) == expected


@pytest.mark.parametrize("content", ["", "\n", "\ufeff"])
def test_an_empty_file_of_ids_deletes_nothing(tmp_path: Path, content: str) -> None:
    assert deleted_ids(tmp_path / "gone.txt", content) == []


HINT = "save it as UTF-8 text with one product id on each line"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\n2\x003\n", "line 2 of FILE has a NUL character, expected a product id of at most 500 characters"),
        (b"1\n" + b"x" * 501, "line 2 of FILE has 501 characters, expected a product id of at most 500 characters"),
        ("1\ngr\u00f6n\n".encode("cp1252"), "FILE is not utf-8: byte 0xf6 at position 4, after line 1"),
        ("1\n2".encode("utf-16"), "FILE begins with the byte order mark of utf-16, expected utf-8"),
        (b"PK\x03\x04...", "FILE is a ZIP archive or an Excel workbook, expected text"),
    ],
)
def test_a_file_that_is_no_list_of_ids_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    assert refused(tmp_path / "gone.txt", content) == (message, HINT)


def test_a_missing_file_of_ids_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").touch()
    with pytest.raises(CatalogError) as caught:
        read_deleted_ids(tmp_path / "gon.txt")
    assert caught.value.message == f"no such file {str(tmp_path / 'gon.txt')!r}"
    assert caught.value.hint == f"did you mean {str(tmp_path / 'gone.txt')!r}?"
    with pytest.raises(CatalogError, match=r"^cannot read .*: Is a directory$"):
        list(read_deleted_ids(tmp_path))
