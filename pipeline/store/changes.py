"""What one run changed, read back for people: new products, changed images, and what left.

`missing_since` and `active` part what the catalog names from what the search finds; here the search counts.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from psycopg import sql
from psycopg.rows import class_row

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from pipeline.store.connect import Connection

FIND_RUN = """
SELECT run_id, catalog, model, state, started_at, finished_at, host, error
  FROM catvec.run_status
 WHERE run_id = %s
"""

# a sample from all over the catalog, and the same one when the page is made again
NEW_PRODUCTS = """
SELECT p.product_id, p.title, shown.image_id, shown.url, p.first_seen_at AS since
  FROM catvec_store.products p
 CROSS JOIN LATERAL (
         SELECT v.image_id, v.url
           FROM {embeddings} v
          WHERE v.product_id = p.product_id
          ORDER BY v.position, v.image_id
          LIMIT 1) shown
 WHERE p.catalog = %(catalog)s
   AND p.active
   AND p.missing_since IS NULL
   AND p.first_seen_at >= %(started_at)s
 ORDER BY hashtextextended(p.product_id, %(run_id)s), p.product_id
 LIMIT %(limit)s
"""

CHANGED_IMAGES = """
SELECT p.product_id, p.title, i.image_id, i.url, i.changed_at AS since
  FROM catvec_store.images i
  JOIN catvec_store.products p ON p.product_id = i.product_id
 WHERE p.catalog = %(catalog)s
   AND p.active
   AND i.active
   AND i.missing_since IS NULL
   AND i.changed_at >= %(started_at)s
 ORDER BY hashtextextended(i.url, %(run_id)s), i.image_id
 LIMIT %(limit)s
"""

REMOVED_PRODUCTS = """
SELECT product_id, title
  FROM catvec_store.products
 WHERE catalog = %(catalog)s
   AND NOT active
   AND removed_at >= %(started_at)s
 ORDER BY coalesce(title, product_id), product_id
 LIMIT %(limit)s
"""

SAME_CHANGE = """
SELECT count(*)
  FROM catvec_store.images
 WHERE changed_at >= (SELECT started_at FROM catvec_store.runs WHERE run_id = %(run_id)s)
 GROUP BY content_sha256
 ORDER BY count(*) DESC
 LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A row of catvec.run_status. `error` is why it did not finish."""

    run_id: int
    catalog: str
    model: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    host: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownImage:
    """An image of a product that a run brought or found changed, and when."""

    product_id: str
    title: str | None
    image_id: int
    url: str = field(repr=False)  # may hold a password or a token
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedProduct:
    """A product that a run took out of the search results."""

    product_id: str
    title: str | None


def find_run(connection: Connection, run_id: int) -> RecordedRun:
    """Raises StoreError when there is no such run."""
    with connection.cursor(row_factory=class_row(RecordedRun)) as cursor:
        run = cursor.execute(FIND_RUN, (run_id,)).fetchone()
    if run is None:
        raise StoreError(f"run {run_id} is not in the database")
    return run


def sample_new_products(connection: Connection, run: RecordedRun, *, limit: int) -> list[ShownImage]:
    """Products that came with this run and can be found, each with its first image that has a vector."""
    query = sql.SQL(NEW_PRODUCTS).format(embeddings=sql.Identifier("catvec", f"image_embeddings_{run.model}"))
    with connection.cursor(row_factory=class_row(ShownImage)) as cursor:
        return cursor.execute(query, _parameters(run, limit)).fetchall()


def sample_changed_images(connection: Connection, run: RecordedRun, *, limit: int) -> list[ShownImage]:
    """Images behind whose reference this run found other bytes."""
    with connection.cursor(row_factory=class_row(ShownImage)) as cursor:
        return cursor.execute(CHANGED_IMAGES, _parameters(run, limit)).fetchall()


def list_removed_products(connection: Connection, run: RecordedRun, *, limit: int) -> list[RemovedProduct]:
    """The first products by title that left the search results with this run."""
    with connection.cursor(row_factory=class_row(RemovedProduct)) as cursor:
        return cursor.execute(REMOVED_PRODUCTS, _parameters(run, limit)).fetchall()


def _parameters(run: RecordedRun, limit: int) -> dict[str, object]:
    return {"catalog": run.catalog, "started_at": run.started_at, "run_id": run.run_id, "limit": limit}


@contextmanager
def bounded(connection: Connection, seconds: float) -> Iterator[None]:
    """One transaction; a statement that takes longer is cancelled, with psycopg's error."""
    with connection.transaction():
        connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{max(1, int(seconds * 1000))}ms",))
        yield


def count_same_change(connection: Connection, run_id: int) -> int:
    """How many images showed the same new content in this run: the largest number of them."""
    row = connection.execute(SAME_CHANGE, {"run_id": run_id}).fetchone()
    return int(row[0]) if row else 0
