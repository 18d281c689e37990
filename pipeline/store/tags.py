"""Tags of products: which are missing or out of date, the vectors to judge them by, and writing them.

Tags of an edition of an attribute carry the digest of the images that they were judged by, so what is to be done is
what does not agree with the images of now: no other record exists that a crash could part from the tags.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from psycopg import sql
from psycopg.rows import class_row

from pipeline.errors import LockedError
from pipeline.means import unit_means
from pipeline.store.models import choose_model
from pipeline.store.wire import numbers_of, raw_cursor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

DIGEST_BYTES = 8
"""of the SHA-256; enough to notice that a product shows other images"""

TAKE_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('catvec:tags:' || current_database() || ':' || %s, 0))"

SELECT_EDITIONS = """
SELECT attribute_id, attribute, labels, question, threshold, temperature, is_current
  FROM catvec_store.tag_attributes
 WHERE model_id = %s
 ORDER BY attribute, is_current
"""

# the public view, which readers may look at, too
LIST_TAGGED = """
SELECT model, array_agg(attribute ORDER BY attribute)
  FROM catvec.tag_attributes
 GROUP BY model
"""

INSERT_EDITION = """
INSERT INTO catvec_store.tag_attributes (model_id, attribute, labels, question, threshold, temperature)
VALUES (%(model_id)s, %(attribute)s, %(labels)s, %(question)s, %(threshold)s, %(temperature)s)
RETURNING attribute_id
"""

DELETE_EDITIONS = """
DELETE FROM catvec_store.tag_attributes
 WHERE model_id = %s
   AND attribute = %s
   AND attribute_id <> ALL (%s)
"""

MAKE_CURRENT = "UPDATE catvec_store.tag_attributes SET is_current = true WHERE attribute_id = %s AND NOT is_current"

# the products that can be judged, and the digest of their images with vectors
CURRENT = """
SELECT v.product_id,
       substr(sha256(string_agg(v.content_sha256, ''::bytea ORDER BY v.content_sha256)), 1, {digest}) AS contents
  FROM catvec.{view} v
  JOIN catvec_store.products p ON p.product_id = v.product_id
 WHERE p.active
 GROUP BY v.product_id
"""

STAGE = "CREATE TEMPORARY TABLE current_products ON COMMIT DROP AS" + CURRENT

FIND_WORK = """
SELECT c.product_id, array_agg(wanted.attribute_id ORDER BY wanted.attribute_id)
  FROM current_products c
 CROSS JOIN unnest(%(editions)s::integer[]) AS wanted (attribute_id)
  LEFT JOIN (SELECT DISTINCT product_id, attribute_id, contents
               FROM catvec_store.product_tags
              WHERE attribute_id = ANY (%(editions)s)) t
    ON t.product_id = c.product_id AND t.attribute_id = wanted.attribute_id AND t.contents = c.contents
 WHERE t.product_id IS NULL
 GROUP BY c.product_id
 ORDER BY c.product_id
"""

# of all attributes of the model: what has left is no longer anything
DELETE_GONE = """
WITH gone AS (
  DELETE FROM catvec_store.product_tags t
   USING catvec_store.tag_attributes a
   WHERE a.attribute_id = t.attribute_id
     AND a.model_id = %s
     AND NOT EXISTS (SELECT FROM current_products c WHERE c.product_id = t.product_id)
  RETURNING t.product_id
)
SELECT count(DISTINCT product_id) FROM gone
"""

# of what others were asked for, which this does not fill again
COUNT_BEHIND = """
SELECT a.attribute, count(*)
  FROM catvec_store.tag_attributes a
 CROSS JOIN current_products c
 WHERE a.model_id = %(model_id)s
   AND a.is_current
   AND a.attribute NOT IN (SELECT attribute FROM catvec_store.tag_attributes WHERE attribute_id = ANY (%(editions)s))
   AND NOT EXISTS (SELECT
                     FROM catvec_store.product_tags t
                    WHERE t.attribute_id = a.attribute_id AND t.product_id = c.product_id AND t.contents = c.contents)
 GROUP BY a.attribute
 ORDER BY a.attribute
"""

# no product is deleted before this transaction ends, and those that are gone already are not judged
KEEP_PRODUCTS = """
SELECT product_id
  FROM catvec_store.products
 WHERE product_id = ANY (%s)
 ORDER BY product_id
   FOR KEY SHARE
"""

READ_VECTORS = """
SELECT v.product_id, v.content_sha256, v.embedding
  FROM catvec.{view} v
 WHERE v.product_id = ANY (%s)
 ORDER BY v.product_id, v.content_sha256
"""

READ_URLS = """
SELECT v.product_id, array_agg(v.url ORDER BY v.url)
  FROM catvec.{view} v
 WHERE v.product_id = ANY (%s)
 GROUP BY v.product_id
