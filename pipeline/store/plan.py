"""What a run would find to do, counted from the same joins that a run writes by. Nothing stored is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.store.share import IS_OURS, share_values
from pipeline.store.work import WorkCount, count_work_in

if TYPE_CHECKING:
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
