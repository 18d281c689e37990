"""The nearest products of each product, found beforehand, for apps that want one lookup by primary key.

Only what a change can have altered is found again: the products that changed, those whose neighbours changed or left,
and those to whom a changed product is nearer now than their last neighbour. These are marked in one transaction and
then worked off page by page, so that whatever breaks off goes on with the next call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.errors import LockedError
from pipeline.store.connect import Session, require_vector
from pipeline.store.models import choose_model
from pipeline.store.pooler import holding

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

FIRST_K = 20
"""neighbours of each product, unless told otherwise: two rows of a shop's page"""
PAGE = 200
"""products looked up in one transaction: half a second, what a kill costs at most"""

MOST_CHANGED = 0.05
"""share of changed products beyond which all are found anew: comparing a product with all others costs 0.03 s in
100,000 products, finding its neighbours by the index 0.003 s"""

TAKE_LOCK = (
    "SELECT pg_try_advisory_lock(hashtextextended('catvec:neighbours:' || current_database() || ':' || %s, 0))"
)

# what can be searched: the products and the digest of their images with vectors
STAGE = """
CREATE TEMPORARY TABLE current ON COMMIT DROP AS
SELECT v.product_id, sha256(string_agg(DISTINCT v.content_sha256, ''::bytea ORDER BY v.content_sha256)) AS contents
  FROM catvec.{view} v
  JOIN catvec_store.products p ON p.product_id = v.product_id
 WHERE p.active
 GROUP BY v.product_id
"""

# both kinds of change: products that have other images than before, and products that are gone
STAGE_CHANGES = """
CREATE TEMPORARY TABLE changes ON COMMIT DROP AS
SELECT coalesce(c.product_id, n.product_id) AS product_id, c.contents
  FROM current c
  FULL JOIN (SELECT product_id, contents FROM catvec_store.neighbours WHERE model_id = %(model_id)s) n
    ON n.product_id = c.product_id
 WHERE c.contents IS DISTINCT FROM n.contents
"""

COUNT = """
SELECT (SELECT count(*) FROM current), (SELECT count(*) FROM changes WHERE contents IS NOT NULL)
"""

MARK_ALL = """
UPDATE catvec_store.neighbours
   SET is_stale = true
 WHERE model_id = %(model_id)s
   AND NOT is_stale
"""

MARK_THOSE_THAT_NAME_A_CHANGE = """
UPDATE catvec_store.neighbours n
   SET is_stale = true
 WHERE n.model_id = %(model_id)s
   AND NOT n.is_stale
   AND n.neighbour_ids && (SELECT coalesce(array_agg(product_id), '{}') FROM changes)
"""

# The margin is the rounding of a similarity to real; a list that is not full takes anything. Through the model's
# view, so that similarities are those of the functions, whatever is stored.
MARK_THOSE_NEAR_TO_A_CHANGE = """
UPDATE catvec_store.neighbours n
   SET is_stale = true
  FROM (SELECT DISTINCT o.product_id
          FROM (SELECT DISTINCT v.content_sha256, v.embedding, h.product_id
                  FROM changes h
                  JOIN catvec.{view} v ON v.product_id = h.product_id
                 WHERE h.contents IS NOT NULL) changed
         CROSS JOIN catvec.{view} v
          JOIN catvec_store.neighbours o ON o.product_id = v.product_id AND o.model_id = %(model_id)s
         WHERE o.product_id <> changed.product_id
           AND (cardinality(o.similarities) < o.wanted
                OR 1 - (v.embedding OPERATOR({vector}.<=>) changed.embedding)
                   >= o.similarities[cardinality(o.similarities)] - 1e-6)) near
 WHERE n.model_id = %(model_id)s
   AND n.product_id = near.product_id
   AND NOT n.is_stale
"""

DELETE_GONE = """
DELETE FROM catvec_store.neighbours n
 USING changes h
 WHERE n.model_id = %(model_id)s
   AND n.product_id = h.product_id
   AND h.contents IS NULL
"""

