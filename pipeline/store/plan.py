"""What a run would find to do, counted from the same joins that a run writes by. Nothing stored is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.store.share import IS_OURS, share_values
from pipeline.store.work import WorkCount, count_work_in, image_of, read_query

if TYPE_CHECKING:
    from pipeline.records import ImageRef
    from pipeline.shard import Shard
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel
    from pipeline.store.work import Scope

# beside the temporary tables of `stage`
STAYING = " WHERE NOT EXISTS (SELECT FROM gone_images gone WHERE gone.image_id = task.image_id)"

# rows that a run would change before it looks
UPDATED_AT = """
CASE WHEN EXISTS (SELECT FROM differing_products d WHERE d.product_id = p.product_id) THEN %(as_of)s::timestamptz
     ELSE p.updated_at END
"""

COUNT_COMING = """
SELECT count(*) FILTER (WHERE d.is_new), count(*) FILTER (WHERE NOT d.is_new),
       count(*) FILTER (WHERE NOT d.is_new AND e.content_sha256 IS NULL)
  FROM differing_images d
  LEFT JOIN catvec_store.images i ON i.product_id = d.product_id AND i.url = d.url
  LEFT JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
 WHERE NOT d.was_there
"""

# marked by a run that then broke off: they leave with the next one that ends, unless the catalog names them again
COUNT_MARKED = (
    """
WITH marked AS (
  SELECT p.product_id
    FROM catvec_store.products p
   WHERE p.catalog = %(catalog)s
     AND p.active
     AND p.missing_since IS NOT NULL
     AND """
    + IS_OURS
    + """
     AND NOT EXISTS (SELECT FROM differing_products d WHERE d.product_id = p.product_id))
SELECT (SELECT count(*) FROM marked),
       (SELECT count(*) FROM catvec_store.images i JOIN marked USING (product_id) WHERE i.active)
"""
)


# of what is new, or back with a content that has no vector
COMING = """
SELECT coalesce(d.image_id, 0) AS image_id, d.product_id, d.url, NULL::text, NULL::text, i.content_sha256, false,
       NULL::text, false
  FROM differing_images d
  LEFT JOIN catvec_store.images i ON i.image_id = d.image_id
  LEFT JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
 WHERE NOT d.was_there
   AND (d.is_new OR e.content_sha256 IS NULL)
"""

STATED = """
SELECT 0::bigint, product_id, url, NULL::text, NULL::text, NULL::bytea, false, NULL::text, false
  FROM stage_images
"""

# from all over the catalog, and the same ones when it is asked again
SAMPLE = """
SELECT *
  FROM ({images}) AS image
 ORDER BY hashtextextended(url, hashtextextended(product_id, 0)), product_id, url
 LIMIT %(sample)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """Image references that the catalog brings: never seen before, or back from among those that had left; the
    content of `unknown` ones of these has no vector."""

    new: int
    back: int
    unknown: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """Products and their images that an earlier run has marked missing, and none has removed yet."""

    products: int
    images: int


def count_marked(connection: Connection, catalog: str, shard: Shard | None = None) -> Marked:
    values = {"catalog": catalog, **share_values(shard)}
    [(products, images)] = connection.execute(COUNT_MARKED, values).fetchall()
    return Marked(products=products, images=images)


def count_staying(connection: Connection, model: StoredModel, scope: Scope) -> WorkCount:
    """The work on images that are stored and that the staged catalog still names."""
    return count_work_in(connection, model, scope, only=STAYING, updated_at=UPDATED_AT)


def count_coming(connection: Connection, model: StoredModel) -> Coming:
    query = sql.SQL(COUNT_COMING).format(table=sql.Identifier(model.table))
    [(new, back, unknown)] = connection.execute(query).fetchall()
    return Coming(new=new, back=back, unknown=unknown)


def sample_stated(connection: Connection, images: int) -> list[ImageRef]:
    """So many images of the staged catalog, where all of them would be asked for."""
    query = sql.SQL(SAMPLE).format(images=sql.SQL(STATED))
    return [image_of(row) for row in connection.execute(query, {"sample": images}).fetchall()]


def sample_to_fetch(connection: Connection, model: StoredModel, scope: Scope, images: int) -> list[ImageRef]:
    """So many of the images that a run would ask for, with the validators that it would send along."""
    coming = sql.SQL(COMING).format(table=sql.Identifier(model.table))
    staying, values = read_query(model, scope, f"{STAYING} AND is_to_try", updated_at=UPDATED_AT)
    query = sql.SQL(SAMPLE).format(images=sql.SQL(" UNION ALL ").join([coming, staying]))
    return [image_of(row) for row in connection.execute(query, {**values, "sample": images}).fetchall()]