"""

DELETE_TAGS = """
DELETE FROM catvec_store.product_tags
 WHERE product_id = ANY (%(products)s)
   AND attribute_id = ANY (%(editions)s)
"""

COPY_TAGS = """
COPY catvec_store.product_tags (product_id, attribute_id, label, probability, contents) FROM STDIN (FORMAT BINARY)
"""

# category and brand are columns, everything else an attribute; of lists nobody knows which element is meant
READ_TRUTH = """
SELECT product_id,
       CASE WHEN jsonb_typeof(given) IN ('string', 'number', 'boolean') THEN given #>> '{}' END
  FROM (SELECT p.product_id,
               CASE %(attribute)s
                 WHEN 'category' THEN to_jsonb(p.category)
                 WHEN 'brand' THEN to_jsonb(p.brand)
                 ELSE p.attrs -> %(attribute)s
               END AS given
          FROM catvec_store.products p
         WHERE p.active) labelled
 WHERE given IS NOT NULL
   AND given NOT IN ('null', '[]', '{}')
 ORDER BY product_id
"""

COUNT_TAGS = """
SELECT a.attribute, t.label, count(*)
  FROM catvec_store.product_tags t
  JOIN catvec_store.tag_attributes a ON a.attribute_id = t.attribute_id
 WHERE a.attribute_id = ANY (%s)
 GROUP BY a.attribute, t.label
 ORDER BY a.attribute, count(*) DESC, t.label
