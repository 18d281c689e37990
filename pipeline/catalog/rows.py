"""Rows become products here, whatever kind of catalog they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.catalog.deleted import says_deleted
from pipeline.catalog.prices import parse_price
from pipeline.catalog.references import flatten, make_reference, redact
from pipeline.catalog.values import BAD_TEXT, MAX_INDEXED_CHARACTERS, as_json, as_text, check_storable
from pipeline.errors import RowError
from pipeline.records import BadRow, Deletion, Product

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.catalog.columns import Columns

_SHOWN_CHARACTERS = 300
"""of a faulty reference or detail: enough to find it, and a data URI may have millions"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as its catalog states it; `row` counts from 1, without a header.

    `crooked` says that it has more or fewer cells than columns, so that its values may stand in the wrong ones.
    """

    row: int
    values: Mapping[str, Any]
    crooked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """An open catalog: the names of its columns, and its rows as they are read."""

    names: tuple[str, ...]
    rows: Iterator[Row | BadRow]


def bad_row(row: int, code: str, detail: str, *, product_id: str | None = None, url: str | None = None) -> BadRow:
    """A BadRow that Postgres can store and a person can read: clipped, without NUL, surrogates or passwords."""
    return BadRow(
        row=row,
        code=code,
        detail=_storable(redact(detail)),
        product_id=_storable(product_id) if product_id else None,
        url=_storable(redact(url[:_SHOWN_CHARACTERS])) if url else None,
    )


def _storable(text: str) -> str:
    clean = BAD_TEXT.sub("\ufffd", text)
    return clean if len(clean) <= _SHOWN_CHARACTERS else clean[: _SHOWN_CHARACTERS - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMapper:
    """Makes a product, its deletion, or the reason why there is neither, of each row."""

    columns: Columns
    separator: str | None
    root: Path | None

    def map(self, row: Row) -> list[Product | BadRow | Deletion]:
        """The row's product, then what is wrong with its images; or one Deletion or BadRow instead."""
        if row.crooked:
            # named as well as it can be: the store leaves a product alone whose row is bad today
            product_id = as_text(row.values.get(self.columns.id))
            return [bad_row(row.row, "ragged_row", row.crooked, product_id=product_id)]
        product_id = None
        try:
            product_id = self._product_id(row.values)
            check_storable(row.values)
            if self.columns.deleted and says_deleted(row.values.get(self.columns.deleted), self.columns.deleted):
                return [Deletion(row=row.row, product_id=product_id)]
            layout = self.columns.layout_of(tuple(row.values))
            images, faults = self._images(row, product_id, layout.images)
            product = self._product(row, product_id, images, layout.attrs)
        except RowError as error:
            return [bad_row(row.row, error.code, error.message, product_id=product_id)]
        except RecursionError:  # a list inside a cell, which no check has seen
            return [bad_row(row.row, "too_deep", "lists in an image cell nested too deeply", product_id=product_id)]
        if not images and not faults:
            faults.append(bad_row(row.row, "no_image", "no image", product_id=product_id))
        return [product, *faults]

    def _product_id(self, values: Mapping[str, Any]) -> str:
        value = values.get(self.columns.id)
        if isinstance(value, (bool, list, dict)):
            raise RowError("bad_id", f"column {self.columns.id!r} is {value!r}, expected text or a number")
        product_id = as_text(value)
        if product_id is None:
            raise RowError("missing_id", f"column {self.columns.id!r} is empty")
        return _checked_length(self.columns.id, product_id, code="bad_id")

    def _product(self, row: Row, product_id: str, images: tuple[str, ...], attrs: tuple[str, ...]) -> Product:
        values, columns = row.values, self.columns
        price = parse_price(values.get(columns.price)) if columns.price else None
        return Product(
            row=row.row,
            product_id=product_id,
            images=images,
            title=as_text(values.get(columns.title)) if columns.title else None,
            category=_indexed_text(values, columns.category),
            brand=_indexed_text(values, columns.brand),
            price=price,
            attrs=self._attrs(values, attrs, has_price=price is not None),
        )

    def _attrs(self, values: Mapping[str, Any], names: tuple[str, ...], *, has_price: bool) -> dict[str, Any]:
        attrs = {name: plain for name in names if (plain := as_json(values[name])) not in (None, "")}
        price = self.columns.price
        if price and not has_price and (raw := as_json(values.get(price))) not in (None, ""):
            attrs.setdefault("price", raw)
        return attrs

    def _images(self, row: Row, product_id: str, names: tuple[str, ...]) -> tuple[tuple[str, ...], list[BadRow]]:
        images: dict[str, None] = {}  # an ordered set
        faults = []
        for name in names:
            for raw in flatten(row.values.get(name), self.separator):
                try:
                    images[make_reference(raw, self.root)] = None
                except RowError as error:
                    faults.append(bad_row(row.row, error.code, error.message, product_id=product_id, url=str(raw)))
        return tuple(images), faults


def _indexed_text(values: Mapping[str, Any], name: str | None) -> str | None:
    text = as_text(values.get(name)) if name else None
    return _checked_length(name, text, code="too_long") if name and text else None


def _checked_length(name: str, text: str, *, code: str) -> str:
    if len(text) > MAX_INDEXED_CHARACTERS:
        raise RowError(
            code, f"column {name!r} has {len(text):,} characters, expected at most {MAX_INDEXED_CHARACTERS}"
        )
    return text
