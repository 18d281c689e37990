"""The catalog into the tables: products, image references, and the rows that could not be used.

One transaction, so a run that is killed changes nothing; and only rows that differ are written. What the catalog no
longer names is marked missing here and leaves the search results at the end of the run (`removal`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import CatalogError
from pipeline.store.share import IS_OURS, share_values
from pipeline.store.stage import compare_rows, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.records import BadRow, Deletion, Product
    from pipeline.shard import Shard
    from pipeline.store.connect import Connection
    from pipeline.store.stage import Differences

MERGE_PRODUCTS = """
INSERT INTO catvec_store.products AS p (product_id, catalog, title, category, brand, price, attrs)
SELECT product_id, %(catalog)s, title, category, brand, price, attrs
  FROM differing_products
 ORDER BY product_id                                -- one order for everybody: no deadlocks between runs
    ON CONFLICT (product_id) DO UPDATE
   SET catalog = excluded.catalog, title = excluded.title, category = excluded.category, brand = excluded.brand,
       price = excluded.price, attrs = excluded.attrs, active = true, missing_since = NULL, removed_at = NULL,
       updated_at = now()
"""

MERGE_IMAGES = """
INSERT INTO catvec_store.images AS i (product_id, url, position)
SELECT product_id, url, position
  FROM differing_images
 ORDER BY product_id, position
    ON CONFLICT (product_id, hashtextextended(url, 0)) DO UPDATE
   SET position = excluded.position, active = true, missing_since = NULL
"""

# in the order in which runs of other models write them: no deadlocks
LOCK_IMAGES = """
SELECT FROM catvec_store.images
 WHERE image_id IN (SELECT image_id FROM gone_images UNION SELECT image_id FROM differing_images)
 ORDER BY image_id
   FOR UPDATE
"""

MARK_MISSING_PRODUCTS = """
UPDATE catvec_store.products p
   SET missing_since = now()
  FROM gone_products gone
 WHERE p.product_id = gone.product_id
   AND p.missing_since IS NULL
"""

MARK_MISSING_IMAGES = """
UPDATE catvec_store.images i
   SET missing_since = now()
  FROM gone_images gone
 WHERE i.image_id = gone.image_id
   AND i.missing_since IS NULL
"""

# A delta feed names only some rows: what was bad in others stands until they are named again. A row without an id is
# of the first share.
DROP_BAD_ROWS = (
    """
DELETE FROM catvec_store.bad_rows p
 WHERE p.catalog = %(catalog)s
   AND (NOT %(partial)s OR p.product_id IS NULL OR p.product_id IN (SELECT s.product_id FROM stage s))
   AND CASE WHEN p.product_id IS NULL THEN coalesce(%(share)s::bigint, 0) = 0 ELSE """
    + IS_OURS
    + " END"
)

INSERT_BAD_ROWS = """
INSERT INTO catvec_store.bad_rows (catalog, row_number, product_id, url, code, detail)
SELECT %(catalog)s, row_number, product_id, url, code, detail
  FROM stage
 WHERE code IS NOT NULL
 ORDER BY row_number
"""


SPARE_IMAGES = 10
"""images that products which stay may lose whatever the rate: a small shop tidies up, an export that breaks loses
more"""


def sync_catalog(
    connection: Connection,
    rows: Iterable[Product | BadRow | Deletion],
    *,
    catalog: str,
    max_remove_rate: float,
    partial: bool = False,
    shard: Shard | None = None,
) -> Differences:
    """Make the tables say what the catalog says; inside the caller's transaction.

    With `partial` the catalog holds only what changed: what it does not name stays. With a `shard`, `rows` are those
    of this share, and products of others are none of its business.

    Raises CatalogError from `rows`, and when more than `max_remove_rate` of what is stored would leave: a cut-off
    export looks just like that.
    """
    values = {"catalog": catalog, "partial": partial, **share_values(shard)}
    read_rows(connection, rows)  # without the lock: several shards may read at the same time
    # runs of two models, and shards, may work on one catalog at the same time; the lock ends with the transaction
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('catvec:sync:' || %(catalog)s, 0))", values)
    found = compare_rows(connection, catalog=catalog, partial=partial, shard=shard)
    refusal = find_refusal(found, catalog=catalog, max_remove_rate=max_remove_rate, shard=shard)
    if refusal is not None:
        raise refusal
    for statement in (MERGE_PRODUCTS, LOCK_IMAGES, MERGE_IMAGES, MARK_MISSING_PRODUCTS, MARK_MISSING_IMAGES):
        connection.execute(statement, values)
    connection.execute(DROP_BAD_ROWS, values)
    connection.execute(INSERT_BAD_ROWS, values)
    return found


def find_refusal(
    found: Differences, *, catalog: str, max_remove_rate: float, shard: Shard | None = None
) -> CatalogError | None:
    """Why a run must not go on with this catalog: too much of what is stored would leave the search results."""
    products, images = found.products, found.images
    source = f"catalog {catalog!r}" + (f" (shard {shard})" if shard else "")
    leaving, lost = products.gone + products.bare, images.gone - images.moved
    if leaving > max(max_remove_rate * products.stored, 1 if max_remove_rate else 0):
        what = "are missing in this one" + (", or have no image in it" if products.bare else "")
        problem = f"{leaving:,} of the {products.stored:,} products stored from {source} {what}"
    elif lost > max(max_remove_rate * images.stored, SPARE_IMAGES if max_remove_rate else 0):
        problem = (
            f"{lost:,} of the {images.stored:,} images stored from {source} are missing in this one, "
            "without another in their place"
        )
    else:
        return None
    return CatalogError(
        f"{problem}, more than --max-remove-rate {max_remove_rate:g} allows; nothing was changed",
        hint="if they are really gone, raise --max-remove-rate; if this is another catalog beside the first, "
        "name it with --catalog-name; if it holds only what changed, add --partial",
    )
