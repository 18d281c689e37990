"""Changing what apps are reading: short waits for a lock, many tries, and in the end who is in the way.

A statement that waits for a view makes every later reader of the view wait behind it. So it waits for a moment
only (the work sets its `lock_timeout`), lets those readers pass, and tries again.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg.rows import class_row

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from pipeline.store.connect import Connection

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0
"""with tries of 0.3 s, readers of the view are held up for at most a quarter of the time"""
HOLDERS_SHOWN = 3

# Who came later than 300 ms ago was not there while we waited. What another role's session does and since when is not
# for everybody to see: then only its pid, user and application are known. A prepared transaction has no process.
HOLDERS = """
SELECT l.pid, a.usename AS role, nullif(a.application_name, '') AS application, a.backend_type AS kind,
       min(a.xact_start) AS since
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'relation'
   AND l.granted
   AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
   AND l.pid IS DISTINCT FROM pg_backend_pid()
   AND (l.relation = ANY (SELECT to_regclass(name) FROM unnest(%(relations)s::text[]) AS name)
        OR l.relation = 'catvec_store.models'::regclass AND l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
   AND (a.xact_start IS NULL OR a.xact_start <= now() - interval '300 ms')
 GROUP BY l.pid, a.usename, a.application_name, a.backend_type
 ORDER BY since, l.pid
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A session that holds a lock; what this user may not see is None."""

    pid: int | None
    role: str | None
    application: str | None
    kind: str | None
    since: datetime | None

    def __str__(self) -> str:
        if self.pid is None:
            return "a prepared transaction (see pg_prepared_xacts)"
        words = [f"process {self.pid}"]
        if self.role:
            words.append(f"of user {self.role!r}")
        if self.application or self.kind not in {None, "client backend"}:
            words.append(f"({self.application or self.kind})")
        if self.since:
            words.append(f"since {self.since.astimezone():%Y-%m-%d %H:%M:%S}")
        return " ".join(words)


def keep_trying(
    connection: Connection,
    work: Callable[[Connection], Result],
    *,
    relations: Sequence[str],
    wait_s: float,
    is_option: bool = True,
) -> Result:
    """Do the work in one transaction, again while others hold what it locks, for `wait_s` seconds.

    `relations` are the tables and views that it locks against readers, none when it only changes the table of models;
    `connection` is in autocommit mode; `is_option` says that --wait set the time. Raises StoreError that names who is
    in the way.
    """
    deadline = time.monotonic() + max(0.0, wait_s)  # in this order nan is 0
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            with connection.transaction():
                return work(connection)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            holders = find_holders(connection, relations)
            if time.monotonic() + pause_s > deadline:
                raise _in_the_way(holders, relations, wait_s, is_option=is_option) from error
            level = logging.WARNING if pause_s == FIRST_PAUSE_S else logging.DEBUG
            logger.log(level, "waiting %.0f s at most for %s", wait_s, list_names(holders))
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def find_holders(connection: Connection, relations: Sequence[str]) -> list[Holder]:
    """Who else holds a lock on one of the relations or is changing the table of models, longest first."""
    with connection.cursor(row_factory=class_row(Holder)) as cursor:
        return cursor.execute(HOLDERS, {"relations": list(relations)}).fetchall()


def list_names(holders: Sequence[Holder]) -> str:
    if not holders:
        return "somebody who has just left"
    more = len(holders) - HOLDERS_SHOWN
    names = ", ".join(str(holder) for holder in holders[:HOLDERS_SHOWN])
    return f"{names} and {more} more" if more > 0 else names


def _in_the_way(holders: Sequence[Holder], relations: Sequence[str], wait_s: float, *, is_option: bool) -> StoreError:
    locked = " and ".join(relations) or "catvec_store.models"
    message = f"{locked} could not be locked within {wait_s:g} s: held by {list_names(holders)}"
    pids = [holder.pid for holder in holders if holder.pid is not None]
    if not pids:
        longer = ", or give it longer with --wait SECONDS" if is_option else ""
        return StoreError(message, hint=f"run the same command again{longer}")
    longer = " (--wait SECONDS waits longer)" if is_option else ""
    return StoreError(
        message,
        hint=f"nothing has changed; wait until that transaction ends and run the same command again{longer}, "
        f"or end it as its user or an administrator: SELECT pg_terminate_backend({pids[0]});",
    )
