"""What can be seen of a database without changing it, for `catvec doctor`. It judges; here are only facts.

Everything is read in short read-only transactions with settings of their own: nothing lasts beyond them, also
where a pooler hands the same server connection to somebody else afterwards.
"""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from pipeline.errors import StoreError
from pipeline.store.connect import connect, translate
from pipeline.store.explain.sql import explain_sql
from pipeline.store.runs import IS_ALIVE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.store.connect import Connection
    from pipeline.store.explain.evidence import Explanation
    from pipeline.store.models import StoredModel

ANSWER_S = 5
"""a question that takes longer is given up: a doctor is no load test"""

LONG_TRANSACTION = timedelta(minutes=5)
"""far longer than a transaction of catvec's, whose longest reads a catalog"""

SERVER = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer AS number,
       pg_is_in_recovery() AS is_replica, current_setting('server_encoding') AS encoding,
       current_setting('dynamic_shared_memory_type') AS shared_memory,
       pg_size_bytes(current_setting('shared_buffers')) AS shared_buffers
"""

OFFERED_VECTOR = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
IS_ON_PATH = "SELECT %s = ANY (current_schemas(true))"

# what `catvec db grant --writer` gives, as far as a run needs it
RIGHTS = """
SELECT current_user::text AS "user",
       (SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'catvec_store') AS owner,
       (SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'catvec_store') AS may_enter,
       (SELECT bool_and(pg_has_role(c.relowner, 'USAGE'))
          FROM pg_class c
         WHERE c.relnamespace = to_regnamespace('catvec_store')
           AND c.relkind = 'r') AS owns_tables,
       (SELECT bool_and(has_table_privilege(c.oid, 'SELECT')
                        AND (has_table_privilege(c.oid, 'INSERT')
                             OR NOT (c.relname IN ('products', 'images', 'runs', 'failures', 'bad_rows')
                                     OR starts_with(c.relname, 'emb_')))
                        AND (has_table_privilege(c.oid, 'UPDATE')
                             OR c.relname NOT IN ('products', 'images', 'runs', 'failures'))
                        AND (has_table_privilege(c.oid, 'DELETE') OR c.relname NOT IN ('failures', 'bad_rows')))
          FROM pg_class c
         WHERE c.relnamespace = to_regnamespace('catvec_store')
           AND c.relkind = 'r')
       AND NOT EXISTS (SELECT
                         FROM pg_proc p
                        WHERE p.pronamespace = to_regnamespace('catvec_store')
                          AND p.proname = 'mark_ready'
                          AND NOT has_function_privilege(p.oid, 'EXECUTE')) AS may_write,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       has_database_privilege(current_database(), 'TEMPORARY') AS may_stage
"""

INDEX = """
SELECT am.amname AS method, o.opcname AS operators
  FROM pg_index x
  JOIN pg_class c ON c.oid = x.indexrelid
  JOIN pg_am am ON am.oid = c.relam
  JOIN pg_opclass o ON o.oid = x.indclass[0]
 WHERE x.indexrelid = to_regclass(%s)
"""

FAILED_IMAGES = """
SELECT count(*)
  FROM catvec_store.failures f
  JOIN catvec_store.images i ON i.image_id = f.image_id
 WHERE f.model_id = %s
   AND i.active
"""

RUNS = f"""
SELECT r.run_id, r.model, r.catalog, r.state, r.host, r.pid, r.error,
       now() - coalesce(r.finished_at, r.started_at) AS age, now() - r.heartbeat_at AS silence,
       {IS_ALIVE} AS is_locked
  FROM catvec.run_status r
 WHERE r.state = 'running'
    OR r.run_id = (SELECT max(run_id) FROM catvec.run_status)
 ORDER BY r.run_id DESC
"""

TABLES = """
SELECT s.relname AS table, s.n_live_tup AS live, s.n_dead_tup AS dead,
       greatest(s.last_analyze, s.last_autoanalyze) AS analyzed_at
  FROM pg_stat_user_tables s
 WHERE s.schemaname = 'catvec_store'
   AND s.relname = ANY (%s)
 ORDER BY s.relname
"""

# what a plain reader sends; the operator is named in full because its schema need not be on the search path
NEAREST = """
SELECT product_id
  FROM catvec.image_embeddings
 ORDER BY embedding OPERATOR({schema}.<=>) (SELECT embedding FROM catvec.image_embeddings LIMIT 1)
 LIMIT 10
"""

# others' sessions show their transactions to superusers and pg_read_all_stats only; elsewhere they are null
TRANSACTIONS = """
SELECT a.pid, a.usename AS "user", a.application_name AS application, now() - a.xact_start AS age
  FROM pg_stat_activity a
 WHERE a.datname = current_database()
   AND a.pid <> pg_backend_pid()
   AND a.backend_type = 'client backend'
   AND a.xact_start < now() - %s
 ORDER BY a.xact_start
"""
HIDDEN_SESSIONS = """
SELECT count(*)
  FROM pg_stat_activity a
 WHERE a.datname = current_database()
   AND a.backend_type IS NULL
