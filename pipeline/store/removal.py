"""What left the catalog: out of the search results at the end of a run, and out of the database after a while."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.durations import NEVER
from pipeline.store.runs import is_alone
from pipeline.store.share import IS_OURS, share_values

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from pipeline.shard import Shard
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel

# A picture stays until its product has another one that searches find: one at a new URL may not have been fetched
# yet, or cannot be had.
DEACTIVATE_IMAGES = (
    """
UPDATE catvec_store.images i
   SET active = false
  FROM catvec_store.products p
 WHERE p.product_id = i.product_id
   AND p.catalog = %(catalog)s
   AND """
    + IS_OURS
    + """
   AND i.active
   AND i.missing_since IS NOT NULL
   AND (p.missing_since IS NOT NULL
        OR NOT EXISTS (SELECT FROM catvec_store.images other
                        WHERE other.product_id = i.product_id AND other.active AND other.missing_since IS NULL)
        OR EXISTS (SELECT FROM catvec_store.images other {joins}
                    WHERE other.product_id = i.product_id AND other.active AND other.missing_since IS NULL))
RETURNING p.missing_since IS NULL
"""
)

DEACTIVATE_PRODUCTS = (
    """
UPDATE catvec_store.products p
   SET active = false, removed_at = now(), updated_at = now()
 WHERE catalog = %(catalog)s
   AND active
   AND missing_since IS NOT NULL
   AND """
    + IS_OURS
)

# images that an older release removed: their time begins now
MARK_REMOVED = """
UPDATE catvec_store.images
   SET missing_since = now()
 WHERE NOT active
   AND missing_since IS NULL
"""

# their images, failures and stored neighbours go with them
FORGET_PRODUCTS = (
    """
DELETE FROM catvec_store.products p
 WHERE catalog = %(catalog)s
   AND NOT active
   AND coalesce(missing_since, removed_at, updated_at) <= now() - %(age)s::interval
   AND """
    + IS_OURS
)

FORGET_IMAGES = (
    """
DELETE FROM catvec_store.images i
 USING catvec_store.products p
 WHERE p.product_id = i.product_id
   AND p.catalog = %(catalog)s
   AND NOT i.active
   AND i.missing_since <= now() - %(age)s::interval
   AND """
    + IS_OURS
)

# Images that are only marked missing still show their content: pictures come back.
MARK_UNUSED = """
INSERT INTO catvec_store.unused_contents (model_id, content_sha256)
SELECT %(model_id)s, e.content_sha256
  FROM catvec_store.{table} e
  LEFT JOIN catvec_store.images i ON i.content_sha256 = e.content_sha256
 WHERE i.image_id IS NULL
    ON CONFLICT DO NOTHING
"""

UNMARK_USED = """
DELETE FROM catvec_store.unused_contents u
 WHERE u.model_id = %(model_id)s
   AND (EXISTS (SELECT FROM catvec_store.images i WHERE i.content_sha256 = u.content_sha256)
        OR NOT EXISTS (SELECT FROM catvec_store.{table} e WHERE e.content_sha256 = u.content_sha256))
"""

# what came back since it was marked stays; its mark goes with the next run
FORGET_VECTORS = """
WITH due AS (
  SELECT u.content_sha256
    FROM catvec_store.unused_contents u
   WHERE u.model_id = %(model_id)s
     AND u.since <= now() - %(age)s::interval
     AND NOT EXISTS (SELECT FROM catvec_store.images i WHERE i.content_sha256 = u.content_sha256)
   LIMIT %(most)s
), forgotten AS (
  DELETE FROM catvec_store.{table} e
   USING due
   WHERE e.content_sha256 = due.content_sha256
)
DELETE FROM catvec_store.unused_contents u
 USING due
 WHERE u.model_id = %(model_id)s
   AND u.content_sha256 = due.content_sha256
"""

FORGET_ROWS = 5_000
"""vectors deleted while runs that want to begin wait: a tenth of a second"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """How many left the search results; `replaced` are those of `images` whose product stays."""

    products: int
    images: int
    replaced: int


def remove_missing(
    connection: Connection, models: Sequence[StoredModel], catalog: str, shard: Shard | None = None
) -> Removed:
    """Take what the catalog no longer names out of the search results, which people make under these models."""
    joins = [
        sql.SQL("JOIN catvec_store.{table} AS {name} ON {name}.content_sha256 = other.content_sha256").format(
            table=sql.Identifier(model.table), name=sql.Identifier(f"of_{model.name}")
        )
        for model in models
    ]
    values = {"catalog": catalog, **share_values(shard)}
    statement = sql.SQL(DEACTIVATE_IMAGES).format(joins=sql.SQL(" ").join(joins))
    stays = [row[0] for row in connection.execute(statement, values).fetchall()]
    products = connection.execute(DEACTIVATE_PRODUCTS, values).rowcount
    return Removed(products=products, images=len(stays), replaced=sum(stays))


def forget(connection: Connection, catalog: str, age: timedelta, shard: Shard | None = None) -> int:
    """Delete what left the catalog more than `age` ago. Returns how many products and images are gone."""
    if age == NEVER:
        return 0
    values = {"catalog": catalog, "age": age, **share_values(shard)}
    connection.execute(MARK_REMOVED)
    images = connection.execute(FORGET_IMAGES, values).rowcount
    products = connection.execute(FORGET_PRODUCTS, values).rowcount
    return products + images


def forget_vectors(session: Session, model: StoredModel, age: timedelta) -> None:
    """Delete the vectors that no image has shown for `age`.

    Not while another run with this model writes: it may be about to show one of them again. One that wants to begin
    waits for some rows and not for all: the rest is left to the next run.
    """
    if age == NEVER or not session.run(partial(is_alone, model_name=model.name)):
        return
    session.run(partial(_mark_unused, model=model))
    while session.run(partial(_forget_some, model=model, age=age)):
        pass


def _mark_unused(connection: Connection, model: StoredModel) -> None:
    for statement in (UNMARK_USED, MARK_UNUSED):
        query = sql.SQL(statement).format(table=sql.Identifier(model.table))
        connection.execute(query, {"model_id": model.model_id})


def _forget_some(connection: Connection, model: StoredModel, age: timedelta) -> bool:
    """Whether there may be more of them."""
    if not is_alone(connection, model.name):
        return False
    query = sql.SQL(FORGET_VECTORS).format(table=sql.Identifier(model.table))
    values = {"age": age, "model_id": model.model_id, "most": FORGET_ROWS}
    return connection.execute(query, values).rowcount == FORGET_ROWS
