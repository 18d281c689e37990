"""CSV, TSV and JSON catalogs as files and on standard input: what they give, and how they fail."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from pipeline.catalog import image_root, read_catalog
from pipeline.catalog import source as source_module
from pipeline.errors import CatalogError, CatvecError, ConfigError
from pipeline.records import BadRow, Deletion, Product
from pipeline.settings import CatalogSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    Read = Callable[..., list[Product | BadRow | Deletion]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a catalog file and read it."""

    def _read(name: str, content: str | bytes, **settings: Any) -> list[Product | BadRow | Deletion]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_catalog(CatalogSettings(uri=str(path), **settings)))

    return _read


@pytest.fixture
def fault(read: Read, tmp_path: Path) -> Callable[..., tuple[str, str | None]]:
    """The message (with FILE for the path) and the hint of the error that a catalog gives."""

    def _fault(
        name: str, content: str | bytes, kind: type[CatvecError] = CatalogError, **settings: Any
    ) -> tuple[str, str | None]:
        with pytest.raises(kind) as caught:
            read(name, content, **settings)
        return caught.value.message.replace(repr(str(tmp_path / name)), "FILE"), caught.value.hint

    return _fault


def codes(records: list[Product | BadRow | Deletion]) -> list[tuple[int, str]]:
    return [(record.row, record.code if isinstance(record, BadRow) else "product") for record in records]


