"""The catalog into the tables: products, image references, and the rows that could not be used.

The whole catalog is copied into a temporary table and merged from there in one transaction, so a catalog that
breaks off in the middle, or a run that is killed, changes nothing; and only rows that differ are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.types.json import Jsonb

from pipeline.errors import CatalogError
from pipeline.records import BadRow, Product

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.store.connect import Connection

CREATE_STAGE = """
CREATE TEMPORARY TABLE stage (
  row_number bigint, product_id text, title text, category text, brand text, price numeric, attrs jsonb,
  images text[], url text, code text, detail text
) ON COMMIT DROP
"""

COPY_STAGE = """
COPY stage (row_number, product_id, title, category, brand, price, attrs, images, url, code, detail) FROM STDIN
"""

# A product's first row states it. Later rows of the same id may add images (a shop's export has one row per
# picture); one that says something else about the product is a failure and is left out altogether.
MARK_DUPLICATES = """
UPDATE stage AS later
   SET code = 'duplicate_id',
       detail = format('product %s stands in row %s already, with other values', later.product_id, first.row_number)
  FROM (SELECT DISTINCT ON (product_id) * FROM stage WHERE code IS NULL ORDER BY product_id, row_number) AS first
 WHERE later.product_id = first.product_id
   AND later.code IS NULL
   AND later.row_number > first.row_number
   AND (coalesce(later.title, first.title) IS DISTINCT FROM first.title
        OR coalesce(later.category, first.category) IS DISTINCT FROM first.category
        OR coalesce(later.brand, first.brand) IS DISTINCT FROM first.brand
        OR coalesce(later.price, first.price) IS DISTINCT FROM first.price
        OR NOT first.attrs @> later.attrs)
"""

# a row without a picture is nothing bad when another row of the product has one
FORGET_NO_IMAGE = """
DELETE FROM stage s
 WHERE s.code = 'no_image'
   AND EXISTS (SELECT FROM stage_images i WHERE i.product_id = s.product_id)
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
 ORDER BY product_id, row_number;

CREATE TEMPORARY TABLE stage_images ON COMMIT DROP AS
SELECT product_id, url, row_number() OVER (PARTITION BY product_id ORDER BY first_place) - 1 AS position
  FROM (SELECT s.product_id, u.url, min(ARRAY[s.row_number, u.place]) AS first_place
          FROM stage s
         CROSS JOIN unnest(s.images) WITH ORDINALITY AS u (url, place)
         WHERE s.code IS NULL
         GROUP BY s.product_id, u.url) AS places;

-- temporary tables have no statistics until told, and the merges below would be planned for ten rows
ANALYZE stage_products;
ANALYZE stage_images;
"""

# a product that keeps its row and loses all its images leaves the search results just as well
COUNT_REMOVED = """
SELECT count(*),
       count(*) FILTER (WHERE NOT EXISTS (SELECT FROM stage s WHERE s.product_id = p.product_id)),
       count(*) FILTER (WHERE EXISTS (SELECT FROM stage_products s WHERE s.product_id = p.product_id)
                          AND NOT EXISTS (SELECT FROM stage_images s WHERE s.product_id = p.product_id)
                          AND EXISTS (SELECT FROM catvec_store.images i
                                       WHERE i.product_id = p.product_id AND i.active))
  FROM catvec_store.products p
 WHERE p.catalog = %(catalog)s
   AND p.active
"""

MERGE_PRODUCTS = """
INSERT INTO catvec_store.products AS p (product_id, catalog, title, category, brand, price, attrs)
SELECT product_id, %(catalog)s, title, category, brand, price, attrs
  FROM stage_products
 ORDER BY product_id                                -- one order for everybody: no deadlocks between runs
    ON CONFLICT (product_id) DO UPDATE
   SET catalog = excluded.catalog, title = excluded.title, category = excluded.category, brand = excluded.brand,
       price = excluded.price, attrs = excluded.attrs, active = true, removed_at = NULL, updated_at = now()
 WHERE (p.catalog, p.title, p.category, p.brand, p.price, p.attrs, p.active)
       IS DISTINCT FROM
       (excluded.catalog, excluded.title, excluded.category, excluded.brand, excluded.price, excluded.attrs, true)
"""

MERGE_IMAGES = """
INSERT INTO catvec_store.images AS i (product_id, url, position)
SELECT product_id, url, position
  FROM stage_images
 ORDER BY product_id, position
    ON CONFLICT (product_id, hashtextextended(url, 0)) DO UPDATE
   SET position = excluded.position, active = true
 WHERE (i.position, i.active) IS DISTINCT FROM (excluded.position, true)
