"""What `catvec status` reads besides models and failures: runs, how old the oldest look at an image is, what waits.

The views of schema catvec are for everybody; coverage, checks and leftovers stand in the private tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql
from psycopg.rows import class_row

from pipeline.store.runs import IS_ALIVE

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

SEES_PRIVATE = """
SELECT has_schema_privilege(n.oid, 'USAGE')
       AND (SELECT bool_and(has_table_privilege(c.oid, 'SELECT'))
              FROM pg_class c
             WHERE c.relnamespace = n.oid
               AND c.relkind = 'r')
  FROM pg_namespace n
 WHERE n.nspname = 'catvec_store'
"""

# a run holds its lock while it lives; before its model is known it holds none
RUNS = f"""
SELECT r.run_id, r.model, r.catalog, r.shard, r.state,
       r.state = 'lost'
       OR r.state = 'running'
      AND r.model IS NOT NULL
      AND NOT {IS_ALIVE} AS is_lost,
       r.started_at, r.heartbeat_at, r.finished_at,
       extract(epoch FROM now() - r.heartbeat_at)::double precision AS heartbeat_age_s,
       r.host, r.pid, r.seen, r.unchanged, r.reused, r.embedded, r.failed, r.pending, r.checked, r.changed,
       r.deferred, r.removed, r.forgotten, r.images_per_s, r.stopped_by, r.error,
       coalesce(r.seconds, extract(epoch FROM r.finished_at - r.started_at))::double precision AS seconds
  FROM catvec.run_status r
 ORDER BY r.run_id DESC
 LIMIT %(limit)s
"""

# runs of older releases have no summary; then the clock is right enough
PAST_RUNS = """
SELECT r.model, r.catalog, r.shard, r.run_id, r.finished_at,
       coalesce(r.seconds, extract(epoch FROM r.finished_at - r.started_at))::double precision AS seconds, r.embedded,
       coalesce(r.failed::double precision / nullif(r.seen, 0), 0) AS failed_share
  FROM (SELECT s.*, row_number() OVER (PARTITION BY s.model, s.catalog, s.shard ORDER BY s.run_id DESC) AS place
          FROM catvec.run_status s
         WHERE s.state = 'finished'
           AND s.model IS NOT NULL) r
 WHERE r.place <= %(limit)s
 ORDER BY r.model, r.catalog, r.shard NULLS FIRST, r.run_id
"""

OLDEST_CHECK = """
SELECT min(i.checked_at)
  FROM catvec_store.images i
  JOIN catvec_store.{table} e ON e.content_sha256 = i.content_sha256
 WHERE i.active
   AND i.url ~* '^https?://'
"""

LEFTOVERS = """
SELECT p.products, i.images, v.vectors, least(p.since, i.since, v.since) AS since
  FROM (SELECT count(*) AS products, min(missing_since) AS since
          FROM catvec_store.products WHERE missing_since IS NOT NULL) p,
       (SELECT count(*) AS images, min(missing_since) AS since
          FROM catvec_store.images WHERE missing_since IS NOT NULL) i,
       (SELECT count(*) AS vectors, min(since) AS since
          FROM catvec_store.unused_contents) v
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A row of catvec.run_status, what the summary says among it: None where a run has no summary, or not yet.

    `is_lost`: its process or connection disappeared, whether or not a later run has closed it as lost.
    `seconds` None: still going on. `stopped_by` is max_runtime, failure_rate, SIGINT, SIGTERM or None.
    """

    run_id: int
    model: str | None
    catalog: str
    shard: str | None
    state: str
    is_lost: bool
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None
    heartbeat_age_s: float
    host: str
    pid: int
    seen: int
    unchanged: int
    reused: int
    embedded: int
    failed: int
    pending: int | None
    checked: int | None
    changed: int | None
    deferred: int | None
    removed: int
    forgotten: int | None
    seconds: float | None
    images_per_s: float | None
    stopped_by: str | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """What a finished run took; `failed_share` is of the images seen, 0 to 1."""

    model: str
    catalog: str
    shard: str | None
    run_id: int
    finished_at: datetime
    seconds: float
    embedded: int
    failed_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What left the catalog and waits to be deleted: products, images, and vectors of what no image shows any more.

    `since` is the oldest of them.
    """

    products: int
    images: int
    vectors: int
    since: datetime | None


def sees_private(connection: Connection) -> bool:
    """Whether this user may read the private tables: an owner or a writer, not a reader."""
    return connection.execute(SEES_PRIVATE).fetchone() == (True,)


def list_runs(connection: Connection, *, limit: int) -> list[RunStatus]:
    """The last runs, newest first."""
    with connection.cursor(row_factory=class_row(RunStatus)) as cursor:
        return cursor.execute(RUNS, {"limit": limit}).fetchall()


def list_past_runs(connection: Connection, *, limit: int) -> list[PastRun]:
    """The last finished runs of each model and catalog, or of each shard of it, oldest first."""
    with connection.cursor(row_factory=class_row(PastRun)) as cursor:
        return cursor.execute(PAST_RUNS, {"limit": limit}).fetchall()


def find_oldest_check(connection: Connection, model: StoredModel) -> datetime | None:
    """When the server of the URL image that was not looked at longest was asked last; None without such an image."""
    query = sql.SQL(OLDEST_CHECK).format(table=sql.Identifier(model.table))
    row = connection.execute(query).fetchone()
    return row[0] if row else None


def count_leftovers(connection: Connection) -> Leftovers:
    """What waits for the end of --forget-after."""
    with connection.cursor(row_factory=class_row(Leftovers)) as cursor:
        row = cursor.execute(LEFTOVERS).fetchone()
    return row or Leftovers(products=0, images=0, vectors=0, since=None)
