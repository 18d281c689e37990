"""Tables like those that a run writes, in a schema of their own, to measure writing where nothing can be harmed.

What is executed are the statements of `vectors`, with the schema's name exchanged. The schema is dropped in the end;
what a killed process left is dropped by the next one.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.errors import LockedError, StoreError
from pipeline.store.connect import Session, require_vector, translate, translated
from pipeline.store.models import DEFAULT_STORAGE
from pipeline.store.pooler import holding
from pipeline.store.vectors import (
    BY_KEY,
    COUNT,
    DELETE_FAILURES,
    INSERT_VECTORS,
    UPDATE_IMAGES,
    write_contents,
    write_vectors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.records import Outcomes
    from pipeline.store.connect import Connection

SCHEMA = "catvec_bench"
ROWS = 20_000
"""images to write to, in turn: the same few again and again would grow chains of dead rows that no run has"""

OURS = "catvec bench measures here, and drops it"
"""by which a schema that a killed bench left is told from somebody else's"""

FIND_OTHERS = """
SELECT FROM pg_namespace
 WHERE nspname = %s
   AND obj_description(oid, 'pg_namespace') IS DISTINCT FROM %s
"""
TAKE_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('catvec:bench:' || current_database(), 0))"
DROP = f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"

# the columns, indexes and settings that a write has to do with, as in migrations/sql
CREATE = f"""
CREATE SCHEMA {SCHEMA};
COMMENT ON SCHEMA {SCHEMA} IS '{OURS}';
CREATE TABLE {SCHEMA}.images (
  image_id       bigint PRIMARY KEY,
  product_id     text NOT NULL,
  url            text NOT NULL,
  content_sha256 bytea CHECK (octet_length(content_sha256) = 32),
  size_bytes     bigint,
  mime           text,
  width          integer,
  height         integer,
  etag           text,
  last_modified  text,
  checked_at     timestamptz,
  fetched_at     timestamptz,
  changed_at     timestamptz
) WITH (fillfactor = 45);
CREATE UNIQUE INDEX images_product_url ON {SCHEMA}.images (product_id, hashtextextended(url, 0));
CREATE INDEX images_content ON {SCHEMA}.images (content_sha256);
CREATE TABLE {SCHEMA}.failures (
  image_id bigint NOT NULL,
  model_id smallint NOT NULL,
  PRIMARY KEY (image_id, model_id)
);
CREATE TABLE {SCHEMA}.runs (
  run_id       bigint PRIMARY KEY,
  embedded     bigint NOT NULL DEFAULT 0,
  reused       bigint NOT NULL DEFAULT 0,
  unchanged    bigint NOT NULL DEFAULT 0,
  failed       bigint NOT NULL DEFAULT 0,
  heartbeat_at timestamptz,
  last_write   uuid
) WITH (fillfactor = 50);
INSERT INTO {SCHEMA}.runs (run_id) VALUES (1);
INSERT INTO {SCHEMA}.images (image_id, product_id, url)
SELECT n, 'product ' || n, 'https://shop.example/pictures/' || n || '.jpg'
  FROM generate_series(1, {ROWS}) AS n;
"""

CREATE_VECTORS = f"""
CREATE TABLE {SCHEMA}.vectors (
  content_sha256 bytea PRIMARY KEY CHECK (octet_length(content_sha256) = 32),
  embedding      {{storage}} NOT NULL CHECK ({{norm}}(embedding) BETWEEN 0.99 AND 1.01),
  run_id         bigint NOT NULL,
  embedded_at    timestamptz NOT NULL DEFAULT now()
)
"""

FIND_KNOWN = f"SELECT content_sha256 FROM {SCHEMA}.vectors WHERE content_sha256 = ANY (%(hashes)s)"


class Scratch:
    """Writes embeddings as a run does, each in one transaction; image ids are 1 to `ROWS`.

    `write` and `find_known` may be called by two threads, one each.
    """

    def __init__(self, writer: Session, lookup: Session, storage: str) -> None:
        self._writer = writer
        self._lookup = lookup
        self._storage = storage
        self._insert = _moved(INSERT_VECTORS).format(table=sql.Identifier("vectors"))
        self._update = sql.Composed([_moved(UPDATE_IMAGES)])
        self._delete_failures, self._count = _moved(DELETE_FAILURES), _moved(COUNT)

    def write(self, outcomes: Outcomes) -> Outcomes:
        """Commit what was embedded; of the rest nothing is kept. Raises StoreError."""
        if outcomes.embedded:
            self._writer.run(partial(self._write, outcomes))
        return outcomes

    def find_known(self, hashes: Sequence[bytes]) -> set[bytes]:
        """Which of the SHA-256 sums were written; asked for as a run does."""
        return {row[0] for row in self._lookup.rows(FIND_KNOWN, {"hashes": list(hashes)})}

    def _write(self, outcomes: Outcomes, connection: Connection) -> None:
        ids = [row.image.image_id for row in outcomes.embedded]
        with connection.cursor() as cursor:
            cursor.execute(BY_KEY)
            write_vectors(cursor, self._insert, self._storage, 1, outcomes.embedded)
            write_contents(cursor, outcomes, self._update)
            cursor.execute(self._delete_failures, (1, ids))
            token = uuid.uuid4()
            cursor.execute(self._count, (len(ids), 0, 0, 0, token, 1, token))


def _moved(statement: str) -> sql.SQL:
    return sql.SQL(statement.replace("catvec_store.", f"{SCHEMA}."))


@contextmanager
def scratch_tables(url: str, *, dims: int, storage: str | None = None) -> Iterator[Scratch]:
    """A schema with empty tables for vectors of so many dimensions, dropped afterwards.

    Raises StoreError, also when this user may not create a schema; LockedError when somebody else measures.
    """
    storage = storage or DEFAULT_STORAGE
    with translated(), Session(url, on_connect=holding(url, _take_lock)) as writer, Session(url) as lookup:
        writer.run(partial(_create, dims=dims, storage=storage))
        try:
            yield Scratch(writer, lookup, storage)
        finally:
            writer.run(lambda connection: connection.execute(DROP))


def _take_lock(connection: Connection) -> None:
    if connection.execute(TAKE_LOCK).fetchone() != (True,):
        raise LockedError(
            f"another catvec bench measures in database {connection.info.dbname!r}", hint="wait until it is done"
        )


def _create(connection: Connection, *, dims: int, storage: str) -> None:
    extension = require_vector(connection)
    kind = sql.SQL("{}({})").format(sql.Identifier(extension, storage), sql.Literal(dims))
    norm = sql.Identifier(extension, "vector_norm" if storage == "vector" else "l2_norm")
    if connection.execute(FIND_OTHERS, (SCHEMA, OURS)).fetchone() is not None:
        raise StoreError(
            f"there is a schema {SCHEMA} in database {connection.info.dbname!r} that catvec bench has not made",
            hint="let --db be another database of the same server, or rename the schema",
        )
    try:
        connection.execute(DROP)
        connection.execute(CREATE)
        connection.execute(sql.SQL(CREATE_VECTORS).format(storage=kind, norm=norm))
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreError(
            f"{translate(error)}: measuring the database takes a schema of its own, {SCHEMA}, for a moment",
            hint="connect as the owner of catvec's tables; or let --db be another database of the same server",
        ) from error
