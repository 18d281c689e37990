"""Asking a server what it would do with a statement: plans, plans under other settings, and what was really read.

All of it happens in one read-only transaction that is rolled back. A statement of somebody else's is sent by the
extended protocol, which takes exactly one: none can end the transaction.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pipeline.errors import StoreError
from pipeline.records import EXACT_ROWS
from pipeline.store.connect import find_vector
from pipeline.store.explain.evidence import VectorIndex, VectorTable
from pipeline.store.explain.plans import PlanNode, read_plan, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.store.connect import Connection
    from pipeline.store.explain.statement import Statement

TIMEOUT_S = 60

# readers may not enter catvec_store, but the server's catalog is open to all
TABLES = """
SELECT m.name, c.relname, c.oid, m.dims, m.storage, m.index_kind, m.is_active, c.reltuples::bigint,
       c.reltuples >= 0 AND 2 * i.reltuples >= c.reltuples
  FROM catvec.models m
  JOIN pg_catalog.pg_class c ON c.relname = 'emb_' || m.name
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class i ON i.relname = 'images' AND i.relnamespace = n.oid
 WHERE n.nspname = 'catvec_store'
 ORDER BY m.is_active DESC, m.model_id
"""

# who builds CONCURRENTLY holds this lock on the table; progress is shown to the builder's own role only
INDEXES = """
SELECT c.relname, x.indexrelid, x.indisvalid, o.opcname,
       NOT x.indisvalid
       AND EXISTS (SELECT
                     FROM pg_catalog.pg_locks l
                    WHERE l.relation = x.indrelid
                      AND l.mode = 'ShareUpdateExclusiveLock'
                      AND l.granted)
  FROM pg_catalog.pg_index x
  JOIN pg_catalog.pg_class c ON c.oid = x.indexrelid
  JOIN pg_catalog.pg_am a ON a.oid = c.relam
  JOIN pg_catalog.pg_opclass o ON o.oid = x.indclass[0]
 WHERE x.indrelid = %s
   AND a.amname IN ('hnsw', 'ivfflat')
"""

SETTINGS_OFF = """
SELECT s.name
  FROM pg_catalog.pg_settings s
 WHERE s.name LIKE 'enable%'
   AND s.setting = 'off'
   AND s.boot_val = 'on'
"""

BARRIERS = """
SELECT n.nspname || '.' || c.relname
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'v'
   AND EXISTS (SELECT
                 FROM pg_catalog.pg_options_to_table(c.reloptions) o
                WHERE o.option_name = 'security_barrier'
                  AND o.option_value::boolean)
   AND (n.nspname = 'catvec' OR position(lower(c.relname) IN lower(%s)) > 0)
"""

VOLATILE = """
SELECT DISTINCT p.proname
  FROM pg_catalog.pg_proc p
 WHERE p.proname = ANY (%s)
   AND p.provolatile = 'v'
"""

# what this transaction has read so far: rows that an index leads to are counted with the index
READ = """
SELECT o.oid, o.is_table, pg_stat_get_xact_numscans(o.oid), pg_stat_get_xact_tuples_fetched(o.oid),
       pg_stat_get_xact_tuples_returned(o.oid)
  FROM (SELECT t.oid, true
          FROM unnest(%(tables)s::oid[]) AS t (oid)
         UNION ALL
        SELECT x.indexrelid, false
          FROM pg_catalog.pg_index x
         WHERE x.indrelid = ANY (%(tables)s::oid[])) AS o (oid, is_table)
"""

OPERATORS = {"cosine": "<=>", "l2": "<->", "ip": "<#>", "l1": "<+>", "hamming": "<~>", "jaccard": "<%>"}
KINDS = {"hnsw": "<=>", "binary": "<~>"}
"""by the kind of the model's index, the operator by which the functions ask"""

INDEX_ONLY = {
    "enable_seqscan": "off",
    "enable_sort": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_indexscan": "on",
    "enable_nestloop": "on",
}
"""leaves no other way than the vector index, where the query can be answered from it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """What is the same for all statements. `is_on_path`: the operators need no schema before them."""

    vector_schema: str
    is_on_path: bool
    tables: tuple[VectorTable, ...]

    @property
    def index_names(self) -> set[str]:
        return {index.name for table in self.tables for index in table.indexes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a statement did when it was run: the scans of each vector index by name, and the vectors looked at."""

    milliseconds: float
    rows: int
    scans: dict[str, int]
    compared: int