"""

# A product is gone when no row names it. One whose row is bad today is not gone: it stays as it was.
REMOVE_PRODUCTS = """
UPDATE catvec_store.products p
   SET active = false, removed_at = now(), updated_at = now()
 WHERE p.catalog = %(catalog)s
   AND p.active
   AND NOT EXISTS (SELECT FROM stage s WHERE s.product_id = p.product_id)
"""

REMOVE_IMAGES = """
UPDATE catvec_store.images i
   SET active = false
  FROM catvec_store.products p
 WHERE p.product_id = i.product_id
   AND p.catalog = %(catalog)s
   AND i.active
   AND NOT EXISTS (SELECT FROM stage_images s WHERE s.product_id = i.product_id AND s.url = i.url)
   AND (EXISTS (SELECT FROM stage_products s WHERE s.product_id = i.product_id)
        OR NOT EXISTS (SELECT FROM stage s WHERE s.product_id = i.product_id))
"""

REPLACE_BAD_ROWS = """
INSERT INTO catvec_store.bad_rows (catalog, row_number, product_id, url, code, detail)
SELECT %(catalog)s, row_number, product_id, url, code, detail
  FROM stage
 WHERE code IS NOT NULL
 ORDER BY row_number
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What a reading of the catalog came to. `removed` counts images that left the search results."""

    removed: int
    bad_rows: dict[str, int]


def sync_catalog(
    connection: Connection,
    rows: Iterable[Product | BadRow],
    *,
    catalog: str,
    max_remove_rate: float,
) -> Synced:
    """Make the tables say what the catalog says; inside the caller's transaction.

    Raises CatalogError from `rows`, and when more than `max_remove_rate` of the stored products are
    missing in the catalog or have lost all their images: a cut-off export looks just like that.
    """
    names = {"catalog": catalog}
    # runs of two models may read one catalog at the same time; the lock ends with the transaction
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('catvec:sync:' || %(catalog)s, 0))", names)
    connection.execute(CREATE_STAGE)
    _copy(connection, rows)
    connection.execute("ANALYZE stage")
    connection.execute(MARK_DUPLICATES)
    connection.execute(MARK_TAKEN, names)
    connection.execute(SPLIT_STAGE)
    connection.execute(FORGET_NO_IMAGE)
    _guard_removal(connection, catalog, max_remove_rate)
    connection.execute(MERGE_PRODUCTS, names)
    connection.execute(MERGE_IMAGES, names)
    removed = connection.execute(REMOVE_IMAGES, names).rowcount
    connection.execute(REMOVE_PRODUCTS, names)
    connection.execute("DELETE FROM catvec_store.bad_rows WHERE catalog = %(catalog)s", names)
    connection.execute(REPLACE_BAD_ROWS, names)
    return Synced(removed=removed, bad_rows=_bad_rows(connection))


def _copy(connection: Connection, rows: Iterable[Product | BadRow]) -> None:
    with connection.cursor().copy(COPY_STAGE) as copy:
        for row in rows:
            if isinstance(row, BadRow):
                nothing = (None, None, None, None, None, None)
                copy.write_row((row.row, row.product_id, *nothing, row.url, row.code, row.detail))
            else:
                values = (
                    row.product_id,
                    row.title,
                    row.category,
                    row.brand,
                    row.price,
                    Jsonb(dict(row.attrs)),
                )
                copy.write_row((row.row, *values, list(row.images), None, None, None))


def _guard_removal(connection: Connection, catalog: str, max_remove_rate: float) -> None:
    stored, missing, bare = connection.execute(COUNT_REMOVED, {"catalog": catalog}).fetchone() or (0, 0, 0)
    if missing + bare > max_remove_rate * stored:
        what = "are missing in this one" + (", or have no image in it" if bare else "")
        raise CatalogError(
            f"{missing + bare:,} of the {stored:,} products stored from catalog {catalog!r} {what}, "
            f"more than --max-remove-rate {max_remove_rate:g} allows; nothing was changed",
            hint="if they are really gone, raise --max-remove-rate; if this is another catalog beside the first, "
            "name it with --catalog-name",
        )


def _bad_rows(connection: Connection) -> dict[str, int]:
    return dict(
        connection.execute(
            "SELECT code, count(*) FROM stage WHERE code IS NOT NULL GROUP BY code ORDER BY count(*) DESC, code"
        ).fetchall()
    )
