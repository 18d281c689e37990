"""A reading of the catalog beside what is stored: temporary tables that say what differs. Nothing stored is touched.

The whole catalog is copied into a temporary table first, so one that breaks off in the middle changes nothing. What
is new, changed and gone is found by joins over all of it; `sync` writes these differences and `plan` counts them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, LiteralString

from pipeline.records import BadRow, Deletion
from pipeline.store.share import IS_OURS, share_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.records import Product
    from pipeline.shard import Shard
    from pipeline.store.connect import Connection

CREATE_STAGE = """
CREATE TEMPORARY TABLE stage (
  row_number bigint, product_id text, title text, category text, brand text, price numeric, attrs jsonb,
  images text[], url text, code text, detail text, is_deleted boolean
) ON COMMIT DROP
"""

COPY_STAGE = """
COPY stage (row_number, product_id, title, category, brand, price, attrs, images, url, code, detail, is_deleted)
FROM STDIN
"""

# a row that says that a product is gone outweighs those that still describe it
DROP_DELETED = """
DELETE FROM stage s
 WHERE NOT s.is_deleted
   AND s.product_id IN (SELECT d.product_id FROM stage d WHERE d.is_deleted)
"""

# A product's first row states it. Later rows of the same id may add images (a shop's export has one row per
# picture); one that says something else about the product is a failure and is left out altogether.
MARK_DUPLICATES = """
UPDATE stage AS later
   SET code = 'duplicate_id',
       detail = format('product %s stands in row %s already, with other values', later.product_id, first.row_number)
  FROM (SELECT DISTINCT ON (product_id) *
          FROM stage
         WHERE code IS NULL
           AND product_id IN (SELECT product_id FROM stage WHERE code IS NULL GROUP BY product_id HAVING count(*) > 1)
         ORDER BY product_id, row_number) AS first
 WHERE later.product_id = first.product_id
   AND later.code IS NULL
   AND NOT later.is_deleted
   AND later.row_number > first.row_number
   AND (coalesce(later.title, first.title) IS DISTINCT FROM first.title
        OR coalesce(later.category, first.category) IS DISTINCT FROM first.category
        OR coalesce(later.brand, first.brand) IS DISTINCT FROM first.brand
        OR coalesce(later.price, first.price) IS DISTINCT FROM first.price
        OR NOT first.attrs @> later.attrs)
"""

# an id belongs to the catalog that stated it first, until that one has removed it: two catalogs that share ids would
# take the products from each other for ever
MARK_TAKEN = """
UPDATE stage AS s
   SET code = 'other_catalog',
       detail = 'product ' || p.product_id || ' belongs to catalog ' || quote_literal(p.catalog)
                || ': name that with --catalog-name, or give it another id'
  FROM catvec_store.products p
 WHERE p.product_id = s.product_id
   AND p.catalog <> %(catalog)s
   AND p.active
   AND s.code IS NULL
"""

SPLIT_STAGE = """
CREATE TEMPORARY TABLE stage_products ON COMMIT DROP AS
SELECT DISTINCT ON (product_id) product_id, title, category, brand, price, attrs
  FROM stage
 WHERE code IS NULL
   AND NOT is_deleted
 ORDER BY product_id, row_number;

CREATE TEMPORARY TABLE stage_images ON COMMIT DROP AS
SELECT product_id, url, row_number() OVER (PARTITION BY product_id ORDER BY first_place) - 1 AS position
  FROM (SELECT s.product_id, u.url, min(ARRAY[s.row_number, u.place]) AS first_place
          FROM stage s
         CROSS JOIN unnest(s.images) WITH ORDINALITY AS u (url, place)
         WHERE s.code IS NULL
           AND NOT s.is_deleted
         GROUP BY s.product_id, u.url) AS places;

-- temporary tables have no statistics until told, and the joins below would be planned for ten rows
ANALYZE stage_products;
ANALYZE stage_images;
"""

# a row without a picture is nothing bad when another row of the product has one
FORGET_NO_IMAGE = """
DELETE FROM stage s
 WHERE s.code = 'no_image'
   AND EXISTS (SELECT FROM stage_images i WHERE i.product_id = s.product_id)