"""
PREPARED = """
SELECT p.gid
  FROM pg_prepared_xacts p
 WHERE p.database = current_database()
   AND p.prepared < now() - %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """`shared_memory` is how parallel workers share it: posix means /dev/shm."""

    version: str
    number: int
    is_replica: bool
    encoding: str
    shared_memory: str
    shared_buffers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the user of this connection may do. None where there are no tables of catvec's."""

    user: str
    owner: str | None
    may_enter: bool | None
    owns_tables: bool | None
    may_write: bool | None
    may_create: bool
    may_stage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexKind:
    """How an index was made."""

    method: str
    operators: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSign:
    """A sign of life of a run; `is_locked`: some process holds the lock of its model."""

    run_id: int
    model: str | None
    catalog: str
    state: str
    host: str
    pid: int
    error: str | None
    age: timedelta
    silence: timedelta
    is_locked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatistics:
    """What the server has counted of a table: estimates, a moment old."""

    table: str
    live: int
    dead: int
    analyzed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A transaction that is open for longer than LONG_TRANSACTION."""

    pid: int
    user: str | None
    application: str
    age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Transactions:
    """Long open ones; `hidden` sessions belong to users whose transactions this one may not see."""

    long: tuple[Transaction, ...]
    prepared: tuple[str, ...]
    hidden: int


def connect_to_read(url: str) -> Connection:
    """A connection that cannot write. Raises ConfigError or StoreError."""
    connection = connect(url)
    connection.read_only = True
    return connection


@contextmanager
def reading(connection: Connection) -> Iterator[None]:
    """One read-only transaction in which each statement has ANSWER_S. Raises StoreError."""
    try:
        with connection.transaction():
            # LOCAL: a pooler may give this server connection to somebody else next
            connection.execute(
                sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(f"{ANSWER_S}s")),
            )
            yield
    except psycopg.errors.QueryCanceled as error:
        raise StoreError(f"no answer within {ANSWER_S} s", hint="ask again when the server has less to do") from error
    except psycopg.Error as error:
        raise translate(error) from error


def is_only_unanswered(error: Exception) -> bool:
    """Whether an error means that a question was refused or took too long, not that something was found wrong."""
    cause = error.__cause__
    return isinstance(cause, psycopg.errors.QueryCanceled | psycopg.errors.InsufficientPrivilege)


def see_server(connection: Connection) -> Server:
    with connection.cursor(row_factory=class_row(Server)) as cursor:
        return cursor.execute(SERVER).fetchone() or _nothing()


def measure_round_trip(connection: Connection, *, tries: int = 5) -> float:
    """Seconds from a question to its answer, the median of some tries."""
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        connection.execute("SELECT 1").fetchone()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_clock(connection: Connection) -> timedelta:
    """How far the server's clock is ahead of ours."""
    asked = datetime.now(UTC)
    [answer] = connection.execute("SELECT clock_timestamp()").fetchone() or _nothing()
    middle: datetime = asked + (datetime.now(UTC) - asked) / 2
    ahead: timedelta = answer - middle
    return ahead


def offered_vector(connection: Connection) -> str | None:
    """The version of the vector extension that the server has files of; None when it has none."""
    row = connection.execute(OFFERED_VECTOR).fetchone()
    return row[0] if row else None


def is_on_path(connection: Connection, schema: str) -> bool:
    return connection.execute(IS_ON_PATH, (schema,)).fetchone() == (True,)


def see_rights(connection: Connection) -> Rights:
    with connection.cursor(row_factory=class_row(Rights)) as cursor:
        return cursor.execute(RIGHTS).fetchone() or _nothing()


def see_index_kind(connection: Connection, name: str) -> IndexKind | None:
    with connection.cursor(row_factory=class_row(IndexKind)) as cursor:
        return cursor.execute(INDEX, (f"catvec_store.{name}",)).fetchone()


def count_vectors(connection: Connection, model: StoredModel, *, at_most: int) -> int:
    """How many vectors a model has, counted no further than `at_most`."""
    query = sql.SQL("SELECT count(*) FROM (SELECT FROM catvec_store.{} LIMIT {}) v").format(
        sql.Identifier(model.table), sql.Literal(at_most)
    )
    [vectors] = connection.execute(query).fetchone() or _nothing()
    return int(vectors)


def count_failed_images(connection: Connection, model: StoredModel) -> int:
    [images] = connection.execute(FAILED_IMAGES, (model.model_id,)).fetchone() or _nothing()
    return int(images)


def see_runs(connection: Connection) -> list[RunSign]:
    """The newest run, and every other one that says it is running."""
    with connection.cursor(row_factory=class_row(RunSign)) as cursor:
        return cursor.execute(RUNS).fetchall()


def see_tables(connection: Connection, models: Sequence[StoredModel]) -> list[TableStatistics]:
    """The statistics of the tables that searches read."""
    names = ["products", "images", *(model.table for model in models)]
    with connection.cursor(row_factory=class_row(TableStatistics)) as cursor:
        return cursor.execute(TABLES, (names,)).fetchall()


def explain_plain_search(connection: Connection, *, vector_schema: str) -> Explanation:
    """Whether a plain ORDER BY … LIMIT on the public view reads the active model's index, and why not."""
    schema = sql.Identifier(vector_schema).as_string(connection)
    return explain_sql(connection, NEAREST.format(schema=schema))


def see_transactions(connection: Connection) -> Transactions:
    with connection.cursor(row_factory=class_row(Transaction)) as cursor:
        long = tuple(cursor.execute(TRANSACTIONS, (LONG_TRANSACTION,)).fetchall())
    prepared = tuple(row[0] for row in connection.execute(PREPARED, (LONG_TRANSACTION,)).fetchall())
    [hidden] = connection.execute(HIDDEN_SESSIONS).fetchone() or _nothing()
    return Transactions(long=long, prepared=prepared, hidden=int(hidden))


def _nothing() -> NoReturn:
    raise AssertionError("a SELECT without FROM, or of an aggregate, gives a row")
