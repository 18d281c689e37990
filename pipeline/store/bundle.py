"""A bundle's parts into the tables, and the tables' rows for a bundle.

Vectors come by COPY in its binary form, which numpy makes of all of them at once. A part is one transaction, and what
is stored already is not written again, so a load may be broken off and repeated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from psycopg import sql

from pipeline.records import BadRow, Content, Embedding, Failure, ImageRef, Product
from pipeline.store.vectors import KEEP_SHOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.records import RunSummary
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

# made after the vector table: the type of its vectors is named nowhere, wherever the extension lives
CREATE_VECTORS = """
CREATE TEMPORARY TABLE loaded_vectors ON COMMIT DROP AS
SELECT content_sha256, embedding FROM catvec_store.{table} WITH NO DATA
"""

CREATE_IMAGES = """
CREATE TEMPORARY TABLE loaded_images (
  product_id text, url text, at timestamptz, sha256 bytea, width integer, height integer, size_bytes bigint,
  mime text, etag text, last_modified text, stage text, code text, detail text, is_retryable boolean, kind text
) ON COMMIT DROP
"""

COPY_VECTORS = "COPY loaded_vectors (content_sha256, embedding) FROM STDIN (FORMAT BINARY)"

COPY_IMAGES = """
COPY loaded_images (product_id, url, at, sha256, width, height, size_bytes, mime, etag, last_modified, stage, code,
                    detail, is_retryable, kind)
FROM STDIN
"""

INSERT_VECTORS = """
INSERT INTO catvec_store.{table} (content_sha256, embedding, run_id)
SELECT content_sha256, embedding, %s
  FROM loaded_vectors
 ORDER BY content_sha256
    ON CONFLICT (content_sha256) DO NOTHING
"""

# What a part says that is news: what the database knows from a later look stays. A moment that has not come yet is of
# a clock that is ahead, and does not say what was later: then what the database knows stays too, and what it did not
# know is dated now, so that it is looked at again. Compared by that date it would be news at every load; for the same
# reason, the same bytes are none, also once the moment has come. When a bundle is loaded twice, hardly a row is left.
# A product of another catalog is not the bundle's, though it has the same id.
MATCH_IMAGES = """
CREATE TEMPORARY TABLE matched_images ON COMMIT DROP AS
SELECT i.image_id, n.*, least(n.at, now()) AS seen_at,
       n.sha256 IS NOT NULL
       AND (i.content_sha256 IS NULL
            OR i.checked_at IS NULL
            OR (i.checked_at < n.known_at
                AND (i.content_sha256, i.etag, i.last_modified) IS DISTINCT FROM (n.sha256, n.etag, n.last_modified)))
       AS is_news,
       n.code IS NOT NULL AND (f.image_id IS NULL OR (f.last_at < n.known_at AND f.code <> n.code)) AS is_new_failure
  FROM (SELECT *, CASE WHEN at <= now() THEN at ELSE '-infinity' END AS known_at FROM loaded_images) AS n
  JOIN catvec_store.images i ON i.product_id = n.product_id AND i.url = n.url
  JOIN catvec_store.products p ON p.product_id = i.product_id
  LEFT JOIN catvec_store.failures f ON f.image_id = i.image_id AND f.model_id = %s
 WHERE p.catalog = (SELECT catalog FROM catvec_store.runs WHERE run_id = %s)
   AND (n.sha256 IS NULL
        OR f.image_id IS NOT NULL
        OR i.content_sha256 IS NULL
        OR i.checked_at IS NULL
        OR i.checked_at < n.known_at)
"""

# in the order in which runs of other models write them: no deadlocks; and no others, which a lock would dirty
LOCK_IMAGES = """
SELECT FROM catvec_store.images
 WHERE image_id IN (SELECT image_id FROM matched_images WHERE is_news)
 ORDER BY image_id
   FOR UPDATE
"""

# The images outside the WITH are those before it: which had other bytes. Those that show a vector of this load are
# known by it, and need not be remembered.
UPDATE_IMAGES = """
WITH updated AS (
  UPDATE catvec_store.images AS i
     SET content_sha256 = n.sha256, size_bytes = n.size_bytes, mime = n.mime, etag = n.etag,
         last_modified = n.last_modified, checked_at = n.seen_at, fetched_at = n.seen_at,
         width = n.width, height = n.height,
         changed_at = CASE WHEN i.content_sha256 <> n.sha256 THEN now() ELSE i.changed_at END
    FROM matched_images n
   WHERE i.image_id = n.image_id
     AND n.is_news
     {keep_shown}
  RETURNING i.image_id, i.content_sha256)
