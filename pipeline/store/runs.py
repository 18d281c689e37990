"""The record of runs, and the lock that lets one run at a time fill a model's table."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING

from psycopg.types.json import Jsonb

from pipeline import __version__
from pipeline.errors import LockedError

if TYPE_CHECKING:
    from pipeline.records import RunSummary
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)

LOCK_KEY = "hashtextextended('catvec:run:' || current_database() || ':' || %s, 0)"
TAKE_LOCK = f"SELECT pg_try_advisory_lock({LOCK_KEY})"

RUNNING = """
SELECT r.host, r.pid, r.started_at
  FROM catvec_store.runs r
  JOIN catvec_store.models m ON m.model_id = r.model_id
 WHERE m.name = %s
   AND r.state = 'running'
 ORDER BY r.run_id DESC
 LIMIT 1
"""

# whoever holds the lock knows that no other run of this model lives
CLOSE_LOST = """
UPDATE catvec_store.runs
   SET state = 'lost', finished_at = heartbeat_at, error = 'the process or its connection disappeared'
 WHERE model_id = %s
   AND state = 'running'
RETURNING run_id, host, pid, heartbeat_at
"""

BEGIN = """
INSERT INTO catvec_store.runs (model_id, catalog, host, pid, version)
VALUES (%s, %s, %s, %s, %s)
RETURNING run_id
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


def take_lock(connection: Connection, model_name: str) -> None:
    """Hold the lock on this model until the connection ends. Raises LockedError that names the holder."""
    if connection.execute(TAKE_LOCK, (model_name,)).fetchone() == (True,):
        return
    holder = connection.execute(RUNNING, (model_name,)).fetchone()
    who = f": process {holder[1]} on {holder[0]}, since {holder[2]:%Y-%m-%d %H:%M:%S %Z}" if holder else ""
    raise LockedError(
        f"another run with model {model_name!r} is going on{who}",
        hint="wait until it is done (--wait 30m does), or stop it",
    )


def begin_run(connection: Connection, model: StoredModel, catalog: str) -> int:
    """A new run; the caller holds the lock, so earlier ones that never ended are closed as lost."""
    for lost, host, pid, seen_at in connection.execute(CLOSE_LOST, (model.model_id,)).fetchall():
        logger.warning(
            "run %d was lost: process %d on %s was last seen at %s; this run goes on from there", lost, pid, host,
            f"{seen_at:%Y-%m-%d %H:%M:%S %Z}",
        )  # fmt: skip
    row = connection.execute(
        BEGIN, (model.model_id, catalog, socket.gethostname(), os.getpid(), __version__)
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
