"""The HNSW index of a model's vector table: whether it is there, building, replacing and dropping it.

It is built after the load, not maintained during it (91,000 rows/s without it, 1,000 with), and CONCURRENTLY, so
that apps go on reading. One build of a model's index at a time: a lock, held by the server process that builds, says
so even when the client that asked for it is gone. `store/build.py` makes the index itself.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from pipeline.errors import ConfigError, StoreError
from pipeline.progress import Progress
from pipeline.store.build import create_index, session_settings
from pipeline.store.connect import translated
from pipeline.store.locks import keep_trying
from pipeline.store.roles import require_owner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)

FIND = """
SELECT c.relname AS name, true AS exists, x.indisvalid AS is_valid,
       EXISTS (SELECT
                 FROM pg_stat_progress_create_index p
                WHERE p.relid = x.indrelid
                  AND p.datname = current_database()) AS is_being_built,
       pg_relation_size(c.oid) AS size_bytes, greatest(t.reltuples, 0)::bigint AS rows,
       CASE o.opcname WHEN 'halfvec_cosine_ops' THEN 'hnsw' WHEN 'bit_hamming_ops' THEN 'binary' END AS kind,
       -- what is not said there is pgvector's default
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions) WHERE option_name = 'm'),
                '16')::integer AS m,
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions) WHERE option_name = 'ef_construction'),
                '64')::integer AS ef_construction
  FROM pg_index x
  JOIN pg_class c ON c.oid = x.indexrelid
  JOIN pg_class t ON t.oid = x.indrelid
  JOIN pg_opclass o ON o.oid = x.indclass[0]
 WHERE x.indexrelid = to_regclass(%s)
"""

# what a build or replacement that broke off leaves, ours or a REINDEX CONCURRENTLY: it is written to, but never read
LEFTOVERS = """
SELECT c.relname
  FROM pg_index x
  JOIN pg_class c ON c.oid = x.indexrelid
 WHERE x.indrelid = to_regclass(%(table)s)
   AND (starts_with(c.relname, %(name)s || '_cc') AND NOT x.indisvalid
        OR c.relname = %(name)s AND NOT x.indisvalid
        OR c.relname IN (%(name)s || '_new', %(name)s || '_old'))
 ORDER BY c.relname
"""

LOCK_KEY = "hashtextextended('catvec:index:' || current_database() || ':' || %(model)s, 0)"
TRY_LOCK = f"SELECT pg_try_advisory_lock({LOCK_KEY})"
UNLOCK = f"SELECT pg_advisory_unlock({LOCK_KEY})"
# who builds: the holder of the lock, or somebody's own CREATE INDEX or REINDEX on the table
BUILDERS = f"""
SELECT l.pid
  FROM pg_locks l
 WHERE l.locktype = 'advisory'
   AND l.granted
   AND l.objsubid = 1
   AND (l.classid::bigint << 32) | l.objid::bigint = {LOCK_KEY}
   AND l.pid <> pg_backend_pid()
 UNION
SELECT p.pid
  FROM pg_stat_progress_create_index p
 WHERE p.relid = to_regclass(%(table)s)
   AND p.datname = current_database()
   AND p.pid <> pg_backend_pid()
"""

STORE_SETTINGS = """
UPDATE catvec_store.models
   SET index_kind = %s, index_m = %s, index_ef_construction = %s
 WHERE model_id = %s