"""

COMPARE_PRODUCTS = """
CREATE TEMPORARY TABLE differing_products ON COMMIT DROP AS
SELECT s.product_id, s.title, s.category, s.brand, s.price, s.attrs, p.product_id IS NULL AS is_new
  FROM stage_products s
  LEFT JOIN catvec_store.products p ON p.product_id = s.product_id
 WHERE p.product_id IS NULL
    OR NOT p.active
    OR p.missing_since IS NOT NULL
    OR (p.catalog, p.title, p.category, p.brand, p.price, p.attrs)
       IS DISTINCT FROM (%(catalog)s, s.title, s.category, s.brand, s.price, s.attrs)
"""

COMPARE_IMAGES = """
CREATE TEMPORARY TABLE differing_images ON COMMIT DROP AS
SELECT s.product_id, s.url, s.position, i.image_id, i.image_id IS NULL AS is_new,
       coalesce(i.active AND i.missing_since IS NULL, false) AS was_there
  FROM stage_images s
  LEFT JOIN catvec_store.images i ON i.product_id = s.product_id AND i.url = s.url
 WHERE i.image_id IS NULL
    OR NOT i.active
    OR i.missing_since IS NOT NULL
    OR i.position <> s.position
"""

# A product is gone when it is said to be, or when a full catalog does not name it. One whose row is bad today is not
# gone: it stays as it was. What an earlier reading marked, of a run that was then broken off, was judged then.
FIND_GONE_PRODUCTS = (
    """
CREATE TEMPORARY TABLE gone_products ON COMMIT DROP AS
SELECT p.product_id
  FROM catvec_store.products p
  LEFT JOIN (SELECT product_id, bool_or(is_deleted) AS is_deleted
               FROM stage
              WHERE product_id IS NOT NULL
              GROUP BY product_id) AS named ON named.product_id = p.product_id
 WHERE p.catalog = %(catalog)s
   AND p.active
   AND p.missing_since IS NULL
   AND coalesce(named.is_deleted, NOT %(partial)s)
   AND """
    + IS_OURS
)

FIND_GONE_IMAGES = """
CREATE TEMPORARY TABLE gone_images ON COMMIT DROP AS
SELECT i.image_id, i.product_id
  FROM catvec_store.images i
  JOIN catvec_store.products p ON p.product_id = i.product_id
  LEFT JOIN gone_products gone ON gone.product_id = i.product_id
  LEFT JOIN stage_products stated ON stated.product_id = i.product_id
  LEFT JOIN stage_images s ON s.product_id = i.product_id AND s.url = i.url
 WHERE p.catalog = %(catalog)s
   AND i.active
   AND i.missing_since IS NULL
   AND (gone.product_id IS NOT NULL OR (stated.product_id IS NOT NULL AND s.product_id IS NULL))
"""

COUNT_PRODUCTS = (
    """
SELECT (SELECT count(*)
          FROM catvec_store.products p
         WHERE p.catalog = %(catalog)s
           AND p.active
           AND p.missing_since IS NULL
           AND """
    + IS_OURS
    + """),
       (SELECT count(*) FROM stage_products),
       count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new),
       (SELECT count(*) FROM gone_products),
       (SELECT count(*)
          FROM (SELECT DISTINCT g.product_id
                  FROM gone_images g
                  JOIN stage_products USING (product_id)
                  LEFT JOIN stage_images s ON s.product_id = g.product_id
                 WHERE s.product_id IS NULL) AS bare)
  FROM differing_products
"""
)

# a gone image with a new one beside it has moved; what is then left over is lost
COUNT_IMAGES = (
    """
SELECT (SELECT count(*)
          FROM catvec_store.images i
          JOIN catvec_store.products p ON p.product_id = i.product_id
         WHERE p.catalog = %(catalog)s
           AND i.active
           AND i.missing_since IS NULL
           AND """
    + IS_OURS
    + """),
       (SELECT count(*) FROM stage_images),
       coalesce(sum(fresh), 0)::bigint, coalesce(sum(gone), 0)::bigint, coalesce(sum(least(fresh, gone)), 0)::bigint
  FROM (SELECT product_id, count(*) FILTER (WHERE is_fresh) AS fresh, count(*) FILTER (WHERE NOT is_fresh) AS gone
          FROM (SELECT product_id, true AS is_fresh FROM differing_images WHERE NOT was_there
                UNION ALL
                SELECT product_id, false FROM gone_images) AS both_ways
         GROUP BY product_id) AS per_product
