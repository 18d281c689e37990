"""What is to be done: the images of a catalog that have no vector under a model. The data is the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.records import ImageRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel

PAGE = 500
"""images read at once: at 40 ms a round trip this feeds 12,000 images/s, and holds 100 KB"""

FROM = """
  FROM catvec_store.images i
  JOIN catvec_store.products p ON p.product_id = i.product_id
  LEFT JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
 WHERE p.catalog = %(catalog)s
   AND i.active
"""

COUNT = "SELECT count(*), count(*) FILTER (WHERE e.content_sha256 IS NULL)" + FROM

READ = (
    "SELECT i.image_id, i.product_id, i.url"
    + FROM
    + """
   AND e.content_sha256 IS NULL
   AND i.image_id > %(after)s
 ORDER BY i.image_id
 LIMIT %(page)s
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkCount:
    """Images of the catalog, and how many of them have no vector yet."""

    images: int
    missing: int


def count_work(session: Session, model: StoredModel, catalog: str) -> WorkCount:
    query = sql.SQL(COUNT).format(table=sql.Identifier(model.table))
    [(images, missing)] = session.rows(query, {"catalog": catalog})
    return WorkCount(images=images, missing=missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Active images of the catalogs that a model was run on, and how many of them have a vector under it."""

    images: int
    embedded: int


def count_coverage(connection: Connection, model: StoredModel) -> Coverage:
    query = sql.SQL(
        "SELECT count(*), count(e.content_sha256) FROM catvec_store.images i"
        " JOIN catvec_store.products p ON p.product_id = i.product_id"
        " LEFT JOIN catvec_store.{} e ON e.content_sha256 = i.content_sha256"
        " WHERE i.active AND p.catalog IN (SELECT r.catalog FROM catvec_store.runs r WHERE r.model_id = %s)"
    ).format(sql.Identifier(model.table))
    images, embedded = connection.execute(query, (model.model_id,)).fetchone() or (0, 0)
    return Coverage(images=images, embedded=embedded)


def count_products(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM catvec.products WHERE active").fetchone()
    return int(row[0]) if row else 0


def read_work(session: Session, model: StoredModel, catalog: str) -> Iterator[list[ImageRef]]:
    """The images without a vector, page by page in the order of their ids; each is seen once."""
    query = sql.SQL(READ).format(table=sql.Identifier(model.table))
    after = 0
    while rows := session.rows(query, {"catalog": catalog, "after": after, "page": PAGE}):
        yield [ImageRef(image_id=row[0], product_id=row[1], url=row[2]) for row in rows]
        after = rows[-1][0]


def find_known(session: Session, model: StoredModel, hashes: Sequence[bytes]) -> set[bytes]:
    """Those of the SHA-256 sums that have a vector under this model already."""
    query = sql.SQL("SELECT content_sha256 FROM catvec_store.{} WHERE content_sha256 = ANY (%(hashes)s)")
    rows = session.rows(query.format(sql.Identifier(model.table)), {"hashes": list(hashes)})
    return {row[0] for row in rows}