"""

ASK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """How an index is made. `kind` is hnsw (the embeddings) or binary (one bit a dimension, compared again after).

    Raises ConfigError.
    """

    kind: str
    m: int
    ef_construction: int

    def __post_init__(self) -> None:
        if self.ef_construction < 2 * self.m:
            raise ConfigError(f"--ef-construction is {self.ef_construction}, expected at least twice --m {self.m}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """`exists` and not `is_valid` is what a broken off build leaves: it is written to, but never read.

    `kind` is None for operators that no function of ours asks for. `is_being_built` also while it is replaced.
    """

    name: str
    exists: bool
    is_valid: bool
    is_being_built: bool
    size_bytes: int
    rows: int
    kind: str | None
    m: int | None
    ef_construction: int | None


def index_name(model: StoredModel) -> str:
    return f"{model.table}_hnsw"


def settings_of(model: StoredModel) -> IndexSettings:
    """How the model's index is to be made."""
    return IndexSettings(kind=model.index_kind, m=model.index_m, ef_construction=model.index_ef_construction)


def find_index(connection: Connection, model: StoredModel) -> IndexState:
    name = index_name(model)
    with connection.cursor(row_factory=class_row(IndexState)) as cursor:
        found = cursor.execute(FIND, (f"catvec_store.{name}",)).fetchone()
    return found or IndexState(
        name=name,
        exists=False,
        is_valid=False,
        is_being_built=False,
        size_bytes=0,
        rows=0,
        kind=None,
        m=None,
        ef_construction=None,
    )


def refresh_statistics(connection: Connection, model: StoredModel) -> None:
    """Let the planner see what a load brought.

    Until autovacuum comes by, in a minute or in an hour, it takes the new tables for nearly empty, and then reads
    them row by row instead of through the index (seen with 6,000 products).
    """
    for table in (model.table, "images", "products"):
        connection.execute(sql.SQL("ANALYZE catvec_store.{}").format(sql.Identifier(table)))


def build_index(
    connection: Connection, model: StoredModel, progress: Progress | None = None, *, memory_mb: int | None = None
) -> IndexState:
    """Have a valid index, building it when there is none; `connection` is in autocommit mode.

    A build that goes on elsewhere is waited for. What builds that broke off have left is removed. `memory_mb` is
    what the graph may take while it is built, None computes it. Raises StoreError.
    """
    progress = progress or Progress()
    with translated():
        state = find_index(connection, model)
        if state.is_valid:
            _tidy(connection, model)
            return state
        require_owner(connection, f"change the index of model {model.name!r}")
        with _turn(connection, model, progress):
            state = find_index(connection, model)
            if not state.is_valid:
                remove_indexes(connection, find_leftovers(connection, model))
                create_index(connection, model, settings_of(model), state.name, progress, memory_mb=memory_mb)
                state = _require_valid(connection, model)
    return state


def replace_index(
    connection: Connection,
    model: StoredModel,
    wanted: IndexSettings,
    progress: Progress | None = None,
    *,
    memory_mb: int | None = None,
    wait_s: float = 60.0,
) -> IndexState:
    """Build a new index beside the old one, if there is one, and let it take its place; apps notice nothing.

    The settings of the model change in the transaction that renames the indexes, so that the functions, which ask by
    these settings, and the index agree at every moment. A rename waits for no reader and no reader for it; the old
    index is dropped when the last of its readers has gone. Raises StoreError.
    """
    progress = progress or Progress()
    with translated():
        require_owner(connection, f"change the index of model {model.name!r}")
        with _turn(connection, model, progress):
            name = index_name(model)
            remove_indexes(connection, find_leftovers(connection, model))
            create_index(connection, model, wanted, f"{name}_new", progress, memory_mb=memory_mb)
            keep_trying(
                connection,
                partial(_swap, model=model, wanted=wanted),
                relations=(f"catvec_store.{name}",),
                wait_s=wait_s,
            )
            progress.begin("removing the old index and dead rows")
            remove_indexes(connection, find_leftovers(connection, model))
            # a fresh index knows no dead rows, so this is quick now
            connection.execute(sql.SQL("VACUUM (ANALYZE) catvec_store.{}").format(sql.Identifier(model.table)))
            return _require_valid(connection, model)


