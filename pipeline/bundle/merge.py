"""The rows of a catalog put together by product, with the rules by which a database reads them (`store/stage.py`).

A product's first row states it; later ones add images, or say something else and are bad rows. A deletion outweighs
all. So a bundle and a database find the same products, images and faults in one catalog.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline.records import BadRow, Deletion, Product

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Row = Product | BadRow | Deletion


@dataclass(slots=True)
class Sightings:
    """What a first reading finds out, so that a second one keeps only those products in memory that need it."""

    seen: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)

    def note(self, row: Row) -> None:
        if isinstance(row, Deletion):
            self.deleted.add(row.product_id)
        elif isinstance(row, Product):
            (self.again if row.product_id in self.seen else self.seen).add(row.product_id)

    def is_plain(self) -> bool:
        """Every product stands in one row, so there is nothing to put together."""
        return not self.again and not self.deleted


def merge_rows(rows: Iterable[Row], found: Sightings) -> Iterator[Product | BadRow]:
    """One Product for each id, and the rows that could not be used; `rows` are those that `found` has noted.

    Products of several rows are held until the end: they may be anywhere in the catalog.
    """
    several: dict[str, Product] = {}
    bare: list[BadRow] = []
    for row in rows:
        if isinstance(row, Deletion) or row.product_id in found.deleted:
            continue
        if isinstance(row, BadRow):
            # a row without a picture is nothing bad when another row of the product has one
            may_be_forgotten = row.code == "no_image" and row.product_id in found.again
            if may_be_forgotten:
                bare.append(row)
            else:
                yield row
        elif row.product_id not in found.again:
            yield row
        elif (first := several.get(row.product_id)) is None:
            several[row.product_id] = row
        elif differs(first, row):
            yield _duplicate(first, row)
        else:
            # an ordered set: a picture that stands in two rows is one
            images = tuple(dict.fromkeys((*first.images, *row.images)))
            several[row.product_id] = replace(first, images=images)
    yield from several.values()
    yield from (row for row in bare if not several[row.product_id or ""].images)


def differs(first: Product, later: Product) -> bool:
    """Whether a later row says something else about the product than its first one; saying less is fine."""
    names = ("title", "category", "brand", "price")
    is_other = any(getattr(later, name) not in {None, getattr(first, name)} for name in names)
    return is_other or not contains(first.attrs, later.attrs)


def contains(whole: Any, part: Any) -> bool:
    """What `whole @> part` says of two jsonb values below the top."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(name in whole and contains(whole[name], value) for name, value in part.items())
    if isinstance(whole, list | tuple) and isinstance(part, list | tuple):
        return all(any(contains(mine, theirs) for mine in whole) for theirs in part)
    # Python takes True for 1
    return isinstance(whole, bool) == isinstance(part, bool) and bool(whole == part)


def _duplicate(first: Product, later: Product) -> BadRow:
    detail = f"product {later.product_id} stands in row {first.row} already, with other values"
    return BadRow(row=later.row, code="duplicate_id", detail=detail, product_id=later.product_id)
