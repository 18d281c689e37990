"""The catalog inside a bundle: written through a temporary file beside it, read back as the products that it states.

With it a bundle needs nothing else to become a database. It is read twice while it is written, because rows of one
product may stand anywhere; the catalog itself is read once, for it may come from a pipe.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.bundle.folder import written
from pipeline.bundle.format import catalog_schema, digest_of_file, file_name, named_digest_of, number_of, pyarrow
from pipeline.bundle.merge import Sightings, merge_rows
from pipeline.errors import BundleError, CatalogError
from pipeline.records import BadRow, Deletion, ImageRef, Product

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from pipeline.bundle.folder import Bundle
    from pipeline.bundle.merge import Row

ROWS = 2_000
"""rows of a row group, and so in memory at once"""
CHARACTERS = 16 * 1024 * 1024
"""text of a row group, but for the row that goes beyond it: an image in a data URI may have 20 MB"""
DELETED = "deleted"
"""code of a deletion, which is in no finished file"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogCounts:
    """What a bundle's catalog states; `bad_rows` counts the rows that could not be used by code.

    `new` products were not in the one before, `gone` ones are in it alone.
    """

    products: int
    images: int
    bad_rows: Mapping[str, int]
    new: int
    gone: int


def image_key(product_id: str, url: str) -> bytes:
    """16 bytes for an image reference, to remember many of them by."""
    return blake2b(f"{product_id}\0{url}".encode(), digest_size=16).digest()


def write_catalog(bundle: Bundle, rows: Iterable[Row], *, max_remove_rate: float) -> CatalogCounts:
    """Make the bundle's catalog say what `rows` say, in one step; the file stays as it is when nothing differs.

    Raises CatalogError from `rows`, and when more than `max_remove_rate` of the bundle's products would be gone: a
    cut-off export looks just like that, and so does another catalog. Raises BundleError.
    """
    before = _product_ids(bundle)
    with _temporary(bundle) as raw, _temporary(bundle) as merged:
        found = Sightings()
        counts = _write(bundle, raw, _noted(rows, found))
        _refuse_loss(found.seen - found.deleted, before, bundle, max_remove_rate=max_remove_rate)
        if not found.is_plain():
            counts = _write(bundle, merged, merge_rows(_read(raw), found))
        _put_in_place(bundle, raw if found.is_plain() else merged)
    products = found.seen - found.deleted
    return CatalogCounts(
        products=len(products),
        images=counts.pop("images", 0),
        bad_rows=dict(Counter({code: count for code, count in counts.items() if code}).most_common()),
        new=len(products - before),
        gone=len(before - products),
    )


def read_rows(bundle: Bundle) -> Iterator[Product | BadRow]:
    """What the bundle's catalog states. Raises BundleError when there is none, or it is damaged."""
    with closing(_open(bundle)) as file:
        for row in _rows_of(file):
            if not isinstance(row, Deletion):
                yield row


def _open(bundle: Bundle) -> Any:
    catalogs = bundle.catalogs()
    if not catalogs:
        raise BundleError(
            f"bundle {str(bundle.folder)!r} has no catalog file",
            hint="run the same catvec run … --to again, which writes it; what is finished stays",
        )
    return bundle.open(catalogs[-1])


def read_images(bundle: Bundle) -> Iterator[ImageRef]:
    """The images that the bundle's catalog states, in its order, numbered from 1."""
    with closing(_open(bundle)) as file:
        batches = _batches(file, columns=["product_id", "images", "code"])
        rows = (zip(*(column.to_pylist() for column in batch.columns), strict=True) for batch in batches)
        keys = (
            (product_id, url) for product_id, images, code in chain.from_iterable(rows) if not code for url in images
        )
        for number, (product_id, url) in enumerate(keys, start=1):
            yield ImageRef(image_id=number, product_id=product_id, url=url)


def _product_ids(bundle: Bundle) -> set[str]:
    return {row.product_id for row in read_rows(bundle) if isinstance(row, Product)} if bundle.catalogs() else set()


def _refuse_loss(now: set[str], before: set[str], bundle: Bundle, *, max_remove_rate: float) -> None:
    gone = len(before - now)
    if gone > max(max_remove_rate * len(before), 1 if max_remove_rate else 0):
        raise CatalogError(
            f"{gone:,} of the {len(before):,} products in bundle {str(bundle.folder)!r} are missing in this catalog, "
            f"more than --max-remove-rate {max_remove_rate:g} allows; nothing was changed",
            hint="if they are really gone, raise --max-remove-rate; if this is another catalog, give it a bundle of "
            "its own",
        )


