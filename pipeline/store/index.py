"""The HNSW index of a model's vector table: whether it is there, building, replacing and dropping it.

It is built after the load, not maintained during it (91,000 rows/s without it, 1,000 with), and CONCURRENTLY, so
that apps go on reading. One build of a model's index at a time: a lock, held by the server process that builds, says
so even when the client that asked for it is gone. `store/build.py` makes the index itself.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from pipeline.errors import ConfigError, StoreError
from pipeline.progress import Progress
from pipeline.store.build import create_index, session_settings
from pipeline.store.connect import translated
from pipeline.store.locks import find_holders, keep_trying, list_names
from pipeline.store.roles import require_owner

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)

INDEXES = """
SELECT c.relname AS name, true AS exists, x.indisvalid AS is_valid,
       EXISTS (SELECT
                 FROM pg_stat_progress_create_index p
                WHERE p.relid = x.indrelid
                  AND p.datname = current_database()) AS is_being_built,
       pg_relation_size(c.oid) AS size_bytes,
       CASE WHEN a.amname = 'hnsw' AND x.indpred IS NULL
            THEN CASE o.opcname WHEN 'halfvec_cosine_ops' THEN 'hnsw' WHEN 'bit_hamming_ops' THEN 'binary' END
        END AS kind,
       -- what is not said there is pgvector's default
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions) WHERE option_name = 'm'),
                '16')::integer AS m,
       coalesce((SELECT option_value FROM pg_options_to_table(c.reloptions) WHERE option_name = 'ef_construction'),
                '64')::integer AS ef_construction
  FROM pg_index x
  JOIN pg_class c ON c.oid = x.indexrelid
  JOIN pg_am a ON a.oid = c.relam
  JOIN pg_opclass o ON o.oid = x.indclass[0]
 WHERE x.indrelid = to_regclass(%(table)s)
   AND (a.amname = 'hnsw' OR c.relname = %(name)s)
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

# what was tuned was another index; 100 is what a new model has, see migrations/sql
STORE_SETTINGS = """
UPDATE catvec_store.models
   SET index_kind = %(kind)s, index_m = %(m)s, index_ef_construction = %(ef_construction)s,
       ef_search = 100, tuned_at = NULL
 WHERE model_id = %(model_id)s
   AND (index_kind, index_m, index_ef_construction) IS DISTINCT FROM (%(kind)s, %(m)s, %(ef_construction)s)
"""

ASK_AGAIN_S = 0.5
UNTOLD_WAIT_S = 1
"""that dropping an index may wait for readers before they are named"""


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
    kind: str | None
    m: int | None
    ef_construction: int | None

    def is_as(self, wanted: IndexSettings) -> bool:
        """Whether searches can use it and it was made so."""
        made = (self.kind, self.m, self.ef_construction)
        return self.is_valid and made == (wanted.kind, wanted.m, wanted.ef_construction)


def index_name(model: StoredModel) -> str:
    return f"{model.table}_hnsw"


def settings_of(model: StoredModel) -> IndexSettings:
    """How the model's index is to be made."""
    return IndexSettings(kind=model.index_kind, m=model.index_m, ef_construction=model.index_ef_construction)


def find_index(connection: Connection, model: StoredModel) -> IndexState:
    """The index that the functions use, whatever its name, else what has its name, be it there or not."""
    name = index_name(model)
    states = _list_indexes(connection, model)
    named = [state for state in states if state.name == name]
    others = [state for state in states if state.name != name and not _is_leftover(state, name)]
    usable = [state for state in (*named, *others) if state.is_valid and state.kind == model.index_kind]
    missing = IndexState(
        name=name,
        exists=False,
        is_valid=False,
        is_being_built=False,
        size_bytes=0,
        kind=None,
        m=None,
        ef_construction=None,
    )
    return next(iter((*usable, *named)), missing)


def find_leftovers(connection: Connection, model: StoredModel) -> list[str]:
    """Indexes of broken off builds and replacements, ours or a REINDEX CONCURRENTLY: written to, but never needed."""
    name = index_name(model)
    return [state.name for state in _list_indexes(connection, model) if _is_leftover(state, name)]


def _is_leftover(state: IndexState, name: str) -> bool:
    if state.name in {f"{name}_new", f"{name}_old"}:
        return True
    return not state.is_valid and (state.name == name or state.name.startswith(f"{name}_cc"))


