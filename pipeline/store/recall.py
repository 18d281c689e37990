"""Measuring what apps get: how many of the truly nearest products a search finds, and how long it takes.

Measured through the public function, against an exact search, with vectors of the table itself as queries.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.records import SAME_SIMILARITY
from pipeline.store.build import VIEWED
from pipeline.store.connect import require_vector

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgvector import HalfVector

    from pipeline.progress import Progress
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

K = 10
LEAST_QUERIES = 10
AT_ONCE = 10
"""queries in one transaction, which holds a lock on the model's row: some tens of milliseconds, so that a switch of
the active model is not kept waiting"""

# the keys are SHA-256 sums, so the first of them are as good a sample as any, and the same one every time
SAMPLE = """
SELECT DISTINCT ON (v.content_sha256) v.product_id, v.embedding
  FROM catvec.{view} v
  JOIN catvec.products p ON p.product_id = v.product_id
 WHERE p.active
 ORDER BY v.content_sha256, v.product_id
 LIMIT {size}
"""

# + 0, because that no index can give: every row is compared
EXACT_NEAR = """
WITH near AS MATERIALIZED (
  SELECT e.content_sha256, {embedding} <=> %(vector)s AS distance
    FROM {table} e
   ORDER BY ({embedding} <=> %(vector)s) + 0
   LIMIT {most})
"""

EXACT = (
    EXACT_NEAR
    + """
SELECT p.product_id, 1 - min(n.distance) AS similarity, (SELECT count(*) FROM near) AS seen
  FROM near n
  JOIN catvec_store.images i ON i.content_sha256 = n.content_sha256
  JOIN catvec_store.products p ON p.product_id = i.product_id
 WHERE i.active
   AND p.active
   AND p.product_id <> %(product)s
 GROUP BY p.product_id
 ORDER BY similarity DESC
 LIMIT {k}
"""
)

SEARCH = """
SELECT h.product_id, h.similarity
  FROM catvec.search_by_vector(%(vector)s, {k}, '{{}}', %(model)s, %(product)s) h
