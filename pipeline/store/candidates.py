"""Trying other m and ef_construction: indexes on a copy of some of the vectors, in a table that only we see."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.store.build import index_expression, session_settings
from pipeline.store.connect import require_vector
from pipeline.store.recall import EXACT_NEAR, K, Measured, recall, summarise, viewed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvector import HalfVector

    from pipeline.progress import Progress
    from pipeline.store.connect import Connection
    from pipeline.store.index import IndexSettings
    from pipeline.store.models import StoredModel

MEMORY_MB = 512
"""for the graph of a copy: 300,000 rows of 512 dimensions at m = 16"""

# In the order of the table: a graph that grows along a catalog, like after like, finds less than one that grows at
# random (a fifth less at m = 4 with the vectors of tests/store/test_tune.py).
COPY = """
CREATE TEMP TABLE catvec_candidates AS
SELECT s.content_sha256, s.embedding
  FROM (SELECT e.content_sha256, e.embedding, e.ctid AS place
          FROM catvec_store.{table} e
         ORDER BY e.content_sha256
         LIMIT {rows}) s
 ORDER BY s.place
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

# the copy in the form of a model's view, for the functions' own query; halfvec without its dimensions as there, else
# a binary index is not read
SHOW = """
CREATE TEMP VIEW catvec_candidates_shown AS
SELECT NULL::text AS product_id, NULL::bigint AS image_id, e.content_sha256, {embedding}::halfvec AS embedding
  FROM pg_temp.catvec_candidates e
"""

EXACT = (
    EXACT_NEAR
    + """
SELECT 1 - n.distance
  FROM near n
 WHERE n.content_sha256 <> %(itself)s
 ORDER BY n.distance
 LIMIT {k}
"""
)

# what the functions look at first for k products: their own query, with as many candidates
NEAR = """
SELECT catvec.nearest_images_query(jsonb_populate_record(m, jsonb_build_object('ef_search', %(ef_search)s::integer)),
                                   %(wanted)s)
  FROM catvec.models m
 WHERE m.name = %(model)s
"""
WANTED = 4 * K + 20

SEARCH = """
SELECT 1 - n.distance
  FROM ({near}) n
 WHERE n.content_sha256 <> %(itself)s
 ORDER BY n.distance
 LIMIT {k}
"""


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
    progress.begin(f"copying {rows:,} vectors")
    with _copied(connection, model, rows) as copied:
        progress.begin("searching the copy exactly")
        asked = _ask(connection, model, queries, progress)
        candidates = []
        for number, wanted in enumerate(settings, 1):
            which = f"index {number} of {len(settings)} (m {wanted.m}, ef_construction {wanted.ef_construction})"
            progress.begin(f"building {which}")
            progress.step(0, copied, unit="vectors")  # whoever watches the server says how far it is
            build_s = _build(connection, model, wanted)
            progress.begin(f"searching with {which}")
            curve = _measure_curve(connection, model, asked, ef_search, progress)
            candidates.append(_drop(connection, wanted, rows=copied, build_s=build_s, curve=curve))
    return candidates


@contextmanager
def _copied(connection: Connection, model: StoredModel, rows: int) -> Iterator[int]:
    """How many vectors there are in the copy."""
    path = f"{sql.Identifier(require_vector(connection)).as_string(connection)}, pg_catalog"
    settings = {"search_path": path, "maintenance_work_mem": f"{MEMORY_MB}MB"}
    with session_settings(connection, settings):
        copy = sql.SQL(COPY).format(table=sql.Identifier(model.table), rows=sql.Literal(rows))
        copied = connection.execute(copy).rowcount
        try:
            connection.execute(sql.SQL(SHOW).format(embedding=viewed(model)))
            connection.execute("ANALYZE pg_temp.catvec_candidates")
            yield copied
        finally:
            if not connection.closed:
                connection.execute("DROP TABLE pg_temp.catvec_candidates CASCADE")


def _ask(connection: Connection, model: StoredModel, queries: int, progress: Progress) -> list[_Question]:
    exact = sql.SQL(EXACT).format(
        table=sql.Identifier("pg_temp", "catvec_candidates"),
        embedding=viewed(model),
        most=sql.Literal(K + 1),
        k=sql.Literal(K),
    )
    sample = connection.execute(SAMPLE, (queries,)).fetchall()
    questions = []
    for itself, vector in sample:
        rows = connection.execute(exact, {"vector": vector, "itself": itself}).fetchall()
        questions.append(_Question(vector=vector, itself=itself, similarities=tuple(row[0] for row in rows)))
        progress.step(len(questions), len(sample), unit="queries")
    return questions


def _build(connection: Connection, model: StoredModel, wanted: IndexSettings) -> float:
    """The seconds it takes."""
    create = sql.SQL(CREATE).format(
        expression=index_expression(connection, model, wanted.kind),
        m=sql.Literal(wanted.m),
        ef_construction=sql.Literal(wanted.ef_construction),
    )
    started = time.perf_counter()
    connection.execute(create)
    return time.perf_counter() - started


def _drop(
    connection: Connection, wanted: IndexSettings, *, rows: int, build_s: float, curve: tuple[Measured, ...]
) -> Candidate:
    """Make room for the next one; what there is to say of this one."""
    size = "SELECT pg_relation_size('pg_temp.catvec_candidate')"
    [size_bytes] = connection.execute(size).fetchone() or (0,)
    connection.execute("DROP INDEX pg_temp.catvec_candidate")
    return Candidate(
        m=wanted.m,
        ef_construction=wanted.ef_construction,
        rows=rows,
        build_s=build_s,
        size_bytes=size_bytes,
        curve=curve,
    )


def _measure_curve(
    connection: Connection,
    model: StoredModel,
    asked: Sequence[_Question],
    ef_search: Sequence[int],
    progress: Progress,
) -> tuple[Measured, ...]:
    curve = []
    for value in ef_search:
        curve.append(_measure(connection, model, asked, value))
        progress.step(len(curve) * len(asked), len(ef_search) * len(asked), unit="queries")
    return tuple(curve)


def _measure(connection: Connection, model: StoredModel, asked: Sequence[_Question], ef_search: int) -> Measured:
    query = sql.SQL(SEARCH).format(near=sql.SQL(_near(connection, model, ef_search)), k=sql.Literal(K))
    recalls, seconds = [], []
    with connection.transaction():
        # a copy may be so small that the planner would rather read it whole
        connection.execute("SET LOCAL enable_seqscan = off")
        connection.execute("SELECT catvec.prepare_index(%s)", (max(WANTED, ef_search),))
        for question in asked:
            started = time.perf_counter()
            rows = connection.execute(query, {"vector": question.vector, "itself": question.itself}).fetchall()
            seconds.append(time.perf_counter() - started)
            recalls.append(recall(question.similarities, (row[0] for row in rows)))
    return Measured(ef_search=ef_search, recall=sum(recalls) / len(recalls), latency=summarise(seconds))


def _near(connection: Connection, model: StoredModel, ef_search: int) -> str:
    """The functions' query for the nearest images, of the copy instead of the model's view."""
    parameters = {"ef_search": ef_search, "wanted": WANTED, "model": model.name}
    [near] = connection.execute(NEAR, parameters).fetchone() or ("",)
    of_copy = str(near).replace(f"catvec.{model.view} v", "pg_temp.catvec_candidates_shown v")
    return of_copy.replace("$1", "%(vector)s")