"""
)

COUNT_STATED = "SELECT (SELECT count(*) FROM stage_products), (SELECT count(*) FROM stage_images)"

COUNT_BAD_ROWS = "SELECT code, count(*) FROM stage WHERE code IS NOT NULL GROUP BY code ORDER BY count(*) DESC, code"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductCounts:
    """Products by what a reading of the catalog does to them. `bare` are stated, but have lost all their images."""

    stored: int
    stated: int
    new: int
    changed: int
    gone: int
    bare: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCounts:
    """Image references. `new` and `gone` include both ends of those that `moved` within their product."""

    stored: int
    stated: int
    new: int
    gone: int
    moved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """How a catalog differs from what is stored; `bad_rows` counts the rows that could not be used by code."""

    products: ProductCounts
    images: ImageCounts
    bad_rows: Mapping[str, int] = field(default_factory=dict)


def stage_catalog(
    connection: Connection,
    rows: Iterable[Product | BadRow | Deletion],
    *,
    catalog: str,
    partial: bool,
    shard: Shard | None = None,
) -> Differences:
    """Read the catalog into temporary tables of the caller's transaction, and compare it with what is stored.

    With a `shard`, `rows` are those of this share, and so is what they are compared with.
    """
    read_rows(connection, rows)
    return compare_rows(connection, catalog=catalog, partial=partial, shard=shard)


def compare_rows(connection: Connection, *, catalog: str, partial: bool, shard: Shard | None) -> Differences:
    """What was read, beside what is stored."""
    values = {"catalog": catalog, "partial": partial, **share_values(shard)}
    connection.execute(MARK_TAKEN, values)
    connection.execute(SPLIT_STAGE)
    connection.execute(FORGET_NO_IMAGE)
    for comparison in (COMPARE_PRODUCTS, COMPARE_IMAGES, FIND_GONE_PRODUCTS, FIND_GONE_IMAGES):
        connection.execute(comparison, values)
    stored, stated, new, changed, gone, bare = _row(connection, COUNT_PRODUCTS, values)
    products = ProductCounts(stored=stored, stated=stated, new=new, changed=changed, gone=gone, bare=bare)
    stored, stated, new, gone, moved = _row(connection, COUNT_IMAGES, values)
    images = ImageCounts(stored=stored, stated=stated, new=new, gone=gone, moved=moved)
    return Differences(products=products, images=images, bad_rows=_bad_rows(connection))


def stage_first_catalog(connection: Connection, rows: Iterable[Product | BadRow | Deletion]) -> Differences:
    """The same where catvec has no tables yet: everything is new."""
    read_rows(connection, rows)
    connection.execute(SPLIT_STAGE)
    connection.execute(FORGET_NO_IMAGE)
    products, images = _row(connection, COUNT_STATED, {})
    return Differences(
        products=ProductCounts(stored=0, stated=products, new=products, changed=0, gone=0, bare=0),
        images=ImageCounts(stored=0, stated=images, new=images, gone=0, moved=0),
        bad_rows=_bad_rows(connection),
    )


def _row(connection: Connection, query: LiteralString, values: dict[str, object]) -> tuple[int, ...]:
    [row] = connection.execute(query, values).fetchall()
    return tuple(row)


def _bad_rows(connection: Connection) -> dict[str, int]:
    return dict(connection.execute(COUNT_BAD_ROWS).fetchall())


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _array(texts: Iterable[str]) -> str:
    """A text[] as COPY reads it; psycopg's own way with lists takes half the time of the whole COPY."""
    quoted = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts]
    return "{" + ",".join(quoted) + "}"


def read_rows(connection: Connection, rows: Iterable[Product | BadRow | Deletion]) -> None:
    """Copy the catalog into a temporary table of the caller's transaction."""
    connection.execute(CREATE_STAGE)
    nothing = (None,) * 6
    with connection.cursor().copy(COPY_STAGE) as copy:
        for row in rows:
            if isinstance(row, BadRow):
                copy.write_row((row.row, row.product_id, *nothing, row.url, row.code, row.detail, False))
            elif isinstance(row, Deletion):
                copy.write_row((row.row, row.product_id, *nothing, None, None, None, True))
            else:
                values = (row.row, row.product_id, row.title, row.category, row.brand, row.price)
                copy.write_row((*values, _json(row.attrs), _array(row.images), None, None, None, False))
    connection.execute("ANALYZE stage (product_id, code, is_deleted)")
    connection.execute(DROP_DELETED)
    connection.execute(MARK_DUPLICATES)