def _noted(rows: Iterable[Row], found: Sightings) -> Iterator[Row]:
    for row in rows:
        found.note(row)
        yield row


# ---- files


@contextmanager
def _temporary(bundle: Bundle) -> Iterator[Path]:
    path = bundle.folder / f".catvec-{secrets.token_hex(6)}.new"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write(bundle: Bundle, path: Path, rows: Iterable[Row]) -> Counter[str]:
    """Write a whole file; returns how many rows have each code, products having none, and how many `images`."""
    pa = pyarrow()
    schema = catalog_schema(pa, bundle.manifest)
    counts: Counter[str] = Counter()
    with _new_file(bundle, path) as file:
        writer = _guarded(bundle, lambda: pa.parquet.ParquetWriter(file, schema, **OPTIONS))
        for chunk in _chunks(map(_values, rows)):
            counts.update(values["code"] or "" for values in chunk)
            counts["images"] += sum(len(values["images"] or ()) for values in chunk)
            _flush(bundle, writer, pa.Table.from_pylist(chunk, schema=schema))
        _guarded(bundle, writer.close)
    return counts


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows by row groups; the last one may be empty."""
    chunk: list[dict[str, Any]] = []
    characters = 0
    for values in rows:
        chunk.append(values)
        characters += _characters(values)
        if len(chunk) == ROWS or characters >= CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    yield chunk


def _characters(values: dict[str, Any]) -> int:
    texts = sum(len(value) for value in values.values() if isinstance(value, str))
    return texts + sum(map(len, values["images"] or ()))


OPTIONS: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@contextmanager
def _new_file(bundle: Bundle, path: Path) -> Iterator[Any]:
    """An open file that is on the disk when the block has ended well."""
    file = _guarded(bundle, lambda: path.open("wb"))
    try:
        yield file
        _guarded(bundle, file.flush)
        _guarded(bundle, lambda: os.fsync(file.fileno()))
    finally:
        with written(bundle.folder):
            file.close()


def _flush(bundle: Bundle, writer: Any, table: Any) -> None:
    _guarded(bundle, lambda: writer.write_table(table))


def _guarded(bundle: Bundle, work: Callable[[], Any]) -> Any:
    """Do a step of writing. Not the whole: what goes wrong with the rows on the way is no fault of the disk."""
    with written(bundle.folder):
        return work()


def _put_in_place(bundle: Bundle, path: Path) -> None:
    earlier = bundle.catalogs()
    digest = digest_of_file(path)
    if earlier and named_digest_of(earlier[-1]) == digest:
        earlier.pop()
    else:
        number = number_of(earlier[-1]) + 1 if earlier else 1
        _guarded(bundle, lambda: path.replace(bundle.folder / file_name("catalog", number, digest)))
    for old in earlier:
        _guarded(bundle, lambda old=old: old.unlink(missing_ok=True))  # type: ignore[misc]


# ---- rows


def _values(row: Row) -> dict[str, Any]:
    if isinstance(row, BadRow):
        return {
            "row": row.row,
            "product_id": row.product_id,
            "code": row.code,
            "detail": row.detail,
            "url": row.url,
            "images": None,
        }
    if isinstance(row, Deletion):
        return {"row": row.row, "product_id": row.product_id, "code": DELETED, "images": None}
    return {
        "row": row.row,
        "product_id": row.product_id,
        "title": row.title,
        "category": row.category,
        "brand": row.brand,
        "price": None if row.price is None else str(row.price),
        "attrs": json.dumps(row.attrs, ensure_ascii=False),
        "images": row.images,
        "code": None,
    }


def _read(path: Path) -> Iterator[Row]:
    with closing(pyarrow().parquet.ParquetFile(path)) as file:
        yield from _rows_of(file)


def _rows_of(file: Any) -> Iterator[Row]:
    for batch in _batches(file):
        yield from map(_row, batch.to_pylist())


def _batches(file: Any, columns: list[str] | None = None) -> Iterator[Any]:
    # group by group: a batch may otherwise hold rows of many, and so much more text than was in memory at writing
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns)


def _row(values: dict[str, Any]) -> Row:
    if values["code"] == DELETED:
        return Deletion(row=values["row"], product_id=values["product_id"])
    if values["code"] is not None:
        names = ("row", "product_id", "code", "detail", "url")
        return BadRow(**{name: values[name] for name in names})
    price = values["price"]
    return Product(
        row=values["row"],
        product_id=values["product_id"],
        images=tuple(values["images"] or ()),
        title=values["title"],
        category=values["category"],
        brand=values["brand"],
        price=None if price is None else Decimal(price),
        attrs=json.loads(values["attrs"] or "{}"),
    )