SELECT u.image_id, b.content_sha256 IS NOT NULL
  FROM updated u
  JOIN catvec_store.images b ON b.image_id = u.image_id
  LEFT JOIN catvec_store.{table} e ON e.content_sha256 = u.content_sha256 AND e.run_id = %s
 WHERE b.content_sha256 <> u.content_sha256
    OR (b.content_sha256 IS NULL AND e.content_sha256 IS NULL)
"""

# reused bytes were not decoded; another image of the same bytes knows their size
COPY_SIZES = """
UPDATE catvec_store.images AS i
   SET width = known.width, height = known.height
  FROM matched_images n, catvec_store.images AS known
 WHERE i.image_id = n.image_id
   AND n.width IS NULL
   AND i.width IS NULL
   AND known.content_sha256 = i.content_sha256
   AND known.width IS NOT NULL
"""

DELETE_FAILURES = """
DELETE FROM catvec_store.failures f
 USING matched_images n, catvec_store.images i, catvec_store.{table} e
 WHERE f.model_id = %s
   AND f.image_id = n.image_id
   AND n.sha256 IS NOT NULL
   AND (n.is_news OR f.last_at <= n.known_at)
   AND i.image_id = n.image_id
   AND e.content_sha256 = i.content_sha256
RETURNING f.image_id
"""

# of an image that has a vector, only what was found later than that
INSERT_FAILURES = """
INSERT INTO catvec_store.failures AS f
       (image_id, model_id, run_id, stage, code, detail, is_retryable, etag, last_modified, kind, next_try_at,
        first_at, last_at)
SELECT n.image_id, %s, %s, n.stage, n.code, n.detail, n.is_retryable, n.etag, n.last_modified, n.kind,
       CASE n.kind WHEN 'transient' THEN n.seen_at + interval '1 hour' WHEN 'ours' THEN n.seen_at END,
       n.seen_at, n.seen_at
  FROM matched_images n
  JOIN catvec_store.images i ON i.image_id = n.image_id
  LEFT JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
 WHERE n.is_new_failure
   AND (e.content_sha256 IS NULL OR i.checked_at <= n.known_at)
 ORDER BY n.image_id
    ON CONFLICT (image_id, model_id) DO UPDATE
   SET run_id = excluded.run_id, stage = excluded.stage, code = excluded.code, detail = excluded.detail,
       is_retryable = excluded.is_retryable, etag = excluded.etag, last_modified = excluded.last_modified,
       kind = excluded.kind, attempts = f.attempts + 1, last_at = excluded.last_at, next_try_at = excluded.next_try_at
"""

COUNT_EMBEDDED = """
UPDATE catvec_store.runs
   SET embedded = embedded + %s, heartbeat_at = now()
 WHERE run_id = %s
"""

RECORD = """
UPDATE catvec_store.runs
   SET seen = %s, unchanged = %s, reused = %s, embedded = %s, failed = %s
 WHERE run_id = %s
