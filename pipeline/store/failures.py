"""Reading what failed, for people, and making it due again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row, dict_row

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.store.connect import Connection

SAMPLES = 3
"""failures that stand for all of a group"""

# Law 10: a URL may have a user and password before its host, and a token or signature among its parameters. A data
# URI is a whole image, of which the beginning says enough.
SHOWN_URL = r"""
       CASE WHEN v.url ~* '^data:' THEN left(v.url, 60) || CASE WHEN length(v.url) > 60 THEN '…' ELSE '' END
            ELSE regexp_replace(
                   regexp_replace(v.url, '^(\s*(?:[a-z][a-z0-9+.-]+:/+|//))[^/?#\s]*@', '\1***@', 'i'),
                   '([?&](?:[^=&#]*(?:token|secret|signature|credential|passw|pwd|auth|key|policy)[^=&#]*|sig)=)[^&#]*',
                   '\1***', 'gi')
        END
"""

# a host may be given with its port or without
MATCHES = """
       (%(code)s::text IS NULL OR v.code = %(code)s)
   AND (%(kind)s::text IS NULL OR v.kind = %(kind)s)
   AND (%(product_id)s::text IS NULL OR v.product_id = %(product_id)s)
   AND (%(catalog)s::text IS NULL OR v.catalog = %(catalog)s)
   AND (%(model)s::text IS NULL OR coalesce(v.model, %(model)s) = %(model)s)
   AND (%(host)s::text IS NULL OR lower(%(host)s) IN (lower(v.host), regexp_replace(lower(v.host), ':[0-9]+$', '')))
"""

LIST = f"""
SELECT v.product_id, {SHOWN_URL} AS url, v.host, v.stage, v.code, v.kind, v.detail, v.attempts, v.is_retryable,
       v.model, v.first_at, v.last_at, v.next_try_at, coalesce(v.next_try_at <= now(), false) AS is_due
  FROM catvec.failures v
 WHERE {MATCHES}
 ORDER BY v.last_at DESC, v.product_id, v.url
 LIMIT %(limit)s
"""

GROUP = f"""
SELECT v.code, v.host, v.stage, v.kind, count(*) AS failures, count(*) FILTER (WHERE v.next_try_at <= now()) AS due,
       min(v.attempts) AS attempts_least, max(v.attempts) AS attempts_most, min(v.next_try_at) AS next_try_at,
       jsonb_agg(jsonb_build_object('product_id', v.product_id, 'url', {SHOWN_URL}, 'detail', v.detail)
                 ORDER BY v.place) FILTER (WHERE v.place <= {SAMPLES}) AS samples
  FROM (SELECT v.*, row_number() OVER (PARTITION BY v.code, v.host, v.stage, v.kind
                                           ORDER BY v.last_at DESC, v.product_id, v.url) AS place
          FROM catvec.failures v
         WHERE {MATCHES}) v
 GROUP BY v.code, v.host, v.stage, v.kind
 ORDER BY count(*) DESC, v.code, v.host, v.stage, v.kind
"""

# rows of the catalog are read with every run, so they are neither
COUNT = """
SELECT v.stage, v.code, count(*) AS failures, count(*) FILTER (WHERE v.next_try_at <= now()) AS due,
       count(*) FILTER (WHERE v.stage <> 'catalog' AND (v.next_try_at <= now()) IS NOT TRUE) AS deferred,
       min(v.detail) AS sample
  FROM catvec.failures v
 GROUP BY v.stage, v.code
 ORDER BY count(*) DESC, v.stage, v.code
"""

# through the view, which knows what stands and what its host is
RETRY = f"""
UPDATE catvec_store.failures f
   SET next_try_at = now()
  FROM catvec_store.images i, catvec_store.models m
 WHERE i.image_id = f.image_id
   AND m.model_id = f.model_id
   AND EXISTS (SELECT
                 FROM catvec.failures v
                WHERE v.product_id = i.product_id
                  AND v.url = i.url
                  AND v.model = m.name
                  AND {MATCHES})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureFilter:
    """Which failures are meant; None leaves that column open. `host` may be given without its port; the rows of a
    catalog are those of every `model`."""

    code: str | None = None
    host: str | None = None
    kind: str | None = None
    product_id: str | None = None
    catalog: str | None = None
    model: str | None = None


EVERYTHING = FailureFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFailure:
    """A row of catvec.failures. `next_try_at` None: not by the clock alone. `is_due`: the next run tries it."""

    product_id: str | None
    url: str
    host: str | None
    stage: str
    code: str
    kind: str
    detail: str
    attempts: int
    is_retryable: bool
    model: str | None
    first_at: datetime
    last_at: datetime
    next_try_at: datetime | None
    is_due: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureSample:
    """One failure of a group."""

    product_id: str | None
    url: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """The failures of one code at one host, with the newest of them. `next_try_at` is the earliest."""

    code: str
    host: str | None
    stage: str
    kind: str
    failures: int
    due: int
    attempts_least: int
    attempts_most: int
    next_try_at: datetime | None
    samples: tuple[FailureSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCount:
    """How often one code stands in catvec.failures, with the words of one of them.

    `due` are tried in the next run by the clock, `deferred` are not; rows of the catalog are neither.
    """

    stage: str
    code: str
    failures: int
    due: int
    deferred: int
    sample: str


def list_failures(
    connection: Connection, wanted: FailureFilter = EVERYTHING, *, limit: int = 50
) -> list[StoredFailure]:
    """The failures that stand now, newest first."""
    with connection.cursor(row_factory=class_row(StoredFailure)) as cursor:
        return cursor.execute(LIST, {**asdict(wanted), "limit": limit}).fetchall()


def group_failures(connection: Connection, wanted: FailureFilter = EVERYTHING) -> list[FailureGroup]:
    """The failures that stand now by code and host, the most frequent first."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return [_group(row) for row in cursor.execute(GROUP, asdict(wanted))]


def _group(row: dict[str, Any]) -> FailureGroup:
    samples = tuple(FailureSample(**sample) for sample in row["samples"])
    return FailureGroup(**{**row, "samples": samples})


def count_failures(connection: Connection) -> list[FailureCount]:
    """The failures that stand now, by code, the most frequent first."""
    with connection.cursor(row_factory=class_row(FailureCount)) as cursor:
        return cursor.execute(COUNT).fetchall()


def retry_failures(connection: Connection, wanted: FailureFilter = EVERYTHING) -> int:
    """Make these failures due in the next run, in the caller's transaction; returns how many images they are.

    Rows of the catalog are no part of it: every run reads them anew.
    """
    return connection.execute(RETRY, asdict(wanted)).rowcount