def _list_indexes(connection: Connection, model: StoredModel) -> list[IndexState]:
    """The HNSW indexes of the model's table, and whatever has the name of its index."""
    names = {"table": f"catvec_store.{model.table}", "name": index_name(model)}
    with connection.cursor(row_factory=class_row(IndexState)) as cursor:
        return cursor.execute(INDEXES, names).fetchall()


def refresh_statistics(connection: Connection, model: StoredModel, *, if_free: bool = False) -> None:
    """Let the planner see what a load brought.

    `if_free` passes over a table that somebody builds an index on: to wait for that inside a transaction is a
    deadlock with it.

    Until autovacuum comes by, in a minute or in an hour, it takes the new tables for nearly empty, and then reads
    them row by row instead of through the index (seen with 6,000 products).
    """
    for table in (model.table, "images", "products"):
        options = sql.SQL("(SKIP_LOCKED) " if if_free else "")
        connection.execute(sql.SQL("ANALYZE {}catvec_store.{}").format(options, sql.Identifier(table)))


def build_index(
    connection: Connection,
    model: StoredModel,
    progress: Progress | None = None,
    *,
    wanted: IndexSettings | None = None,
    memory_mb: int | None = None,
    wait_s: float = 60.0,
) -> IndexState:
    """Have a valid index of the `wanted` settings, making it when there is none; `connection` is in autocommit mode.

    Without `wanted` any that the functions use will do, and a new one is made as the model says. A build that goes on
    elsewhere is waited for. What builds that broke off have left is removed. `memory_mb` is what the graph may take
    while it is built, None computes it. Raises StoreError.
    """
    with translated():
        state = find_index(connection, model)
        if state.name == index_name(model) and _suits(state, model, wanted):
            _tidy(connection, model)
            return state
        make = _Making(model=model, wanted=wanted or settings_of(model), memory_mb=memory_mb, wait_s=wait_s)
        progress = progress or Progress()
        with _turn(connection, model, progress):
            make.prepare(connection)
            if not _suits(find_index(connection, model), model, wanted):
                make.renew(connection, progress)
            return _require_valid(connection, model)


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
    make = _Making(model=model, wanted=wanted, memory_mb=memory_mb, wait_s=wait_s)
    progress = progress or Progress()
    with translated(), _turn(connection, model, progress):
        make.prepare(connection)
        make.renew(connection, progress)
        return _require_valid(connection, model)