"""

READ_TAGS = """
SELECT product_id, attribute, label
  FROM catvec.product_tags
 WHERE model = %s
 ORDER BY product_id, attribute, label
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What decides the tags of an attribute under a model; `question` is a digest of labels, words and templates.

    `temperature` is None for the model's own.
    """

    attribute: str
    labels: tuple[str, ...]
    question: str
    threshold: float
    temperature: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edition:
    """A row of catvec_store.tag_attributes: the current one of an attribute, or one that is being filled."""

    attribute_id: int
    attribute: str
    labels: list[str]
    question: str
    threshold: float
    temperature: float | None
    is_current: bool

    def answers(self, question: Question) -> bool:
        """Whether its tags are answers to exactly this."""
        own = (self.attribute, tuple(self.labels), self.question, self.threshold, self.temperature)
        asked = (question.attribute, question.labels, question.question, question.threshold, question.temperature)
        return own == asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be judged: product ids in order, each with the editions that lack it.

    `products` can be judged at all; `removed` have lost their tags just now. `behind` are the model's attributes that
    are not asked for, with how many products each lacks, or judged by other images than those of now.
    """

    products: int
    removed: int
    behind: dict[str, int]
    pieces: list[tuple[str, list[int]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductVectors:
    """The unit vectors float32 [P, D] of products, and the digests of the images that they come from."""

    product_ids: list[str]
    contents: list[bytes]
    vectors: NDArray[np.float32]


def take_lock(connection: Connection, model: StoredModel) -> None:
    """Hold the lock on this model's tags until the connection ends.

    Raises LockedError, or ModelError when the model was dropped since it was chosen.
    """
    if connection.execute(TAKE_LOCK, (model.name,)).fetchone() != (True,):
        raise LockedError(
            f"products are being tagged under model {model.name!r} already", hint="wait until that is done"
        )
    choose_model(connection, model.name)


def list_editions(connection: Connection, model: StoredModel) -> list[Edition]:
    with connection.cursor(row_factory=class_row(Edition)) as cursor:
        return cursor.execute(SELECT_EDITIONS, (model.model_id,)).fetchall()


def list_tagged(connection: Connection) -> dict[str, list[str]]:
    """The attributes that products are tagged with, by the name of the model."""
    return dict(connection.execute(LIST_TAGGED).fetchall())


def open_edition(connection: Connection, model: StoredModel, question: Question) -> int:
    """The id of the edition that answers the question, current or not; in the caller's transaction.

    One that a broken off command left for another question goes.
    """
    editions = [edition for edition in list_editions(connection, model) if edition.attribute == question.attribute]
    found = next((edition for edition in editions if edition.answers(question)), None)
    kept = [edition.attribute_id for edition in editions if edition.is_current or edition is found]
    connection.execute(DELETE_EDITIONS, (model.model_id, question.attribute, kept))
    if found is not None:
        return found.attribute_id
    values = {
        "model_id": model.model_id,
        "attribute": question.attribute,
        "labels": list(question.labels),
        "question": question.question,
        "threshold": question.threshold,
        "temperature": question.temperature,
    }
    [[attribute_id]] = connection.execute(INSERT_EDITION, values).fetchall()
    return int(attribute_id)


def make_current(connection: Connection, model: StoredModel, editions: dict[str, int]) -> None:
    """Let apps read these editions, by attribute, and forget those before them; in the caller's transaction."""
    for attribute, attribute_id in editions.items():
        connection.execute(DELETE_EDITIONS, (model.model_id, attribute, [attribute_id]))
        connection.execute(MAKE_CURRENT, (attribute_id,))


def drop_attribute(connection: Connection, model: StoredModel, attribute: str) -> bool:
    """Forget an attribute and its tags; whether there was one."""
    return connection.execute(DELETE_EDITIONS, (model.model_id, attribute, [])).rowcount > 0


def find_work(connection: Connection, model: StoredModel, editions: Sequence[int]) -> Work:
    """What these editions lack; what can no longer be judged loses its tags. In the caller's transaction."""
    stage = sql.SQL(STAGE).format(view=sql.Identifier(model.view), digest=sql.Literal(DIGEST_BYTES))
    products = connection.execute(stage).rowcount
    # temporary tables have no statistics until told
    connection.execute("ANALYZE current_products (product_id)")
    [[removed]] = connection.execute(DELETE_GONE, (model.model_id,)).fetchall()
    values = {"model_id": model.model_id, "editions": list(editions)}
    pieces = connection.execute(FIND_WORK, values).fetchall()
    behind = dict(connection.execute(COUNT_BEHIND, values).fetchall())
    return Work(products=products, removed=removed, behind=behind, pieces=pieces)


def read_vectors(connection: Connection, model: StoredModel, product_ids: Sequence[str]) -> ProductVectors:
    """The vectors of these products, as far as they have one, in the order of their ids.

    Each is the mean of the unit vectors of all its images, made a unit vector again. All images, and not the first:
    which one comes first is the shop's choice of the day, and one that shows the back or a detail is outvoted.
    Images that cancel each other out count as the first of them.
    """
    query = sql.SQL(READ_VECTORS).format(view=sql.Identifier(model.view))
    rows = raw_cursor(connection).execute(query, (list(product_ids),), binary=True).fetchall()
    # by Python's order of ids as the database gave them: equal ids stand together
    groups = [(product_id, [row[1] for row in group]) for product_id, group in groupby(rows, key=lambda row: row[0])]
    images = numbers_of([row[2] for row in rows], model.dims)
    return ProductVectors(
        product_ids=[product_id for product_id, _ in groups],
        contents=[hashlib.sha256(b"".join(hashes)).digest()[:DIGEST_BYTES] for _, hashes in groups],
        vectors=unit_means(images, np.cumsum([0, *(len(hashes) for _, hashes in groups)])[:-1]),
    )


def read_urls(connection: Connection, model: StoredModel, product_ids: Sequence[str]) -> dict[str, list[str]]:
    """Where the images of these products with vectors stand, as far as they have one."""
    query = sql.SQL(READ_URLS).format(view=sql.Identifier(model.view))
    return dict(connection.execute(query, (list(product_ids),)).fetchall())


def keep_products(connection: Connection, product_ids: Sequence[str]) -> list[str]:
    """Those of the products that still exist, which they will until the caller's transaction ends."""
    return [product_id for (product_id,) in connection.execute(KEEP_PRODUCTS, (list(product_ids),)).fetchall()]


def write_tags(
    connection: Connection,
    judged: Mapping[tuple[int, ...], Sequence[str]],
    tags: Iterable[tuple[str, int, str, float, bytes]],
) -> None:
    """Replace the tags of the products that were judged, by the editions in which; in the caller's transaction.

    Tags are product id, edition, label, probability and the digest of `ProductVectors.contents`.
    """
    for editions, products in judged.items():
        connection.execute(DELETE_TAGS, {"products": products, "editions": list(editions)})
    with connection.cursor().copy(COPY_TAGS) as copy:
        copy.set_types(["text", "int4", "text", "float4", "bytea"])
        for tag in tags:
            copy.write_row(tag)


def read_truth(connection: Connection, attribute: str) -> list[tuple[str, str | None]]:
    """What the catalog says: the ids of products that are for sale, and their values of an attribute, in order.

    None for what is a list, or an object, and no single value.
    """
    return connection.execute(READ_TRUTH, {"attribute": attribute}).fetchall()


def read_tags(connection: Connection, model: StoredModel) -> dict[str, dict[str, list[str]]]:
    """The labels that products have under a model, by product id and attribute, as apps see them."""
    tags: dict[str, dict[str, list[str]]] = {}
    for product_id, attribute, label in connection.execute(READ_TAGS, (model.name,)).fetchall():
        tags.setdefault(product_id, {}).setdefault(attribute, []).append(label)
    return tags


def refresh_statistics(connection: Connection) -> None:
    """Let the planner see how many products have which label: it chooses the way of a filter by that."""
    connection.execute("ANALYZE catvec_store.product_tags")


def count_tags(connection: Connection, editions: Sequence[int]) -> dict[str, dict[str, int]]:
    """How many products have each label, by attribute; most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    for attribute, label, products in connection.execute(COUNT_TAGS, (list(editions),)).fetchall():
        counts.setdefault(attribute, {})[label] = products
    return counts
