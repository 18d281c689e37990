"""The record of runs, and the lock that lets one run at a time fill a model's table, or one for each share.

A run of the whole catalog holds the model's lock for itself. Shards hold it together, and each holds one of its own,
whose key says its number and of how many it is: so what overlaps excludes each other, and what does not runs side by
side. All these locks end with the connection, however that ends.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING, LiteralString

from psycopg.types.json import Jsonb

from pipeline import __version__
from pipeline.errors import LockedError

if TYPE_CHECKING:
    from pipeline.records import RunSummary
    from pipeline.shard import Shard
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)

LOCK_KEY = "hashtextextended('catvec:run:' || current_database() || ':' || %s, 0)"
TAKE_LOCK = f"SELECT pg_try_advisory_lock({LOCK_KEY})"

# Shards begin, end, and forget some vectors one after the other. Held for a moment: nothing is waited for with it.
TAKE_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('catvec:shards:' || current_database() || ':' || %s, 0))"
SHARE_LOCK = f"SELECT pg_try_advisory_lock_shared({LOCK_KEY})"
RELEASE_SHARED = f"SELECT pg_advisory_unlock_shared({LOCK_KEY})"
# the second form of advisory locks has two numbers; pg_locks shows them as they are, to everybody
SHARD_CLASS = "hashtext('catvec:shard:' || %s)"
TAKE_SHARD = f"SELECT pg_try_advisory_lock({SHARD_CLASS}, %s)"
NUMBERS = 10_000
"""the second number is that of all shards times this, and the shard's own"""
OTHER_COUNT = f"""
SELECT l.objid::bigint / {NUMBERS}
  FROM pg_locks l
 WHERE l.locktype = 'advisory'
   AND l.granted
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
   AND l.objsubid = 2
   AND l.classid::bigint = {SHARD_CLASS}::bigint & 4294967295
   AND l.objid::bigint / {NUMBERS} <> %s
 LIMIT 1
"""
# the other runs with this model, whole or shards
OTHERS = f"""
SELECT EXISTS (SELECT
                 FROM pg_locks l
                WHERE l.locktype = 'advisory'
                  AND l.granted
                  AND l.objsubid = 1
                  AND (l.classid::bigint << 32) | l.objid::bigint = {LOCK_KEY}
                  AND l.pid <> pg_backend_pid())
"""

IS_ALIVE = f"""
EXISTS (SELECT
          FROM pg_locks l
         WHERE l.locktype = 'advisory'
           AND l.granted
           AND l.mode = 'ExclusiveLock'
           AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
           AND CASE WHEN r.shard IS NULL
                    THEN l.objsubid = 1
                         AND (l.classid::bigint << 32) | l.objid::bigint = {LOCK_KEY.replace("%s", "r.model")}
                    ELSE l.objsubid = 2
                         AND l.classid::bigint = {SHARD_CLASS.replace("%s", "r.model")}::bigint & 4294967295
                         AND l.objid::bigint = split_part(r.shard, '/', 2)::bigint * {NUMBERS}
                                               + split_part(r.shard, '/', 1)::bigint END)
"""
"""whether run r of catvec.run_status holds its lock; pg_locks shows a key in two halves, and to everybody"""

RUNNING = """
SELECT r.host, r.pid, r.started_at, r.shard
  FROM catvec_store.runs r
  JOIN catvec_store.models m ON m.model_id = r.model_id
 WHERE m.name = %s
   AND r.state = 'running'
   AND (%s::text IS NULL OR r.shard = %s)
 ORDER BY r.run_id DESC
 LIMIT 1
"""

# Whoever holds the lock knows that no other run of this model lives; a shard knows it of its own number and of all
# that would overlap with it.
CLOSE_LOST = """
UPDATE catvec_store.runs
   SET state = 'lost', finished_at = heartbeat_at, error = 'the process or its connection disappeared'
 WHERE model_id = %(model_id)s
   AND state = 'running'
   AND (%(shard)s::text IS NULL
        OR shard IS NULL
        OR shard = %(shard)s
        OR split_part(shard, '/', 2) <> split_part(%(shard)s, '/', 2))
RETURNING run_id, host, pid, heartbeat_at
"""

BEGIN = """
INSERT INTO catvec_store.runs (model_id, catalog, shard, host, pid, version)
VALUES (%s, %s, %s, %s, %s, %s)
RETURNING run_id
"""

MARK_DONE = "UPDATE catvec_store.runs SET done_at = now(), heartbeat_at = now() WHERE run_id = %s"

# a shard that goes on, was stopped or was lost has a newer row than its last good one
OTHERS_DONE = """
SELECT count(latest.done_at)
  FROM (SELECT DISTINCT ON (r.shard) r.done_at
          FROM catvec_store.runs r
         WHERE r.model_id = %(model_id)s
           AND r.catalog = %(catalog)s
           AND r.shard <> %(shard)s
           AND split_part(r.shard, '/', 2) = split_part(%(shard)s, '/', 2)
         ORDER BY r.shard, r.run_id DESC) AS latest
"""

SYNCED = """
UPDATE catvec_store.runs
   SET seen = %s, unchanged = %s, failed = failed + %s, heartbeat_at = now()
 WHERE run_id = %s
"""

