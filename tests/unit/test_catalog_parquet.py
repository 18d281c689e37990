"""Parquet catalogs, with every kind of value that Arrow has for a product."""

from __future__ import annotations

import datetime as dt
import io
import json
import sys
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from pipeline.catalog import read_catalog
from pipeline.errors import CatalogError, ConfigError
from pipeline.records import Product
from pipeline.settings import CatalogSettings

if TYPE_CHECKING:
    from pathlib import Path

pa = pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra: pip install 'catvec[parquet]'")


def test_values_of_every_type_become_plain(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([12.0]),  # what pandas makes of whole numbers with gaps
            "images": pa.array([["a.jpg", "b.jpg"]]),
            "title": pa.array([b"Shirt"], pa.binary()),
            "category": pa.array(["Shirts"]).dictionary_encode(),
            "price": pa.array([Decimal("19.90")], pa.decimal128(9, 2)),
            "since": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", tz="UTC")),
            "day": pa.array([dt.date(2024, 2, 29)]),
            "weight": pa.array([float("nan")]),
            "size": pa.array([{"w": 1.5, "tags": ["x"]}]),
            "blob": pa.array([b"\xff\x00"], pa.binary()),
            "nul": pa.array([b"a\x00"], pa.binary()),
            "stock": pa.array([7], pa.uint64()),
            "gone": pa.array([None], pa.string()),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    (product,) = read_catalog(CatalogSettings(uri=str(tmp_path / "c.parquet")))
    assert product == Product(
        row=1,
        product_id="12",
        images=("a.jpg", "b.jpg"),
        title="Shirt",
        category="Shirts",
        price=Decimal("19.90"),
        attrs={
            "since": "2023-11-14T22:13:20.123456+00:00",
            "day": "2024-02-29",
            "size": {"w": 1.5, "tags": ["x"]},
            "blob": "/wA=",
            "nul": "YQA=",
            "stock": 7,
        },
    )
    json.dumps(dict(product.attrs), allow_nan=False)


def write_rows(path: Path, rows: int) -> None:
    ids = [f"p{row}" for row in range(rows)]
    table = pa.table({"sku": ids, "image": [f"{name}.jpg" for name in ids]})
    pq.write_table(table, path, row_group_size=1000, compression="none")


def test_rows_are_counted_over_all_row_groups(tmp_path: Path) -> None:
    write_rows(tmp_path / "c.pq", 3500)
    records = list(read_catalog(CatalogSettings(uri=str(tmp_path / "c.pq"))))
    assert [record.row for record in records] == list(range(1, 3501))
    assert records[-1].product_id == "p3499"


def test_parquet_comes_from_standard_input(tmp_path: Path) -> None:
    write_rows(tmp_path / "c.parquet", 3)
    stream = io.BytesIO((tmp_path / "c.parquet").read_bytes())
    settings = CatalogSettings(uri="-", format="parquet", image_root=tmp_path)
    assert [record.product_id for record in read_catalog(settings, stdin=stream)] == ["p0", "p1", "p2"]


def test_a_damaged_file_says_so_and_where(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    write_rows(path, 3500)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CatalogError, match=r"c.parquet' is no whole Parquet file: Parquet magic bytes not found"):
        read_catalog(CatalogSettings(uri=str(path)))
    offset = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(2).column(0).dictionary_page_offset
    path.write_bytes(whole[:offset] + b"\xff" * 40 + whole[offset + 40 :])
    records = read_catalog(CatalogSettings(uri=str(path)))
    with pytest.raises(CatalogError, match=r"c.parquet' cannot be read further \(.*\) after row 1,024$"):
        list(records)


def test_an_empty_table_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "c.parquet", 0)
    with pytest.raises(CatalogError, match="holds no products"):
        read_catalog(CatalogSettings(uri=str(tmp_path / "c.parquet")))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "c.parquet", 1)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError) as caught:
        read_catalog(CatalogSettings(uri=str(tmp_path / "c.parquet")))
    assert caught.value.message == "Parquet catalogs need the package pyarrow"
    assert caught.value.hint == "pip install 'catvec[parquet]'"
