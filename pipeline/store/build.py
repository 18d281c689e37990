"""One CREATE INDEX CONCURRENTLY of an HNSW index: memory, workers, what the server says meanwhile, what goes wrong.

`store/index.py` decides which index is made, when, and under which name.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pipeline.errors import StoreError
from pipeline.store.connect import connect, require_vector, translate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.progress import Progress
    from pipeline.store.connect import Connection
    from pipeline.store.index import IndexSettings
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)

# What the functions and views ask for, by kind of index and storage of the vectors. An index on anything else, be it
# one cast less, is not used; tests/store/test_index.py has the plans.
EXPRESSIONS = {
    ("hnsw", "halfvec"): "embedding {schema}.halfvec_cosine_ops",
    ("hnsw", "vector"): "(embedding::{schema}.halfvec({dims})) {schema}.halfvec_cosine_ops",
    ("binary", "halfvec"): "({schema}.binary_quantize(embedding::{schema}.halfvec)::bit({dims}))"
    " {schema}.bit_hamming_ops",
    ("binary", "vector"): "({schema}.binary_quantize(embedding::{schema}.halfvec({dims})::{schema}.halfvec)"
    "::bit({dims})) {schema}.bit_hamming_ops",
}

VIEWED = {"halfvec": "e.embedding", "vector": "e.embedding::halfvec({dims})"}
"""the embedding that the views show, by storage; the extension's schema is on the search_path where this is used"""

CREATE = """
CREATE INDEX CONCURRENTLY {name}
    ON catvec_store.{table}
 USING hnsw ({expression})
  WITH (m = {m}, ef_construction = {ef_construction})
"""

PROGRESS = """
SELECT p.phase, p.tuples_done, p.current_locker_pid
  FROM pg_stat_progress_create_index p
 WHERE (p.relid = to_regclass(%s) OR p.pid = %s)
   AND p.datname = current_database()
"""

NODE_BYTES, LINK_BYTES = 200, 32
"""of the graph while it is built, per row beside the vector itself and per row and m: 710 at m = 16 (measured)"""
LEAST_MEMORY_MB = 96
"""PostgreSQL gives each process of a parallel build at least 32 MB, and leaves processes out otherwise"""
MOST_MEMORY_MB = 2048
"""a graph that does not fit builds 6 times slower; beyond 2 GB (1.2 million rows of 512) that is the price, unless
the server or --memory allows more"""
WORKERS = 2
"""asked for beside the leader; the server gives what max_parallel_worker_processes and its cores allow"""
PARALLEL_ROWS = 10_000
"""fewer are indexed in a second by one process, which needs no shared memory"""
NOTICE_S = 2
"""after which a server process that builds for a client that is gone notices, and ends"""
WATCH_S = 0.5

SMALL_SHARED_MEMORY = "shared memory"
OUTGROWN = "hnsw graph no longer fits into maintenance_work_mem"


def create_index(
    connection: Connection,
    model: StoredModel,
    wanted: IndexSettings,
    name: str,
    progress: Progress,
    *,
    memory_mb: int | None = None,
) -> None:
    """Build the index under this name; nothing of it is left when that fails. Raises StoreError."""
    rows = count_vectors(connection, model)
    workers = WORKERS if rows >= PARALLEL_ROWS else 0
    settings = {
        # a build may take its time, and waits for the transactions of others to end
        "lock_timeout": "0",
        "statement_timeout": "0",
        "maintenance_work_mem": f"{memory_mb or _memory_mb(connection, model, wanted, rows)}MB",
    }
    progress.begin("building the index")
    progress.step(0, rows, unit="vectors")
    with session_settings(connection, settings), _notices_heard(connection), noticing_our_end(connection):
        try:
            _create(connection, model, wanted, name, workers=workers)
        except psycopg.Error as error:
            if not workers or SMALL_SHARED_MEMORY not in str(error):
                raise _explained(error) from error
            # parallel workers share the graph through /dev/shm, 64 MB in a container; one process needs none
            logger.warning("too little shared memory for a parallel index build; building with one process")
            _remove_rest(connection, name)
            _create(connection, model, wanted, name, workers=0)


def _create(connection: Connection, model: StoredModel, wanted: IndexSettings, name: str, *, workers: int) -> None:
    query = sql.SQL(CREATE).format(
        name=sql.Identifier(name),
        table=sql.Identifier(model.table),
        expression=index_expression(connection, model, wanted.kind),
        m=sql.Literal(wanted.m),
        ef_construction=sql.Literal(wanted.ef_construction),
    )
    with session_settings(connection, {"max_parallel_maintenance_workers": str(workers)}):
        try:
            connection.execute(query)
        except BaseException:
            # at once: it takes space on a disk that may be full, and a share of every write
            _remove_rest(connection, name)
            raise


def index_expression(connection: Connection, model: StoredModel, kind: str) -> sql.Composed:
    """What is indexed, with its operators; names in full, wherever the extension lives."""
    return sql.SQL(EXPRESSIONS[kind, model.storage]).format(
        schema=sql.Identifier(require_vector(connection)), dims=sql.Literal(model.dims)
    )