END = """
UPDATE catvec_store.runs
   SET state = %(state)s, error = %(error)s, finished_at = now(), heartbeat_at = now(),
       removed = coalesce((%(summary)s::jsonb ->> 'removed')::bigint, removed),
       unchanged = coalesce((%(summary)s::jsonb ->> 'unchanged')::bigint, unchanged),
       summary = %(summary)s
 WHERE run_id = %(run_id)s
"""

# so many failed that it says nothing of these images: the next run tries them again at once
RETRY_AT_ONCE = """
UPDATE catvec_store.failures
   SET next_try_at = now()
 WHERE run_id = %s
   AND stage IN ('fetch', 'decode')
"""


def take_lock(connection: Connection, model_name: str, shard: Shard | None = None) -> None:
    """Hold the lock on this model, or on a share under it, until the connection ends; it is in autocommit mode.

    Raises LockedError that names the holder.
    """
    if shard is not None:
        _take_shard(connection, model_name, shard)
    elif not _get(connection, TAKE_LOCK, model_name):
        raise _going_on(connection, model_name)


def _take_shard(connection: Connection, model_name: str, shard: Shard) -> None:
    with connection.transaction():  # the locks outlast it, the turn does not
        connection.execute(TAKE_TURN, (model_name,))
        if not _get(connection, SHARE_LOCK, model_name):
            raise _going_on(connection, model_name)
        other = connection.execute(OTHER_COUNT, (model_name, shard.count)).fetchone()
        if other is None and _get(connection, TAKE_SHARD, model_name, shard.count * NUMBERS + shard.number):
            return
        connection.execute(RELEASE_SHARED, (model_name,))
        if other is not None:
            raise _in_other_shares(connection, model_name, shard, other[0])
        raise _same_number(connection, model_name, shard)


def _get(connection: Connection, query: LiteralString, *values: object) -> bool:
    return connection.execute(query, values).fetchone() == (True,)


def _going_on(connection: Connection, model_name: str) -> LockedError:
    return LockedError(
        f"another run with model {model_name!r} is going on{_holder(connection, model_name)}",
        hint="wait until it is done (--wait 30m does), or stop it",
    )


def _same_number(connection: Connection, model_name: str, shard: Shard) -> LockedError:
    who = _holder(connection, model_name, shard)
    return LockedError(
        f"shard {shard} with model {model_name!r} is going on already{who}",
        hint=f"give every box another number of the {shard.count}, or wait until that one is done (--wait 30m does)",
    )


def _in_other_shares(connection: Connection, model_name: str, shard: Shard, count: int) -> LockedError:
    who = _holder(connection, model_name)
    return LockedError(
        f"another run with model {model_name!r} is going on in {count} shards{who}; shard {shard} overlaps with them",
        hint=f"take one of those {count}, or wait until they are done (--wait 30m does)",
    )


def _holder(connection: Connection, model_name: str, shard: Shard | None = None) -> str:
    """Who, as far as the runs table knows; a run whose catalog is still being opened is not there yet."""
    wanted = None if shard is None else str(shard)
    holder = connection.execute(RUNNING, (model_name, wanted, wanted)).fetchone()
    if holder is None:
        return ""
    host, pid, since, held = holder
    which = f" (shard {held})" if held and shard is None else ""
    return f": process {pid} on {host}{which}, since {since:%Y-%m-%d %H:%M:%S %Z}"


def is_alone(connection: Connection, model_name: str) -> bool:
    """Whether no other run with this model is going on; none begins before the caller's transaction ends."""
    connection.execute(TAKE_TURN, (model_name,))
    return not _get(connection, OTHERS, model_name)


def end_share(connection: Connection, model: StoredModel, catalog: str, run_id: int, shard: Shard) -> bool:
    """Note that a shard has seen its share through; whether it is the last one that had to."""
    connection.execute(TAKE_TURN, (model.name,))
    connection.execute(MARK_DONE, (run_id,))
    values = {"model_id": model.model_id, "catalog": catalog, "shard": str(shard)}
    return connection.execute(OTHERS_DONE, values).fetchone() == (shard.count - 1,)


def begin_run(connection: Connection, model: StoredModel, catalog: str, shard: Shard | None = None) -> int:
    """A new run; the caller holds the lock, so earlier ones that never ended are closed as lost."""
    share = None if shard is None else str(shard)
    lost_runs = connection.execute(CLOSE_LOST, {"model_id": model.model_id, "shard": share}).fetchall()
    for lost, host, pid, seen_at in lost_runs:
        logger.warning(
            "run %d was lost: process %d on %s was last seen at %s; this run goes on from there", lost, pid, host,
            f"{seen_at:%Y-%m-%d %H:%M:%S %Z}",
        )  # fmt: skip
    row = connection.execute(
        BEGIN, (model.model_id, catalog, share, socket.gethostname(), os.getpid(), __version__)
    ).fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING gives a row
    return int(row[0])


def record_synced(connection: Connection, run_id: int, *, seen: int, unchanged: int, failed: int) -> None:
    connection.execute(SYNCED, (seen, unchanged, failed, run_id))


def end_run(
    connection: Connection, run_id: int, state: str, *, error: str | None = None, summary: RunSummary | None = None
) -> None:
    """Close a run as finished, stopped (goes on next time) or failed."""
    stored = None if summary is None else Jsonb(asdict(summary))
    connection.execute(END, {"run_id": run_id, "state": state, "error": error, "summary": stored})


def retry_at_once(connection: Connection, run_id: int) -> None:
    """Make what this run could not fetch or decode due in the next one."""
    connection.execute(RETRY_AT_ONCE, (run_id,))