"""

INDEX_SCANS = "SELECT pg_stat_get_xact_numscans(to_regclass(%s))"
MAY_MEASURE = "SELECT has_schema_privilege('catvec_store', 'USAGE')"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """A vector to search with, its product, and how similar the truly nearest other products are, nearest first."""

    product: str
    vector: HalfVector
    similarities: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Of a search as this client sees it, milliseconds."""

    median_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What searches come to at one setting. `recall` is the share of the truly nearest products that was found."""

    ef_search: int
    recall: float
    latency: Latency


def sample_queries(
    connection: Connection,
    model: StoredModel,
    size: int,
    *,
    progress: Progress | None = None,
    at_most_s: float = float("inf"),
) -> list[Query]:
    """Vectors of the table with what an exact search finds for them; fewer than `size` when that takes too long."""
    schema = require_vector(connection)
    sample = sql.SQL(SAMPLE).format(view=sql.Identifier(model.view), size=sql.Literal(size))
    rows = connection.execute(sample).fetchall()
    queries: list[Query] = []
    deadline = time.monotonic() + at_most_s
    for product, vector in rows:
        if time.monotonic() > deadline and len(queries) >= LEAST_QUERIES:
            break
        with connection.transaction():
            _see(connection, schema)
            queries.append(_search_exactly(connection, model, product, vector))
        if progress is not None:
            progress.step(len(queries), len(rows), unit="queries")
    return queries


def _search_exactly(connection: Connection, model: StoredModel, product: str, vector: HalfVector) -> Query:
    most = 8 * K
    while True:
        query = sql.SQL(EXACT).format(
            table=sql.Identifier("catvec_store", model.table),
            embedding=viewed(model),
            most=sql.Literal(most),
            k=sql.Literal(K),
        )
        started = time.perf_counter()
        rows = connection.execute(query, {"vector": vector, "product": product}).fetchall()
        seconds = time.perf_counter() - started
        # many images of one product, or of inactive ones, may stand before the others
        if len(rows) == K or not rows or rows[0][2] < most:
            similarities = tuple(row[1] for row in rows)
            return Query(product=product, vector=vector, similarities=similarities, seconds=seconds)
        most *= 8


def viewed(model: StoredModel) -> sql.Composed:
    """The embedding that the views show, of a row `e` of the vector table."""
    return sql.SQL(VIEWED[model.storage]).format(dims=sql.Literal(model.dims))


def may_measure(connection: Connection) -> bool:
    """Whether this user may read the vectors beside the views; apps need not."""
    return connection.execute(MAY_MEASURE).fetchone() == (True,)


def reads_index(connection: Connection, model: StoredModel, index: str, query: Query) -> bool:
    """Whether a search reads the index of this name; of few rows the planner rather compares all."""
    with connection.transaction():
        # a transaction counts its own scans at once
        _search(connection, model, query)
        [scans] = connection.execute(INDEX_SCANS, (f"catvec_store.{index}",)).fetchone() or (0,)
    return bool(scans)


def measure(connection: Connection, model: StoredModel, queries: Sequence[Query]) -> Measured:
    """Search with all queries through the public function, as it is set up now."""
    recalls, latency = measure_each(connection, model, queries)
    return Measured(ef_search=model.ef_search, recall=statistics.fmean(recalls), latency=latency)


def measure_each(connection: Connection, model: StoredModel, queries: Sequence[Query]) -> tuple[list[float], Latency]:
    """The same, with the recall of every query."""
    recalls, seconds = [], []
    for query in queries:
        found_share, took_s = _search(connection, model, query)
        recalls.append(found_share)
        seconds.append(took_s)
    return recalls, summarise(seconds)


def measure_curve(
    connection: Connection, model: StoredModel, queries: Sequence[Query], ef_search: Sequence[int], progress: Progress
) -> list[Measured]:
    """The same at several settings, by turns, so that what else the server does falls on all of them alike.

    A setting is written to the model's row in a transaction that is rolled back: the function that is measured is
    the one that apps call.
    """
    recalls: dict[int, list[float]] = {value: [] for value in ef_search}
    seconds: dict[int, list[float]] = {value: [] for value in ef_search}
    for begin in range(0, len(queries), AT_ONCE):
        for value in ef_search:
            with connection.transaction(force_rollback=True):
                connection.execute(
                    "UPDATE catvec_store.models SET ef_search = %s WHERE model_id = %s", (value, model.model_id)
                )
                for query in queries[begin : begin + AT_ONCE]:
                    found_share, took_s = _search(connection, model, query)
                    recalls[value].append(found_share)
                    seconds[value].append(took_s)
        progress.step(min(begin + AT_ONCE, len(queries)), len(queries), unit="queries")
    return [
        Measured(ef_search=value, recall=statistics.fmean(recalls[value]), latency=summarise(seconds[value]))
        for value in ef_search
    ]


def _search(connection: Connection, model: StoredModel, query: Query) -> tuple[float, float]:
    """Recall of one search, and its seconds."""
    parameters = {"vector": query.vector, "model": model.name, "product": query.product}
    started = time.perf_counter()
    rows = connection.execute(sql.SQL(SEARCH).format(k=sql.Literal(K)), parameters).fetchall()
    seconds = time.perf_counter() - started
    return recall(query.similarities, (row[1] for row in rows)), seconds


def store_ef_search(connection: Connection, model: StoredModel, ef_search: int) -> None:
    """Let the functions search with this from now on."""
    connection.execute(
        "UPDATE catvec_store.models SET ef_search = %s, tuned_at = now() WHERE model_id = %s",
        (ef_search, model.model_id),
    )


def recall(expected: Sequence[float], found: Iterable[float]) -> float:
    """The share of what is expected that was found, both as similarities: of equal ones any will do."""
    if not expected:
        return 1.0
    return min(len(expected), sum(similarity >= expected[-1] - SAME_SIMILARITY for similarity in found)) / len(
        expected
    )


def summarise(seconds: Sequence[float]) -> Latency:
    ordered = sorted(seconds)
    return Latency(
        median_ms=1000 * statistics.median(ordered),
        p95_ms=1000 * ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)],
    )


def _see(connection: Connection, schema: str) -> None:
    """Find the extension's operators, in this transaction."""
    connection.execute(sql.SQL("SET LOCAL search_path = {}, pg_catalog").format(sql.Identifier(schema)))
