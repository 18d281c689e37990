"""Trying other m and ef_construction: indexes on a copy of some of the vectors, in a table that only we see."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.store.build import VIEWED, index_expression, session_settings
from pipeline.store.connect import require_vector
from pipeline.store.recall import K, Measured, recall, summarise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvector import HalfVector

    from pipeline.progress import Progress
    from pipeline.store.connect import Connection
    from pipeline.store.index import IndexSettings
    from pipeline.store.models import StoredModel

MEMORY_MB = 512
"""for the graph of a copy: 300,000 rows of 512 dimensions at m = 16"""

COPY = """
CREATE TEMP TABLE catvec_candidates AS
SELECT e.content_sha256, e.embedding
  FROM catvec_store.{table} e
 ORDER BY e.content_sha256
 LIMIT {rows}
"""

SAMPLE = """
SELECT content_sha256, embedding::halfvec
  FROM pg_temp.catvec_candidates
 ORDER BY content_sha256
 LIMIT %s
"""

CREATE = """
CREATE INDEX catvec_candidate
    ON pg_temp.catvec_candidates
 USING hnsw ({expression})
  WITH (m = {m}, ef_construction = {ef_construction})
"""

EXACT = """
SELECT 1 - ({embedding} <=> %(vector)s) AS similarity
  FROM pg_temp.catvec_candidates e
 WHERE e.content_sha256 <> %(itself)s
 ORDER BY ({embedding} <=> %(vector)s) + 0
 LIMIT {k}
"""

# as catvec.nearest_images_query in migrations/sql, on the copy
SEARCH = {
    "hnsw": """
SELECT 1 - (e.embedding <=> %(vector)s)
  FROM (SELECT e.content_sha256, {embedding} AS embedding
          FROM pg_temp.catvec_candidates e
         ORDER BY {embedding} <=> %(vector)s
         LIMIT {k} + 1) e
 WHERE e.content_sha256 <> %(itself)s
""",
    "binary": """
SELECT 1 - (e.embedding <=> %(vector)s)
  FROM (SELECT e.content_sha256, {embedding} AS embedding
          FROM pg_temp.catvec_candidates e
         ORDER BY binary_quantize({embedding}::halfvec)::bit({dims}) <~> binary_quantize(%(vector)s)::bit({dims})
         LIMIT greatest(10 * (4 * {k} + 20), {ef_search})) e
 WHERE e.content_sha256 <> %(itself)s
 ORDER BY e.embedding <=> %(vector)s
 LIMIT {k}
""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An index as it could be, measured by itself, without the functions: building, size, and searching."""

    m: int
    ef_construction: int
    rows: int
    build_s: float
    size_bytes: int
    curve: tuple[Measured, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """A vector of the copy, its key, and the similarities of the truly nearest others."""

    vector: HalfVector
    itself: bytes
    similarities: tuple[float, ...]


def measure_candidates(
    connection: Connection,
    model: StoredModel,
    settings: Sequence[IndexSettings],
    *,
    rows: int,
    queries: int,
    ef_search: Sequence[int],
    progress: Progress,
) -> list[Candidate]:
    """Build each index on a copy of `rows` vectors with one process, and search with some of them."""
    with _copied(connection, model, rows):
        progress.begin("searching the copy exactly")
        asked = _ask(connection, model, queries)
        candidates = []
        progress.begin("trying other indexes")
        for number, wanted in enumerate(settings):
            progress.step(number, len(settings), unit="indexes")
            candidates.append(_try(connection, model, wanted, asked, ef_search))
    return candidates


@contextmanager
def _copied(connection: Connection, model: StoredModel, rows: int) -> Iterator[None]:
    path = f"{sql.Identifier(require_vector(connection)).as_string(connection)}, pg_catalog"
    settings = {"search_path": path, "maintenance_work_mem": f"{MEMORY_MB}MB"}
    with session_settings(connection, settings):
        copy = sql.SQL(COPY).format(table=sql.Identifier(model.table), rows=sql.Literal(rows))
        connection.execute(copy)
        try:
            connection.execute("ANALYZE pg_temp.catvec_candidates")
            yield
        finally:
            if not connection.closed:
                connection.execute("DROP TABLE pg_temp.catvec_candidates")


def _ask(connection: Connection, model: StoredModel, queries: int) -> list[_Question]:
    exact = sql.SQL(EXACT).format(embedding=_viewed(model), k=sql.Literal(K))
    questions = []
    for itself, vector in connection.execute(SAMPLE, (queries,)).fetchall():
        rows = connection.execute(exact, {"vector": vector, "itself": itself}).fetchall()
        questions.append(_Question(vector=vector, itself=itself, similarities=tuple(row[0] for row in rows)))
    return questions


def _try(
    connection: Connection,
    model: StoredModel,
    wanted: IndexSettings,
    asked: Sequence[_Question],
    ef_search: Sequence[int],
) -> Candidate:
    create = sql.SQL(CREATE).format(
        expression=index_expression(connection, model, wanted.kind),
        m=sql.Literal(wanted.m),
        ef_construction=sql.Literal(wanted.ef_construction),
    )
    started = time.perf_counter()
    connection.execute(create)
    build_s = time.perf_counter() - started
    curve = tuple(_measure(connection, model, wanted.kind, asked, ef) for ef in ef_search)
    [size_bytes, rows] = connection.execute(
        "SELECT pg_relation_size('pg_temp.catvec_candidate'), (SELECT count(*) FROM pg_temp.catvec_candidates)"
    ).fetchone() or (0, 0)
    connection.execute("DROP INDEX pg_temp.catvec_candidate")
    return Candidate(
        m=wanted.m,
        ef_construction=wanted.ef_construction,
        rows=rows,
        build_s=build_s,
        size_bytes=size_bytes,
        curve=curve,
    )


def _measure(
    connection: Connection, model: StoredModel, kind: str, asked: Sequence[_Question], ef_search: int
) -> Measured:
    query = sql.SQL(SEARCH[kind]).format(
        embedding=_viewed(model), k=sql.Literal(K), dims=sql.Literal(model.dims), ef_search=sql.Literal(ef_search)
    )
    recalls, seconds = [], []
    with connection.transaction():
        # a copy may be so small that the planner would rather read it whole
        connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL hnsw.iterative_scan = 'relaxed_order'")
        connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(ef_search),))
        for question in asked:
            started = time.perf_counter()
            rows = connection.execute(query, {"vector": question.vector, "itself": question.itself}).fetchall()
            seconds.append(time.perf_counter() - started)
            recalls.append(recall(question.similarities, (row[0] for row in rows)))
    return Measured(ef_search=ef_search, recall=sum(recalls) / len(recalls), latency=summarise(seconds))


def _viewed(model: StoredModel) -> sql.Composed:
    return sql.SQL(VIEWED[model.storage]).format(dims=sql.Literal(model.dims))