def vector_bytes(kind: str, dims: int) -> int:
    """Of one vector as the index holds it."""
    return 8 + (2 * dims if kind == "hnsw" else -(-dims // 8))


def count_vectors(connection: Connection, model: StoredModel) -> int:
    count = sql.SQL("SELECT count(*) FROM catvec_store.{}").format(sql.Identifier(model.table))
    [rows] = connection.execute(count).fetchone() or (0,)
    return int(rows)


def _memory_mb(connection: Connection, model: StoredModel, wanted: IndexSettings, rows: int) -> int:
    """Enough for the whole graph, within what is sensible."""
    row_bytes = vector_bytes(wanted.kind, model.dims) + NODE_BYTES + LINK_BYTES * wanted.m
    needed_mb = int(1.25 * rows * row_bytes) // 2**20 + 1
    setting = "SELECT pg_size_bytes(current_setting('maintenance_work_mem')) / 1048576"
    [allowed_mb] = connection.execute(setting).fetchone() or (0,)
    return min(max(needed_mb, LEAST_MEMORY_MB), max(MOST_MEMORY_MB, int(allowed_mb)))


@contextmanager
def session_settings(connection: Connection, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of the session, inside the block: what cannot run in a transaction has no SET LOCAL."""
    query = "SELECT set_config(name, value, false) FROM jsonb_each_text(%s) AS s (name, value)"
    before = {
        name: connection.execute("SELECT current_setting(%s)", (name,)).fetchone()[0]  # type: ignore[index]
        for name in settings
    }
    connection.execute(query, (Jsonb(settings),))
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute(query, (Jsonb(before),))


@contextmanager
def noticing_our_end(connection: Connection) -> Iterator[None]:
    """Let the server process end soon after this one is killed; without it a build goes on for nobody."""
    with ExitStack() as stack:
        try:
            watch = {"client_connection_check_interval": f"{NOTICE_S}s"}
            stack.enter_context(session_settings(connection, watch))
        except psycopg.DatabaseError as error:
            # not on every system, and not before PostgreSQL 14: then its work is waited for
            logger.debug("the server cannot watch its clients: %s", error)
        yield


@contextmanager
def _notices_heard(connection: Connection) -> Iterator[None]:
    """Pass on what the server remarks while it builds, in our words."""

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        text = notice.message_primary or ""
        if text.startswith(OUTGROWN):
            after = text.removeprefix(OUTGROWN).strip()
            logger.warning(
                "the graph does not fit into the memory for the build any more (%s): the rest is built several times "
                "slower; give it more with catvec index rebuild --memory MB",
                after,
            )
        else:
            logger.info("the server remarks: %s", text)

    connection.add_notice_handler(hear)
    try:
        yield
    finally:
        connection.remove_notice_handler(hear)


def _remove_rest(connection: Connection, name: str) -> None:
    """Drop what a failed build leaves, if that is quick; else the next command does."""
    if connection.closed:
        return
    with suppress(psycopg.Error), session_settings(connection, {"lock_timeout": "2s", "statement_timeout": "5s"}):
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS catvec_store.{}").format(sql.Identifier(name)))


def _explained(error: psycopg.Error) -> StoreError:
    message = error.diag.message_primary or " ".join(str(error).split())
    # a file that reaches a limit of its size has no SQLSTATE of its own
    if error.sqlstate == "53100" or message.startswith("could not extend file"):
        return StoreError(
            f"the index does not fit on the database server's disk: {message}",
            hint="free some space there, then run the same command again; vectors and searches are unharmed",
        )
    if not error.sqlstate or error.sqlstate.startswith(("08", "57P")):
        return StoreError(
            f"the connection was lost while the index was built: {message}",
            hint="run the same command again; what is left of this build is removed first",
        )
    return translate(error)


@contextmanager
def watched(url: str, model: StoredModel, progress: Progress, *, builder: int | None = None) -> Iterator[None]:
    """Inside the block, `progress` follows whatever index of the model's table the server builds.

    Also those of other tables that the server process `builder` builds.
    """
    ended = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(url, model, builder, progress, ended), name="index progress", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(url: str, model: StoredModel, builder: int | None, progress: Progress, ended: threading.Event) -> None:
    try:
        with connect(url) as connection:
            while not ended.wait(WATCH_S):
                row = connection.execute(PROGRESS, (f"catvec_store.{model.table}", builder)).fetchone()
                if row is not None:
                    _tell(progress, *row)
    except (psycopg.Error, StoreError) as error:
        # the build does not depend on being watched
        logger.debug("the build cannot be watched: %s", error)


def _tell(progress: Progress, phase: str, done: int, locker: int | None) -> None:
    steps = progress.snapshot().steps
    if steps is None:
        return
    who = f" (server process {locker})" if locker else ""
    if phase.startswith("building index"):
        progress.step(max(min(done, steps.total), steps.done), steps.total, unit=steps.unit)
    elif phase.startswith("index validation"):
        # it counts something else anew; all vectors are in the graph by now
        progress.step(steps.total, steps.total, unit=steps.unit, waits_for=phase)
    else:
        progress.step(steps.done, steps.total, unit=steps.unit, waits_for=f"{phase}{who}")
