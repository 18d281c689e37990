"""The HNSW index of a model's vector table: whether it is there, and building it.

It is built after the load, not maintained during it (91,000 rows/s without it, 1,000 with), and CONCURRENTLY, so
that apps go on reading.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.errors import StoreError
from pipeline.store.connect import translated

if TYPE_CHECKING:
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)

FIND = """
SELECT x.indisvalid, pg_relation_size(x.indexrelid),
       (SELECT reltuples FROM pg_class WHERE oid = x.indrelid)::bigint
  FROM pg_index x
 WHERE x.indexrelid = to_regclass(%s)
"""

GRAPH_BYTES = 710
"""per row beside the vector itself, at m = 16 (measured)"""
LEAST_MEMORY_MB = 64
MOST_MEMORY_MB = 2048
"""a graph that does not fit builds 6 times slower; beyond 2 GB (1.2 million rows of 512) that is the price"""
WORKERS = 2
"""asked for beside the leader; the server gives what max_parallel_worker_processes and its cores allow"""
PARALLEL_ROWS = 10_000
"""fewer are indexed in a second by one process, which needs no shared memory"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """`exists` and not `is_valid` is what a broken off build leaves: it is written to, but never read."""

    name: str
    exists: bool
    is_valid: bool
    size_bytes: int
    rows: int


def index_name(model: StoredModel) -> str:
    return f"{model.table}_hnsw"


def find_index(connection: Connection, model: StoredModel) -> IndexState:
    name = index_name(model)
    row = connection.execute(FIND, (f"catvec_store.{name}",)).fetchone()
    if row is None:
        return IndexState(name=name, exists=False, is_valid=False, size_bytes=0, rows=0)
    return IndexState(name=name, exists=True, is_valid=row[0], size_bytes=row[1], rows=max(row[2], 0))


def refresh_statistics(connection: Connection, model: StoredModel) -> None:
    """Let the planner see what a load brought.

    Until autovacuum comes by, in a minute or in an hour, it takes the new tables for nearly empty, and then reads
    them row by row instead of through the index (seen with 6,000 products).
    """
    for table in (model.table, "images", "products"):
        connection.execute(sql.SQL("ANALYZE catvec_store.{}").format(sql.Identifier(table)))


def build_index(connection: Connection, model: StoredModel) -> IndexState:
    """Have a valid index, building it when there is none; `connection` is in autocommit mode.

    Raises StoreError.
    """
    state = find_index(connection, model)
    if state.is_valid:
        return state
    with translated():
        # a build may take its time, and waits for the transactions of others to end
        connection.execute("SET lock_timeout = 0; SET statement_timeout = 0")
        workers = _make_room(connection, model)
        try:
            _create(connection, model, workers=workers)
        except psycopg.OperationalError as error:
            if not workers or "shared memory" not in str(error):
                raise
            # parallel workers share the graph through /dev/shm, 64 MB in a container; one process needs none
            logger.warning("too little shared memory for a parallel index build; building with one process")
            _create(connection, model, workers=0)
    state = find_index(connection, model)
    if not state.is_valid:
        raise StoreError(f"index {state.name} is not valid after building", hint="run the same command again")
    return state


def _make_room(connection: Connection, model: StoredModel) -> int:
    """Give the session memory for the graph; returns how many workers the build is worth."""
    count = sql.SQL("SELECT count(*) FROM catvec_store.{}").format(sql.Identifier(model.table))
    [rows] = connection.execute(count).fetchone() or (0,)
    needed_mb = int(1.25 * rows * (2 * model.dims + 8 + GRAPH_BYTES)) // 2**20 + 1
    memory_mb = min(max(needed_mb, LEAST_MEMORY_MB), MOST_MEMORY_MB)
    connection.execute("SELECT set_config('maintenance_work_mem', %s, false)", (f"{memory_mb}MB",))
    return WORKERS if rows >= PARALLEL_ROWS else 0


def _create(connection: Connection, model: StoredModel, *, workers: int) -> None:
    name, table = sql.Identifier(index_name(model)), sql.Identifier(model.table)
    # the leftover of a build that broke off: CREATE INDEX … IF NOT EXISTS would take it for the real one
    connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS catvec_store.{}").format(name))
    connection.execute("SELECT set_config('max_parallel_maintenance_workers', %s, false)", (str(workers),))
    connection.execute(
        sql.SQL("CREATE INDEX CONCURRENTLY {} ON catvec_store.{} USING hnsw (embedding halfvec_cosine_ops)").format(
            name, table
        )
    )
