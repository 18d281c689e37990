"""The record of runs, and the lock that lets one run at a time fill a model's table."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from pipeline import __version__
from pipeline.errors import LockedError

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

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
"""

BEGIN = """
INSERT INTO catvec_store.runs (model_id, catalog, host, pid, version)
VALUES (%s, %s, %s, %s, %s)
RETURNING run_id
"""

SYNCED = """
UPDATE catvec_store.runs
   SET seen = %s, unchanged = %s, failed = failed + %s, removed = %s, heartbeat_at = now()
 WHERE run_id = %s
"""

END = """
UPDATE catvec_store.runs
   SET state = %s, error = %s, finished_at = now(), heartbeat_at = now()
 WHERE run_id = %s
"""

LIST = """
SELECT run_id, model, catalog, state, started_at, finished_at, host, pid, seen, unchanged, reused, embedded, failed,
       removed, error
  FROM catvec.run_status
 ORDER BY run_id DESC
 LIMIT %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A row of catvec.run_status."""

    run_id: int
    model: str | None
    catalog: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    host: str
    pid: int
    seen: int
    unchanged: int
    reused: int
    embedded: int
    failed: int
    removed: int
    error: str | None


def take_lock(connection: Connection, model_name: str) -> None:
    """Hold the lock on this model until the connection ends. Raises LockedError that names the holder."""
    if connection.execute(TAKE_LOCK, (model_name,)).fetchone() == (True,):
        return
    holder = connection.execute(RUNNING, (model_name,)).fetchone()
    who = f": process {holder[1]} on {holder[0]}, since {holder[2]:%Y-%m-%d %H:%M:%S %Z}" if holder else ""
    raise LockedError(
        f"another run with model {model_name!r} is going on{who}", hint="wait until it is done, or stop it"
    )


def begin_run(connection: Connection, model: StoredModel, catalog: str) -> int:
    """A new run; the caller holds the lock, so earlier runs that never ended are closed as lost."""
    connection.execute(CLOSE_LOST, (model.model_id,))
    row = connection.execute(
        BEGIN, (model.model_id, catalog, socket.gethostname(), os.getpid(), __version__)
    ).fetchone()
    assert row is not None  # noqa: S101 - INSERT … RETURNING gives a row
    return int(row[0])


def record_synced(
    connection: Connection, run_id: int, *, seen: int, unchanged: int, failed: int, removed: int
) -> None:
    connection.execute(SYNCED, (seen, unchanged, failed, removed, run_id))


def end_run(connection: Connection, run_id: int, state: str, error: str | None = None) -> None:
    """Close a run as finished, stopped (goes on next time) or failed."""
    connection.execute(END, (state, error, run_id))


def list_runs(connection: Connection, *, limit: int = 10) -> list[Run]:
    """The last runs, newest first."""
    with connection.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(LIST, (limit,)).fetchall()