@contextmanager
def looking(connection: Connection) -> Iterator[None]:
    """One read-only transaction that is rolled back. Raises StoreError when a statement takes too long."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SET LOCAL transaction_read_only = on")
            # LOCAL: a pooler may give this server connection to somebody else next
            connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(f"{TIMEOUT_S}s")))
            yield
    except psycopg.errors.QueryCanceled as error:
        raise StoreError(
            f"the statement was not done within {TIMEOUT_S} s",
            hint="explain it without --analyze, or look for a session that holds a lock",
        ) from error


def see_database(connection: Connection) -> Database:
    """Raises StoreError when there is no vector extension."""
    schema, _ = find_vector(connection) or ("", "")
    row = connection.execute("SELECT %s = ANY (current_schemas(true))", (schema,)).fetchone()
    tables = tuple(_see_table(connection, found) for found in connection.execute(TABLES).fetchall())
    return Database(vector_schema=schema, is_on_path=row == (True,), tables=tables)


def _see_table(connection: Connection, found: tuple[Any, ...]) -> VectorTable:
    name, table, oid, dims, storage, kind, is_active, estimate, is_analyzed = found
    rows = estimate
    if estimate < EXACT_ROWS:
        rows = _count(connection, f"image_embeddings_{name}", at_most=EXACT_ROWS + 1) or estimate
    indexes = tuple(
        VectorIndex(
            name=row[0],
            oid=row[1],
            is_valid=row[2],
            is_being_built=row[4],
            operator=next((sign for word, sign in OPERATORS.items() if f"_{word}_" in row[3]), None),
        )
        for row in connection.execute(INDEXES, (oid,)).fetchall()
    )
    return VectorTable(
        model=name,
        name=table,
        oid=oid,
        dims=dims,
        storage=storage,
        asked=KINDS[kind],
        is_active=is_active,
        vectors=max(estimate, rows),
        # an estimate that is far from the truth is as bad as none
        is_analyzed=is_analyzed and rows <= 2 * estimate + 100,
        indexes=indexes,
    )


def _count(connection: Connection, view: str, *, at_most: int) -> int | None:
    """How many rows a public view has, counted no further; None when this user may not read it."""
    query = sql.SQL("SELECT count(*) FROM (SELECT FROM {} LIMIT {}) v")
    try:
        with connection.transaction(force_rollback=True):
            row = connection.execute(query.format(sql.Identifier("catvec", view), sql.Literal(at_most))).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    return int(row[0]) if row else None


def plan(connection: Connection, statement: Statement, settings: Mapping[str, str] | None = None) -> PlanNode:
    """What the server would do, under other settings if asked. psycopg's errors pass through."""
    with connection.transaction(force_rollback=True):
        for name, value in (settings or {}).items():
            connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        [[document]] = _explain(connection, statement, "VERBOSE, FORMAT JSON")
    return read_plan(document)


def plan_text(connection: Connection, statement: Statement) -> str:
    """The plan as psql shows it."""
    with connection.transaction(force_rollback=True):
        return shorten("\n".join(line for [line] in _explain(connection, statement, "FORMAT TEXT")))


def run(connection: Connection, statement: Statement, tables: Sequence[VectorTable]) -> Ran:
    """Run a statement without placeholders. psycopg's errors pass through."""
    with counting(connection, tables) as count, connection.transaction(force_rollback=True):
        document = _explain(connection, statement, "ANALYZE, FORMAT JSON")[0][0][0]
        scans, compared = count()
        return Ran(
            milliseconds=document["Execution Time"],
            rows=round(document["Plan"]["Actual Rows"] * document["Plan"]["Actual Loops"]),
            scans=scans,
            compared=compared,
        )


@contextmanager
def counting(connection: Connection, tables: Sequence[VectorTable]) -> Iterator[Any]:
    """A function that tells what was read since: the scans of each vector index, and the vectors looked at."""
    names = {index.oid: index.name for table in tables for index in table.indexes}
    oids = [table.oid for table in tables]

    def see() -> tuple[dict[str, int], int]:
        scans, compared = {}, 0
        for oid, is_table, times, fetched, returned in connection.execute(READ, {"tables": oids}).fetchall():
            if oid in names:
                scans[names[oid]] = times
            compared += fetched + (returned if is_table else 0)
        return scans, compared

    scans_before, compared_before = see()

    def count() -> tuple[dict[str, int], int]:
        scans, compared = see()
        new = {name: times - scans_before[name] for name, times in scans.items()}
        return {name: times for name, times in new.items() if times}, compared - compared_before

    yield count


def _explain(connection: Connection, statement: Statement, options: str) -> list[tuple[Any, ...]]:
    if not statement.placeholders:
        return _send(connection, f"EXPLAIN ({options})\n{statement.text}")
    # the plan for any values; prepared anew each time, because a cached plan outlives a change of settings
    _send(connection, f"PREPARE catvec_explain AS\n{statement.text}")
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            nulls = ", ".join(["NULL"] * statement.placeholders)
            return _send(connection, f"EXPLAIN ({options}) EXECUTE catvec_explain ({nulls})")
    finally:
        connection.execute("DEALLOCATE catvec_explain")


def _send(connection: Connection, text: str) -> list[tuple[Any, ...]]:
    # binary results make psycopg speak the extended protocol
    cursor = connection.execute(text.encode(connection.info.encoding), binary=True)
    return cursor.fetchall() if cursor.description else []


def settings_off(connection: Connection) -> list[str]:
    """The ways of the planner that are switched off for this session."""
    return [name for [name] in connection.execute(SETTINGS_OFF).fetchall()]


def index_settings(connection: Connection) -> tuple[str, int]:
    """hnsw.iterative_scan and hnsw.ef_search, as they are for a plain query of this session."""
    row = connection.execute(
        "SELECT coalesce(nullif(current_setting('hnsw.iterative_scan', true), ''), 'off'),"
        " coalesce(nullif(current_setting('hnsw.ef_search', true), ''), '40')::integer"
    ).fetchone()
    return (row[0], row[1]) if row else ("off", 40)


def find_volatile(connection: Connection, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for [name] in connection.execute(VOLATILE, (list(names),)).fetchall())


def find_barriers(connection: Connection, text: str) -> tuple[str, ...]:
    """The views of kind security_barrier that a statement may be reading."""
    return tuple(name for [name] in connection.execute(BARRIERS, (text,)).fetchall())