"""

# Vectors of this load (by its run_id) were not there before, so whatever shows one is news; one image for each of
# them counts as embedded, as in a run. Of the others, only the load knows which showed nothing or something else.
COUNT_STATES = """
SELECT CASE WHEN f.image_id IS NOT NULL THEN 'failed'
            WHEN e.content_sha256 IS NULL THEN 'pending'
            WHEN e.run_id = %s THEN 'new'
            WHEN i.image_id IN (SELECT unnest(%s::bigint[])) THEN 'reused'
            ELSE 'unchanged'
       END,
       f.code, count(*), count(DISTINCT e.content_sha256)
  FROM catvec_store.images i
  JOIN catvec_store.products p ON p.product_id = i.product_id
  LEFT JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
  LEFT JOIN catvec_store.failures f ON f.image_id = i.image_id AND f.model_id = %s
 WHERE p.catalog = %s
   AND i.active
   AND i.missing_since IS NULL
 GROUP BY 1, 2
 ORDER BY 3 DESC, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What one part brought: vectors that were not there; the ids of the images of `changed` bytes, and of those that
    `came` to bytes or lost a failure, but for some that show a vector of this load."""

    vectors: int
    changed: frozenset[int]
    came: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """The images of a catalog under a model, each once: with a vector as before the load, with an older one that they
    had not, with one of the load, with neither vector nor failure, and failed by code."""

    unchanged: int = 0
    reused: int = 0
    embedded: int = 0
    pending: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return self.unchanged + self.reused + self.embedded + self.pending + sum(self.failed.values())


def count_states(
    connection: Connection, model: StoredModel, catalog: str, *, run_id: int, came: Iterable[int] = ()
) -> States:
    """What the images are, and by what of the load `run_id`; `came` are the ids that its parts returned."""
    query = sql.SQL(COUNT_STATES).format(table=sql.Identifier(model.table))
    rows = connection.execute(query, (run_id, list(came), model.model_id, catalog)).fetchall()
    counts = {state: (images, contents) for state, _, images, contents in rows}
    new, embedded = counts.get("new", (0, 0))
    return States(
        unchanged=counts.get("unchanged", (0, 0))[0],
        reused=counts.get("reused", (0, 0))[0] + new - embedded,
        embedded=embedded,
        pending=counts.get("pending", (0, 0))[0],
        failed={code: images for state, code, images, _ in rows if state == "failed"},
    )


def write_part(
    connection: Connection,
    model: StoredModel,
    run_id: int,
    *,
    images: Iterable[tuple[Any, ...]],
    hashes: Sequence[bytes],
    vectors: NDArray[np.float32],
    shown: StoredModel | None,
) -> Loaded:
    """Write what a part holds, in the caller's transaction; `images` have the columns of COPY_IMAGES.

    Images of products that belong to another catalog than the run's stay as they are.
    `hashes` [N] belong to `vectors` [N, D], finite and of unit length. `shown` is the model that apps read, if
    another.
    """
    table = sql.Identifier(model.table)
    written = _write_vectors(connection, model, run_id, hashes, vectors) if hashes else 0
    connection.execute(CREATE_IMAGES)
    with connection.cursor().copy(COPY_IMAGES) as copy:
        for image in images:
            copy.write_row(image)
    # temporary tables have no statistics until told, and the joins would be planned for ten rows
    connection.execute("ANALYZE loaded_images (product_id, url)")
    connection.execute(MATCH_IMAGES, (model.model_id, run_id))
    connection.execute("ANALYZE matched_images (image_id)")
    connection.execute(LOCK_IMAGES)
    keep_shown = sql.SQL(KEEP_SHOWN).format(shown=sql.Identifier(shown.table)) if shown else sql.SQL("")
    update = sql.SQL(UPDATE_IMAGES).format(keep_shown=keep_shown, table=table)
    updated = connection.execute(update, (run_id,)).fetchall()
    connection.execute(COPY_SIZES)
    mended = connection.execute(sql.SQL(DELETE_FAILURES).format(table=table), (model.model_id,)).fetchall()
    connection.execute(sql.SQL(INSERT_FAILURES).format(table=table), (model.model_id, run_id))
    connection.execute(COUNT_EMBEDDED, (written, run_id))
    return Loaded(
        vectors=written,
        changed=frozenset(image_id for image_id, is_changed in updated if is_changed),
        came=frozenset(row[0] for row in (*updated, *mended)),
    )


def _write_vectors(
    connection: Connection, model: StoredModel, run_id: int, hashes: Sequence[bytes], vectors: NDArray[np.float32]
) -> int:
    table = sql.Identifier(model.table)
    connection.execute(sql.SQL(CREATE_VECTORS).format(table=table))
    with connection.cursor().copy(COPY_VECTORS) as copy:
        copy.write(as_binary_copy(hashes, vectors, storage=model.storage))
    return connection.execute(sql.SQL(INSERT_VECTORS).format(table=table), (run_id,)).rowcount


def as_binary_copy(hashes: Sequence[bytes], vectors: NDArray[np.float32], *, storage: str) -> bytes:
    """Rows (bytea, vector) as COPY reads them in its binary form.

    Each row: 2 fields; the length of each before it; a vector is its dimensions, 2 bytes of nothing, and its numbers,
    all in network order (PostgreSQL, COPY, File Formats; pgvector, halfvec_recv and vector_recv).
    """
    count, dims = vectors.shape
    number = ">f4" if storage == "vector" else ">f2"
    row = np.dtype(
        [
            *(("fields", ">i2"), ("hash_bytes", ">i4"), ("hash", "V32"), ("vector_bytes", ">i4")),
            *(("dims", ">i2"), ("unused", ">i2"), ("vector", number, (dims,))),
        ]
    )
    rows = np.zeros(count, dtype=row)
    rows["fields"], rows["hash_bytes"], rows["dims"] = 2, 32, dims
    rows["vector_bytes"] = 4 + dims * np.dtype(number).itemsize
    rows["hash"] = np.frombuffer(b"".join(hashes), dtype="V32")
    rows["vector"] = vectors
    head = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
    return head + rows.tobytes() + struct.pack("!h", -1)


def record_loaded(connection: Connection, summary: RunSummary) -> None:
    """The counters of a load, in the run that it was."""
    counts = (summary.seen, summary.unchanged, summary.reused, summary.embedded, summary.failed)
    connection.execute(RECORD, (*counts, summary.run_id))


# ---- for a bundle, and what of one is refused

READ_PRODUCTS = """
SELECT p.product_id, p.title, p.category, p.brand, p.price, p.attrs,
       coalesce(array_agg(i.url ORDER BY i.position) FILTER (WHERE i.image_id IS NOT NULL), '{}')
  FROM catvec_store.products p
  LEFT JOIN catvec_store.images i ON i.product_id = p.product_id AND i.active AND i.missing_since IS NULL
 WHERE p.catalog = %s
   AND p.active
   AND p.missing_since IS NULL
 GROUP BY p.product_id
 ORDER BY p.product_id