def drop_index(connection: Connection, model: StoredModel) -> None:
    """Take the index away, and what broken off builds have left. Raises StoreError."""
    with translated():
        require_owner(connection, f"change the index of model {model.name!r}")
        with _turn(connection, model, Progress()):
            names = {*find_leftovers(connection, model)}
            if find_index(connection, model).exists:
                names.add(index_name(model))
            remove_indexes(connection, sorted(names))


def find_leftovers(connection: Connection, model: StoredModel) -> list[str]:
    """Indexes of broken off builds and replacements."""
    names = {"table": f"catvec_store.{model.table}", "name": index_name(model)}
    return [row[0] for row in connection.execute(LEFTOVERS, names).fetchall()]


def remove_indexes(connection: Connection, names: Sequence[str]) -> None:
    """Without stopping readers; waits for the transactions that may use them."""
    with session_settings(connection, {"lock_timeout": "0", "statement_timeout": "0"}):
        for name in names:
            connection.execute(
                sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS catvec_store.{}").format(sql.Identifier(name))
            )


def _require_valid(connection: Connection, model: StoredModel) -> IndexState:
    state = find_index(connection, model)
    if not state.is_valid:
        raise StoreError(f"index {state.name} is not valid after building", hint="run the same command again")
    return state


def _swap(connection: Connection, *, model: StoredModel, wanted: IndexSettings) -> None:
    connection.execute("SET LOCAL lock_timeout = '300ms'")
    name = index_name(model)
    for before, after in ((name, f"{name}_old"), (f"{name}_new", name)):
        connection.execute(
            sql.SQL("ALTER INDEX IF EXISTS catvec_store.{} RENAME TO {}").format(
                sql.Identifier(before), sql.Identifier(after)
            )
        )
    connection.execute(STORE_SETTINGS, (wanted.kind, wanted.m, wanted.ef_construction, model.model_id))


def _tidy(connection: Connection, model: StoredModel) -> None:
    """Remove what a broken off replacement has left beside a valid index, unless it is going on."""
    leftovers = find_leftovers(connection, model)
    if not leftovers or find_builder(connection, model) or not _try_lock(connection, model):
        return
    try:
        remove_indexes(connection, find_leftovers(connection, model))
    except psycopg.errors.InsufficientPrivilege as error:
        logger.debug("left for the owner to remove: %s: %s", ", ".join(leftovers), error)
    finally:
        _unlock(connection, model)


@contextmanager
def _turn(connection: Connection, model: StoredModel, progress: Progress) -> Iterator[None]:
    """Hold the lock on the model's index; whoever builds it now is waited for.

    Polled: a blocking lock beside a CREATE INDEX CONCURRENTLY is a deadlock.
    """
    is_told = False
    while not _try_lock(connection, model):
        is_told = _tell_waiting(connection, model, progress, is_told=is_told)
    try:
        while find_builder(connection, model) is not None:
            is_told = _tell_waiting(connection, model, progress, is_told=is_told)
        yield
    finally:
        _unlock(connection, model)


def _tell_waiting(connection: Connection, model: StoredModel, progress: Progress, *, is_told: bool) -> bool:
    pid = find_builder(connection, model)
    if pid is not None and not is_told:
        progress.begin(f"waiting for server process {pid}, which is at work on the index")
        logger.warning("index %s is being worked on by server process %s; waiting for it", index_name(model), pid)
    time.sleep(ASK_AGAIN_S)
    return is_told or pid is not None


def find_builder(connection: Connection, model: StoredModel) -> int | None:
    """The server process that is at work on the model's index for somebody else."""
    names = {"table": f"catvec_store.{model.table}", "model": model.name}
    row = connection.execute(BUILDERS, names).fetchone()
    return int(row[0]) if row else None


def _try_lock(connection: Connection, model: StoredModel) -> bool:
    return connection.execute(TRY_LOCK, {"model": model.name}).fetchone() == (True,)


def _unlock(connection: Connection, model: StoredModel) -> None:
    if not connection.closed:
        connection.execute(UNLOCK, {"model": model.name})