def test_a_row_becomes_a_product_with_the_other_columns_in_attrs(read: Read) -> None:
    text = (
        'sku,name,image,type,vendor,price,colour,size\n A1 ,"Shirt, ""blue""",a.jpg|b.jpg,Shirts,Acme,"12,50",blue,\n'
    )
    assert read("c.csv", text) == [
        Product(
            row=1,
            product_id="A1",
            images=("a.jpg", "b.jpg"),
            title='Shirt, "blue"',
            category="Shirts",
            brand="Acme",
            price=Decimal("12.50"),
            attrs={"colour": "blue"},
        )
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(read: Read, delimiter: str) -> None:
    rows = [["id", "title", "price", "image"], ["1", "a; b, c", "12", "a.jpg"], ["2", "d", "13", "b.jpg"]]
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    assert [record.title for record in read("c.csv", text) if isinstance(record, Product)] == ["a; b, c", "d"]


def test_a_delimiter_can_be_given_and_declared(read: Read) -> None:
    assert codes(read("c.csv", "id^image\n1^a.jpg\n", delimiter="^")) == [(1, "product")]
    assert codes(read("c.csv", "id\timage\n1\ta,b.jpg\n", delimiter="\\t")) == [(1, "product")]
    assert codes(read("c.csv", "sep=^\r\nid^image\r\n1^a.jpg\r\n")) == [(1, "product")]
    assert codes(read("c.tsv", "id\timage\n1\ta.jpg\n")) == [(1, "product")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_quotes_hold_line_ends_whatever_ends_a_line(read: Read, end: str) -> None:
    text = f'id,title,image{end}1,"two{end}lines",a.jpg{end}2,x,b.jpg'
    first, second = read("c.csv", text)
    assert isinstance(first, Product)
    assert first.title == f"two{end}lines"
    assert (second.row, second.product_id) == (2, "2")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["c.csv", "c.json", "c.jsonl"])
def test_encodings_give_the_same_products(read: Read, encoding: str, name: str) -> None:
    text = "id,title,image\n1,größe,ä.jpg\n" if name == "c.csv" else '{"id": 1, "title": "größe", "image": "ä.jpg"}'
    text = f"[{text}]" if name == "c.json" else text
    expected = [Product(row=1, product_id="1", images=("ä.jpg",), title="größe")]
    assert read(name, text.encode(encoding), encoding=encoding) == expected


def test_a_byte_order_mark_is_no_part_of_the_first_column(read: Read) -> None:
    assert codes(read("c.csv", b"\xef\xbb\xbfid,image\n1,a.jpg\n")) == [(1, "product")]


def test_another_encoding_names_the_byte_the_row_and_the_option(fault: Any) -> None:
    text = "id,title,image\n" + "1,a,a.jpg\n" * 200 + "2,größe,b.jpg\n"
    message, hint = fault("c.csv", text.encode("cp1252"))
    assert message == "FILE is not utf-8: byte 0xf6 at position 2,019, after row 200"
    assert hint == "try --encoding cp1252"
    assert fault("c.csv", text.encode("utf-16")) == (
        "FILE begins with the byte order mark of utf-16, expected utf-8",
        "add --encoding utf-16",
    )
    assert fault("c.csv", "id,image\n1,ä.jpg\n".encode("utf-16-le")) == (
        "FILE holds NUL characters in its header",
        "try --encoding utf-16-le",
    )
    assert fault("c.csv", "id,image\n", ConfigError, encoding="klingon")[0] == "unknown encoding 'klingon'"


def test_the_place_of_a_bad_byte_is_exact_across_pieces(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "CHUNK_BYTES", 7)
    text = "id,title,image\n" + "1,ä€😀,a.jpg\n" * 50
    data = text.encode() + b"2,\xff,b.jpg\n"
    message = f"FILE is not utf-8: byte 0xff at position {len(text.encode()) + 2:,}, after row 50"
    assert fault("c.csv", data)[0] == message


def test_crooked_rows_are_bad_rows_and_the_others_go_on(read: Read) -> None:
    text = "id,title,image\n1,a\n2,b,b.jpg\n3,c,c.jpg,d\n\n,,\n4,d,d.jpg,,\n5,NUL\x00,e.jpg\n,f,f.jpg\n6,g,\n"
    records = read("c.csv", text)
    assert codes(records) == [
        (1, "ragged_row"),
        (2, "product"),
        (3, "ragged_row"),
        (5, "product"),
        (6, "bad_text"),
        (7, "missing_id"),
        (8, "product"),
        (8, "no_image"),
    ]
    details = [record.detail for record in records if isinstance(record, BadRow)]
    assert details == [
        "2 cells, expected 3 (line 2)",
        "4 cells, expected 3 (line 4)",
        "column 'title' holds a NUL character or half a surrogate pair",
        "column 'id' is empty",
        "no image",
    ]


def test_a_bad_reference_is_a_bad_row_and_the_products_other_images_go_on(read: Read) -> None:
    product, bad = read("c.csv", "id,image\n1,ftp://me:secret@host/a.jpg|b.jpg|b.jpg\n")
    assert product == Product(row=1, product_id="1", images=("b.jpg",))
    assert bad == BadRow(
        row=1,
        code="unsupported_url",
        detail="scheme 'ftp', expected http, https, data or a path",
        product_id="1",
        url="ftp://***@host/a.jpg",
    )


def test_a_price_that_is_none_is_kept_as_text(read: Read) -> None:
    (product,) = read("c.csv", "id,image,price\n1,a.jpg,on request\n")
    assert isinstance(product, Product)
    assert (product.price, product.attrs) == (None, {"price": "on request"})


def test_what_postgres_could_not_index_is_a_bad_row(read: Read) -> None:
    records = read("c.csv", f"id,brand,image\n{'x' * 501},b,a.jpg\n2,{'y' * 501},b.jpg\n")
    assert codes(records) == [(1, "bad_id"), (2, "too_long")]
    assert isinstance(records[1], BadRow)
    assert records[1].detail == "column 'brand' has 501 characters, expected at most 500"


def test_long_data_uris_are_kept_whole(read: Read) -> None:
    uri = "data:image/png;base64," + "A" * 300_000
    (product,) = read("c.csv", f'id,image\n1,"{uri}"\n')
    assert isinstance(product, Product)
    assert product.images == (uri,)


@pytest.mark.parametrize("content", ["", "\n\n", "id,image\n", "\ufeff"])
def test_an_empty_csv_is_an_error(fault: Any, content: str) -> None:
    assert fault("c.csv", content)[0] == "FILE holds no products"


@pytest.mark.parametrize("content", ["", " \n", "[]"])
def test_an_empty_json_is_an_error(fault: Any, content: str) -> None:
    assert fault("c.json", content)[0] == "FILE holds no products"
    assert fault("c.json", '{"products": []}')[0] == "FILE holds no products: the array in it is empty"


def test_columns_of_one_name_are_refused(fault: Any) -> None:
    message, hint = fault("c.csv", "id,image, image,id\n1,a,b,2\n")
    assert message == "FILE has more than one column named 'id', 'image'"
    assert hint == "rename them, for example to image_1 and image_2"


def test_an_unclosed_quote_says_where_it_was_opened(fault: Any) -> None:
    message, _ = fault("c.csv", 'id,title,image\n1,a,a.jpg\n2,"open,b.jpg\n3,c,c.jpg\n')
    assert message == "FILE has a quote in the row of line 3 that is never closed, after row 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04...", "FILE is a ZIP archive or an Excel workbook, expected text"),
        (b"PAR1...", "FILE is a Parquet file, expected text"),
        (
            b"<!DOCTYPE html><html>",
            "FILE begins with '<!DOCTYPE html><html', expected CSV: this is an HTML or XML page",
        ),
        (b'[{"id": 1}]', "FILE begins with '[{\"id\": 1}]', expected CSV: this looks like JSON"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(fault: Any, content: bytes, message: str) -> None:
    assert fault("c.csv", content)[0] == message


@pytest.mark.parametrize(
    ("name", "content"), [("c.csv", "id,image\n1,a.jpg\n"), ("c.json", '[{"id":1,"image":"a.jpg"}]')]
)
def test_gzip_is_unpacked(read: Read, name: str, content: str) -> None:
    expected = [Product(row=1, product_id="1", images=("a.jpg",))]
    assert read(f"{name}.gz", gzip.compress(content.encode())) == expected


def test_gzip_that_is_cut_off_says_after_which_row(fault: Any) -> None:
    whole = gzip.compress(b"id,image\n" + b"".join(b"%d,%d.jpg\n" % (row, row * 7919 % 1013) for row in range(9000)))
    message, hint = fault("c.csv.gz", whole[: len(whole) // 2])
    assert message.startswith("FILE is cut off (its gzip data end early) after row ")
    assert hint == "fetch or export it again"


def test_json_values_keep_their_kind(read: Read) -> None:
    text = """[{"id": 12, "images": ["a.jpg", {"src": "//cdn.x/b.jpg"}], "category": {"id": 3, "name": "Shoes"},
        "price": 19.90, "weight": 1.50, "stock": 7, "on_sale": true, "tags": ["a", null], "empty": "", "none": null,
        "nan": NaN, "big": 1e999999, "size": {"w": 1.0}},
        {"id": 13.0, "image_2": "c.jpg", "title": "late columns"}]"""
    first, second = read("c.json", text)
    attrs = {
        "weight": 1.5,
        "stock": 7,
        "on_sale": True,
        "tags": ["a", None],
        "big": "1E+999999",
        "size": {"w": 1},
    }
    assert first == Product(
        row=1,
        product_id="12",
        images=("a.jpg", "https://cdn.x/b.jpg"),
        category="Shoes",
        price=Decimal("19.90"),
        attrs=attrs,
    )
    assert second == Product(row=2, product_id="13", images=("c.jpg",), title="late columns")
    json.dumps([dict(first.attrs)], allow_nan=False)


def test_numbers_that_end_other_readers_are_text(read: Read) -> None:
    (product,) = read("c.json", '[{"id": 1, "image": "a.jpg", "n": %s, "e": 1e99999999999999999999}]' % ("9" * 5000))
    assert isinstance(product, Product)
    assert product.attrs == {"n": "9" * 5000, "e": "1e99999999999999999999"}


def test_json_rows_that_are_no_products_are_bad_rows(read: Read) -> None:
    deep = "[" * 101 + "]" * 101
    text = (
        '[{"id": 1, "image": "a.jpg"}, 5, {"id": true, "image": "b.jpg"}, {"id": "\\ud800", "image": "c.jpg"},'
        f' {{"id": 2, "image": "d.jpg", "deep": {deep}}}, {{"image": "e.jpg"}}]'
    )
    assert codes(read("c.json", text)) == [
        (1, "product"),
        (2, "invalid_json"),
        (3, "bad_id"),
        (4, "bad_text"),
        (5, "too_deep"),
        (6, "missing_id"),
    ]


def test_an_array_inside_an_object_is_found(read: Read) -> None:
    text = '{"total": 1.5, "tags": ["x"], "page": {"n": 1}, "products": [{"id": 1, "image": "a.jpg"}], "next": null}'
    assert codes(read("c.json", text)) == [(1, "product")]


def test_json_without_an_array_says_what_it_holds(fault: Any) -> None:
    message, hint = fault("c.json", '{"data": {"products": []}, "total": 3}')
    assert message == "FILE is a JSON object that holds no array of products; it holds 'data', 'total'"
    assert hint == "take the array out, for example: jq .data.products FILE | catvec run - --format json"
    assert fault("c.json", '"x"')[0] == "FILE begins with '\"x\"', expected a JSON array of objects"
    assert fault("c.json", "[1, 2]")[0] == "FILE holds no JSON object in its first 2 rows"


def test_every_place_to_cut_a_json_array_says_that_it_is_cut_off(fault: Any) -> None:
    whole = '[{"id": 1, "image": "a.jpg"}, {"id": -1.5e+3, "t": [true, null, NaN], "image": "\\u00e4\\n.jpg"}]'
    first = whole.index("}") + 1
    for end in range(first, len(whole)):
        assert fault("c.json", whole[:end])[0] == "FILE is cut off after row " + (
            "2" if end == len(whole) - 1 else "1"
        )
    assert fault("c.json", whole[:10])[0] == "FILE is cut off before its first row ends"


def test_json_that_is_wrong_in_the_middle_says_so(fault: Any) -> None:
    message, _ = fault("c.json", '[{"id": 1, "image": "a.jpg"}, {"id": 2 "image": "b.jpg"}, {"id": 3}]')
    assert message == "FILE is not valid JSON (expecting ',' delimiter) after row 1"
    message, _ = fault("c.json", '[{"id": 1, "image": "a.jpg"}; {"id": 2}]')
    assert message == "FILE is not valid JSON (found ';', expected ',' or ']') after row 1"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_json_is_the_same_in_pieces_of_any_size(read: Read, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    rows = [{"id": 10 + row, "image": "ä" * row + ".jpg", "n": [row / 8, -1e-7, True]} for row in range(40)]
    text = json.dumps(rows, ensure_ascii=False)
    whole = read("c.json", text)
    monkeypatch.setattr(source_module, "CHUNK_BYTES", size)
    monkeypatch.setattr("pipeline.catalog.json._HEAD_CHARACTERS", 1)
    assert read("c.json", text) == whole
    assert len(whole) == 40


def test_a_bad_line_of_json_lines_is_a_bad_row(read: Read) -> None:
    text = '{"id": 1, "image": "a.jpg"}\n{bad\n\n[1]\n{"id": 2, "image": "b\u2028.jpg"}\n'
    records = read("c.jsonl", text)
    assert codes(records) == [(1, "product"), (2, "invalid_json"), (3, "invalid_json"), (4, "product")]
    assert isinstance(records[1], BadRow)
    assert records[1].detail.endswith("at character 2")
    assert codes(read("c.json", text)) == codes(records), "JSON Lines are understood under the name .json"


def test_standard_input_is_csv_unless_said_otherwise() -> None:
    def from_stdin(data: bytes, **settings: Any) -> list[Product | BadRow | Deletion]:
        return list(read_catalog(CatalogSettings(uri="-", **settings), stdin=io.BytesIO(data)))

    expected = [Product(row=1, product_id="1", images=("https://x.y/a.jpg",))]
    assert from_stdin(b"id,image\n1,https://x.y/a.jpg\n") == expected
    assert from_stdin(gzip.compress(b"id,image\n1,https://x.y/a.jpg\n")) == expected
    assert from_stdin(b'{"id":1,"image":"https://x.y/a.jpg"}\n', format="jsonl") == expected
    assert codes(from_stdin(b"id,image\n1,a.jpg\n")) == [(1, "product"), (1, "no_image_root")]
    with pytest.raises(CatalogError, match="standard input holds no products"):
        from_stdin(b"")


def test_the_image_root_is_beside_the_catalog_or_what_was_said(tmp_path: Path) -> None:
    catalog = tmp_path / "c.csv"
    catalog.write_text("id,image\n1,a.jpg\n")
    (tmp_path / "pictures").mkdir()
    assert image_root(CatalogSettings(uri=str(catalog))) == tmp_path
    assert image_root(CatalogSettings(uri=str(tmp_path))) == tmp_path
    assert image_root(CatalogSettings(uri=str(catalog), image_root=tmp_path / "pictures")) == tmp_path / "pictures"
    assert image_root(CatalogSettings(uri="-")) is None
    with pytest.raises(ConfigError, match=r"--image-root .*missing' is no folder"):
        image_root(CatalogSettings(uri=str(catalog), image_root=tmp_path / "missing"))


def test_a_missing_file_names_its_nearest_neighbour(read: Read, tmp_path: Path) -> None:
    read("catalog.csv", "id,image\n1,a.jpg\n")
    with pytest.raises(CatalogError) as caught:
        read_catalog(CatalogSettings(uri=str(tmp_path / "catalogs.csv")))
    assert caught.value.message == f"no such file {str(tmp_path / 'catalogs.csv')!r}"
    assert caught.value.hint == f"did you mean {str(tmp_path / 'catalog.csv')!r}?"
    with pytest.raises(CatalogError) as caught:
        read_catalog(CatalogSettings(uri=str(tmp_path / "no" / "c.csv")))
    assert caught.value.hint == f"there is no folder {str(tmp_path / 'no')!r} either"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("c.xlsx", {}, "unknown ending '.xlsx' of FILE, expected .csv, .tsv, "),
        ("c", {}, "no ending in FILE, expected .csv, .tsv, "),
        (
            "c.csv",
            {"format": "xml"},
            "--format is 'xml', expected one of csv, tsv, json, jsonl, parquet, folder, sql",
        ),
        ("c.csv", {"format": "folder"}, "FILE is a file, which --format folder cannot be"),
        ("c.csv", {"delimiter": "ab"}, "--delimiter is 'ab', expected one character"),
        ("c.csv", {"image_separator": ""}, "--image-separator is empty"),
        (
            "c.csv",
            {"id_column": "ID2"},
            "--id-column names 'ID2', which the catalog does not have; it has 'id', 'image'",
        ),
    ],
)
def test_settings_that_do_not_fit_are_config_errors(
    fault: Any, name: str, settings: dict[str, Any], message: str
) -> None:
    assert fault(name, "id,image\n1,a.jpg\n", ConfigError, **settings)[0].startswith(message)


def test_names_that_are_no_path_are_errors_of_ours() -> None:
    with pytest.raises(ConfigError, match="the catalog is named by an empty text"):
        read_catalog(CatalogSettings(uri=""))
    with pytest.raises(CatalogError, match="File name too long"):
        read_catalog(CatalogSettings(uri="x" * 5000))
    with pytest.raises(CatalogError, match="no such file"):
        read_catalog(CatalogSettings(uri="a\x00b"))


def test_a_catalog_on_the_web_is_to_be_piped_in() -> None:
    with pytest.raises(ConfigError) as caught:
        read_catalog(CatalogSettings(uri="https://shop.example/feed.csv"))
    assert caught.value.message == "a catalog at https:// cannot be read from here"
    assert caught.value.hint == "pipe it in: curl -fsS URL | catvec run - --format csv"


class _Generated(io.RawIOBase):
    """A stream made while it is read, so that only the reader's memory is measured."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._pieces, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _csv(rows: int) -> Iterator[bytes]:
    yield b"id,image,title\n"
    for row in range(rows):
        yield b'%d,https://x.y/%d.jpg,"shirt\n%s"\n' % (row, row, b"x" * 200)


def _json(rows: int) -> Iterator[bytes]:
    yield b"["
    for row in range(rows):
        yield b'%s{"id": %d, "image": "https://x.y/a.jpg", "title": "%s"}' % (b"," if row else b"", row, b"x" * 200)
    yield b"]"


@pytest.mark.parametrize(("kind", "make"), [("csv", _csv), ("json", _json)])
def test_memory_does_not_grow_with_the_catalog(kind: str, make: Any) -> None:
    few, many = (_peak_bytes(kind, make, rows) for rows in (12_000, 40_000))

    assert few < 4_000_000  # 12,000 products would be more than 8 MB; JSON looks at the first 1 MiB
    assert many - few < 100_000  # 4 bytes a product


def _peak_bytes(kind: str, make: Any, rows: int) -> int:
    stream: Any = _Generated(make(rows))
    tracemalloc.start()
    try:
        records = read_catalog(CatalogSettings(uri="-", format=kind), stdin=stream)
        assert sum(1 for _ in records) == rows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