def _suits(state: IndexState, model: StoredModel, wanted: IndexSettings | None) -> bool:
    if wanted is None:
        return state.is_valid and state.kind == model.index_kind
    return state.is_as(wanted) and wanted == settings_of(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """An index as it is to be made, by whoever has the turn."""

    model: StoredModel
    wanted: IndexSettings
    memory_mb: int | None
    wait_s: float

    @property
    def name(self) -> str:
        return index_name(self.model)

    def prepare(self, connection: Connection) -> None:
        """Remove what is left of other builds, but a finished one; give the index that is used its name back."""
        ready = self._find_ready(connection)
        _remove_leftovers(connection, self.model, keep=ready)
        _require_free(connection, self.model, ready)
        found = find_index(connection, self.model)
        if found.exists and found.name != self.name:
            logger.warning("index %s is used by searches; it gets its name back: %s", found.name, self.name)
            self._swap(connection, found.name, settings_of(self.model))
            remove_indexes(connection, self.model, [f"{self.name}_old"])

    def renew(self, connection: Connection, progress: Progress) -> None:
        """Build the index, beside the one that stands if there is one, and let it take its place."""
        new = self._find_ready(connection)
        if new is None:
            new = f"{self.name}_new" if find_index(connection, self.model).exists else self.name
            create_index(connection, self.model, self.wanted, new, progress, memory_mb=self.memory_mb)
        self._swap(connection, new, self.wanted)
        if new == self.name:
            return
        progress.begin("removing the old index and dead rows")
        remove_indexes(connection, self.model, [f"{self.name}_old"])
        # a fresh index knows no dead rows, so this is quick now
        connection.execute(sql.SQL("VACUUM (ANALYZE) catvec_store.{}").format(sql.Identifier(self.model.table)))

    def _find_ready(self, connection: Connection) -> str | None:
        """What a replacement has built that could not take its place."""
        name = f"{self.name}_new"
        states = _list_indexes(connection, self.model)
        return next((name for state in states if state.name == name and state.is_as(self.wanted)), None)

    def _swap(self, connection: Connection, new: str, settings: IndexSettings) -> None:
        swap = partial(_rename, model=self.model, new=new, settings=settings)
        try:
            # no relation is locked against readers, only the model's row against other changes
            keep_trying(connection, swap, relations=(), wait_s=self.wait_s)
        except StoreError as error:
            raise StoreError(
                error.message,
                hint=f"searches go on as before; index {new} is ready: when that transaction has ended, run the same "
                "command again, and it takes its place without another build",
            ) from error


def drop_index(connection: Connection, model: StoredModel) -> None:
    """Take the index away, and what broken off builds have left. Raises StoreError."""
    with translated(), _turn(connection, model, Progress()):
        names = {*find_leftovers(connection, model)}
        found = find_index(connection, model)
        if found.exists:
            names.add(found.name)
        remove_indexes(connection, model, sorted(names))


def remove_indexes(connection: Connection, model: StoredModel, names: Sequence[str]) -> None:
    """Without stopping readers; waits for the transactions that may use them, and says for which."""
    for name in names:
        try:
            _drop(connection, name, lock_timeout=f"{UNTOLD_WAIT_S}s")
        except psycopg.errors.LockNotAvailable:
            holders = find_holders(connection, [f"catvec_store.{model.table}"])
            logger.warning("index %s goes as soon as the transactions have ended of %s", name, list_names(holders))
            _drop(connection, name, lock_timeout="0")


def _drop(connection: Connection, name: str, *, lock_timeout: str) -> None:
    """Broken off, it leaves an index that is not read any more, and that the next one removes."""
    with session_settings(connection, {"lock_timeout": lock_timeout, "statement_timeout": "0"}):
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS catvec_store.{}").format(sql.Identifier(name)))


def _remove_leftovers(connection: Connection, model: StoredModel, *, keep: str | None = None) -> None:
    names = [name for name in find_leftovers(connection, model) if name != keep]
    if names:
        logger.warning("removing %s, which a build or a rebuild that broke off has left", ", ".join(names))
        remove_indexes(connection, model, names)


def _require_free(connection: Connection, model: StoredModel, ready: str | None) -> None:
    """What is none of our indexes is not removed. Raises StoreError."""
    for name in (f"{index_name(model)}_new", f"{index_name(model)}_old"):
        row = connection.execute("SELECT to_regclass(%s) IS NULL", (f"catvec_store.{name}",)).fetchone()
        if row == (False,) and name != ready:
            raise StoreError(
                f"catvec_store.{name} is not one of catvec's indexes, and has the name that a new one needs",
                hint=f"run the same command again after: ALTER INDEX catvec_store.{name} RENAME TO …",
            )


def _require_valid(connection: Connection, model: StoredModel) -> IndexState:
    state = find_index(connection, model)
    if not state.is_valid:
        raise StoreError(f"index {state.name} is not valid after building", hint="run the same command again")
    return state


def _rename(connection: Connection, *, model: StoredModel, new: str, settings: IndexSettings) -> None:
    """Give an index the name of the model's, and the model its settings."""
    connection.execute("SET LOCAL lock_timeout = '300ms'")
    name = index_name(model)
    if new != name:
        for before, after in ((name, f"{name}_old"), (new, name)):
            connection.execute(
                sql.SQL("ALTER INDEX IF EXISTS catvec_store.{} RENAME TO {}").format(
                    sql.Identifier(before), sql.Identifier(after)
                )
            )
    connection.execute(STORE_SETTINGS, {**asdict(settings), "model_id": model.model_id})


def _tidy(connection: Connection, model: StoredModel) -> None:
    """Remove what a broken off replacement has left beside a valid index, unless it is going on."""
    leftovers = find_leftovers(connection, model)
    if not leftovers or find_builder(connection, model) or not _try_lock(connection, model):
        return
    try:
        _remove_leftovers(connection, model)
    except psycopg.errors.InsufficientPrivilege as error:
        logger.debug("left for the owner to remove: %s: %s", ", ".join(leftovers), error)
    finally:
        _unlock(connection, model)


@contextmanager
def _turn(connection: Connection, model: StoredModel, progress: Progress) -> Iterator[None]:
    """Hold the lock on the model's index, which is its owner's; whoever builds it now is waited for.

    Polled: a blocking lock beside a CREATE INDEX CONCURRENTLY is a deadlock. Raises StoreError.
    """
    require_owner(connection, f"change the index of model {model.name!r}")
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
        progress.begin("waiting")
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