# from now on the row says that it is to be found anew, also if this breaks off; what it held before stays readable
MARK_CHANGED = """
INSERT INTO catvec_store.neighbours AS n
       (model_id, product_id, contents, neighbour_ids, similarities, wanted, is_stale)
SELECT %(model_id)s, h.product_id, h.contents, '{}', '{}', %(k)s, true
  FROM changes h
 WHERE h.contents IS NOT NULL
    ON CONFLICT (model_id, product_id) DO UPDATE
   SET contents = excluded.contents, is_stale = true
"""

LAST_K = "SELECT max(wanted) FROM catvec_store.neighbours WHERE model_id = %(model_id)s AND NOT is_stale"

READ_WORK = """
SELECT product_id
  FROM catvec_store.neighbours
 WHERE model_id = %(model_id)s
   AND (is_stale OR wanted <> %(k)s)
 ORDER BY product_id
"""

WRITE_PAGE = """
UPDATE catvec_store.neighbours n
   SET neighbour_ids = coalesce(found.ids, '{}'), similarities = coalesce(found.similarities, '{}'),
       wanted = %(k)s, is_stale = false, built_at = now()
  FROM unnest(%(page)s::text[]) AS page (product_id)
 CROSS JOIN LATERAL (
       SELECT array_agg(s.product_id ORDER BY s.rank) AS ids,
              array_agg(s.similarity::real ORDER BY s.rank) AS similarities
         FROM catvec.similar_products(page.product_id, %(k)s, model => %(name)s)
              WITH ORDINALITY
              AS s (product_id, title, category, brand, price, image_id, url, similarity, rank)) found
 WHERE n.model_id = %(model_id)s
   AND n.product_id = page.product_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """What a build came to: `products` have neighbours now, `found` of them were looked up, `removed` have left."""

    products: int
    found: int
    removed: int


def build_neighbours(
    url: str, model: StoredModel, *, k: int | None, report: Callable[[int, int], None] = lambda _done, _total: None
) -> Refresh:
    """Find the k nearest products of every product whose neighbours may have changed; None: as many as last time.

    `report` is told how many of how many are done. Raises LockedError while another build of the model goes on,
    StoreError.
    """
    with Session(url, on_connect=holding(url, partial(take_lock, model=model))) as session:
        parameters: dict[str, object] = {"model_id": model.model_id, "name": model.name}
        parameters["k"] = k or _last_k(session, parameters)
        products, removed = session.run(lambda connection: _mark(connection, model, parameters))
        work = [product_id for (product_id,) in session.rows(READ_WORK, parameters)]
        for start in range(0, len(work), PAGE):
            report(start, len(work))
            page = parameters | {"page": work[start : start + PAGE]}
            session.run(partial(_write, page=page))
        report(len(work), len(work))
    return Refresh(products=products, found=len(work), removed=removed)


def _last_k(session: Session, parameters: dict[str, object]) -> int:
    [(last,)] = session.rows(LAST_K, parameters)
    return int(last or FIRST_K)


def _write(connection: Connection, page: dict[str, object]) -> None:
    connection.execute(WRITE_PAGE, page)


def take_lock(connection: Connection, model: StoredModel) -> None:
    """Hold the lock on this model's neighbours until the connection ends.

    Raises LockedError, or ModelError when the model was dropped since it was chosen.
    """
    if connection.execute(TAKE_LOCK, (model.name,)).fetchone() != (True,):
        raise LockedError(
            f"the neighbours of model {model.name!r} are being built already", hint="wait until that is done"
        )
    choose_model(connection, model.name)


def _mark(connection: Connection, model: StoredModel, parameters: dict[str, object]) -> tuple[int, int]:
    """Mark what must be found again; gives how many products there are, and how many have left."""
    names = {"view": sql.Identifier(model.view), "vector": sql.Identifier(require_vector(connection))}
    connection.execute(sql.SQL(STAGE).format(**names))
    connection.execute(STAGE_CHANGES, parameters)
    [(products, changed)] = connection.execute(COUNT).fetchall()
    if changed > MOST_CHANGED * products:
        connection.execute(MARK_ALL, parameters)
    elif changed:
        connection.execute(sql.SQL(MARK_THOSE_NEAR_TO_A_CHANGE).format(**names), parameters)
    connection.execute(MARK_THOSE_THAT_NAME_A_CHANGE, parameters)
    removed = connection.execute(DELETE_GONE, parameters).rowcount
    connection.execute(MARK_CHANGED, parameters)
    return products, removed