"""

LIST_CATALOGS = "SELECT DISTINCT catalog FROM catvec_store.products ORDER BY catalog"

READ_BAD_ROWS = """
SELECT row_number, product_id, url, code, detail
  FROM catvec_store.bad_rows
 WHERE catalog = %s
 ORDER BY row_number
"""

READ_IMAGES = """
SELECT i.image_id, i.product_id, i.url, e.embedding, i.content_sha256, i.width, i.height, i.size_bytes, i.mime,
       i.etag, i.last_modified, coalesce(i.fetched_at, i.checked_at, e.embedded_at),
       f.stage, f.code, f.detail, f.is_retryable, f.etag, f.last_modified, f.last_at
  FROM catvec_store.images i
  JOIN catvec_store.products p ON p.product_id = i.product_id
  LEFT JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
  LEFT JOIN catvec_store.failures f ON f.image_id = i.image_id AND f.model_id = %s
 WHERE p.catalog = %s
   AND i.active
   AND i.missing_since IS NULL
   AND p.active
   AND p.missing_since IS NULL
   AND (e.content_sha256 IS NOT NULL OR f.image_id IS NOT NULL)
 ORDER BY i.image_id
"""

REFUSED_PRODUCTS = """
SELECT product_id
  FROM catvec_store.bad_rows
 WHERE catalog = %s
   AND code = 'other_catalog'
"""

FETCH_ROWS = 1_000
"""rows of one round trip, and in memory at once: 4 MB of vectors of 1,024 numbers"""


def stream(connection: Connection, query: sql.Composed, values: Sequence[object]) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, some at a time; inside a transaction of the caller's."""
    with connection.cursor(name="catvec_export") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(query, values, binary=True)
        yield from cursor


def read_catalog(connection: Connection, catalog: str) -> Iterator[Product | BadRow]:
    """What a catalog states that was read into the database, and which of its rows could not be used."""
    products = stream(connection, sql.Composed([sql.SQL(READ_PRODUCTS)]), (catalog,))
    for number, row in enumerate(products, start=1):
        product_id, title, category, brand, price, attrs, images = row
        yield Product(
            row=number,
            product_id=product_id,
            images=tuple(images),
            title=title,
            category=category,
            brand=brand,
            price=price,
            attrs=attrs,
        )
    for row, product_id, url, code, detail in connection.execute(READ_BAD_ROWS, (catalog,)).fetchall():
        yield BadRow(row=row, product_id=product_id, url=url, code=code, detail=detail)


def find_refused(connection: Connection, catalog: str) -> set[str]:
    """The products of the catalog, as it was read last, that belong to another one."""
    return {row[0] for row in connection.execute(REFUSED_PRODUCTS, (catalog,)).fetchall()}


def list_catalogs(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute(LIST_CATALOGS).fetchall()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedImage:
    """An image with its vector, with the failure that stands for it, or with both: it could not be had again later.
    With each, when that was found."""

    found: tuple[Embedding, datetime] | None
    failed: tuple[Failure, datetime] | None


def read_images(connection: Connection, model: StoredModel, catalog: str) -> Iterator[ExportedImage]:
    """The images of a catalog that have a vector under the model, or a failure, in the order of their ids."""
    query = sql.SQL(READ_IMAGES).format(table=sql.Identifier(model.table))
    for row in stream(connection, query, (model.model_id, catalog)):
        image_id, product_id, url, *rest = row
        image = ImageRef(image_id=image_id, product_id=product_id, url=url)
        yield ExportedImage(found=_found(image, *rest[:9]), failed=_failed(image, *rest[9:]))


def _found(image: ImageRef, vector: Any, sha256: bytes, *known: Any) -> tuple[Embedding, datetime] | None:
    if vector is None:
        return None
    width, height, size_bytes, mime, etag, last_modified, at = known
    content = Content(
        image=image, sha256=sha256, size_bytes=size_bytes, mime=mime, etag=etag, last_modified=last_modified
    )
    numbers = vector.to_numpy().astype(np.float32)
    return Embedding(content=content, width=width, height=height, vector=numbers), at


def _failed(image: ImageRef, stage: str | None, *known: Any) -> tuple[Failure, datetime] | None:
    if stage is None:
        return None
    code, detail, is_retryable, etag, last_modified, at = known
    failure = Failure(
        image=image,
        stage=stage,
        code=code,
        detail=detail,
        is_retryable=is_retryable,
        etag=etag,
        last_modified=last_modified,
    )
    return failure, at
