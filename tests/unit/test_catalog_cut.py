"""Catalogs that end too early: what is whole comes out, then an error that says so."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.catalog import read_catalog
from pipeline.errors import CatalogError
from pipeline.records import BadRow, Product
from pipeline.settings import CatalogSettings

if TYPE_CHECKING:
    from pathlib import Path

AGAIN = "fetch or export it again"


def read_until_fault(path: Path, content: str | bytes, **settings: Any) -> tuple[list[str], str, str | None]:
    """The ids that came out, the message (with FILE for the path) and the hint."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ids = []
    with pytest.raises(CatalogError) as caught:  # noqa: PT012 (the records before the fault are looked at)
        for record in read_catalog(CatalogSettings(uri=str(path), **settings)):
            assert isinstance(record, Product)
            ids.append(record.product_id)
    return ids, caught.value.message.replace(repr(str(path)), "FILE"), caught.value.hint


def read(path: Path, content: str) -> list[Any]:
    path.write_bytes(content.encode())
    return list(read_catalog(CatalogSettings(uri=str(path))))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "delimiter"), [("c.csv", ","), ("c.csv", ";"), ("c.tsv", "\t")])
def test_a_table_cut_in_the_middle_of_a_line_says_so(tmp_path: Path, name: str, delimiter: str, end: str) -> None:
    text = end.join(["id|title|image", "1|a|a.jpg", "2|b|b.jpg", ""]).replace("|", delimiter)
    message = "FILE is cut off in the middle of its last line, after row 2"
    for rest in ("3", "3|", "3|some"):
        cut = text + rest.replace("|", delimiter)
        assert read_until_fault(tmp_path / name, cut) == (["1", "2"], message, AGAIN)


def test_a_table_cut_in_its_first_row_says_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,title,image\n1,a")
    with pytest.raises(CatalogError, match=r"cut off in the middle of its last line, before its first row ends$"):
        read_catalog(CatalogSettings(uri=str(tmp_path / "c.csv")))


def test_a_whole_last_row_needs_no_line_end(tmp_path: Path) -> None:
    for text in ("id,title,image\n1,a,a.jpg", 'id,title,image\r\n1,a,"a.jpg"', "id,title,image\r1,a,a.jpg,,"):
        expected = [Product(row=1, product_id="1", images=("a.jpg",), title="a")]
        assert read(tmp_path / "c.csv", text) == expected


def test_a_short_last_row_with_a_line_end_is_only_crooked(tmp_path: Path) -> None:
    _, bad = read(tmp_path / "c.csv", "id,title,image\n1,a,a.jpg\n2,b\n")
    assert isinstance(bad, BadRow)
    assert (bad.code, bad.detail) == ("ragged_row", "2 cells, expected 3 (line 3)")
    _, bad = read(tmp_path / "c.csv", "id,title,image\n1,a,a.jpg\n2,b,b.jpg,more")
    assert bad.code == "ragged_row", "too many cells are no cut"


def test_a_cut_is_seen_behind_rows_of_several_lines_and_on_standard_input() -> None:
    data = b'id,title,image\n1,"two\nlines",https://x.y/a.jpg\n\n2,"two\nlines"'
    records = read_catalog(CatalogSettings(uri="-"), stdin=io.BytesIO(data))
    assert next(records).row == 1
    with pytest.raises(
        CatalogError, match=r"^standard input is cut off in the middle of its last line, after row 1$"
    ):
        next(records)


@pytest.mark.parametrize("name", ["c.jsonl", "c.json"])
def test_every_place_to_cut_json_lines_says_that_they_are_cut_off(tmp_path: Path, name: str) -> None:
    first = '{"id": 1, "image": "a.jpg"}\n'
    last = '{"id": -1.5e+3, "t": [true, null, NaN], "image": "\\u00e4\\n.jpg"}'
    for end in range(2 if name == "c.json" else 1, len(last)):
        message = "FILE is cut off in the middle of its last line, after row 1"
        assert read_until_fault(tmp_path / name, first + last[:end]) == (["1"], message, AGAIN)
    assert [type(record) for record in read(tmp_path / name, first + last)] == [Product, Product]


def test_a_bad_line_of_json_that_is_not_cut_stays_a_bad_row(tmp_path: Path) -> None:
    first = '{"id": 1, "image": "a.jpg"}\n'
    for text in (f'{first}{{"id": 2, "im\n{first}', f'{first}{{"id": 2, "im\n', f"{first}# end of export"):
        assert [record.code for record in read(tmp_path / "c.jsonl", text) if isinstance(record, BadRow)] == [
            "invalid_json"
        ]


@pytest.mark.parametrize("name", ["c.csv.gz", "c.jsonl.gz", "c.json.gz"])
def test_every_place_to_cut_gzip_is_an_error(tmp_path: Path, name: str) -> None:
    text = {
        "c.csv.gz": "id,title,image\n1,a,a.jpg\n2,b,b.jpg\n",
        "c.jsonl.gz": '{"id": 1, "image": "a.jpg"}\n{"id": 2, "image": "b.jpg"}\n',
        "c.json.gz": '[{"id": 1, "image": "a.jpg"}, {"id": 2, "image": "b.jpg"}]\n',
    }[name]
    whole = gzip.compress(text.encode(), mtime=0)
    for end in range(3, len(whole)):
        _, message, hint = read_until_fault(tmp_path / name, whole[:end])
        assert message.startswith("FILE is cut off (its gzip data end early) ")
        assert hint == AGAIN


def test_every_place_to_cut_parquet_is_an_error(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra: pip install 'catvec[parquet]'")
    pq.write_table(pa.table({"id": [1, 2], "image": ["a.jpg", "b.jpg"]}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for end in range(0, len(whole), 7):
        ids, message, hint = read_until_fault(tmp_path / "c.parquet", whole[:end])
        assert (ids, hint) == ([], AGAIN)
        assert message.startswith("FILE is no whole Parquet file: ")
