"""Reading what failed, for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.rows import class_row

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.store.connect import Connection

# a URL may have a user and password before its host (law 10)
LIST = r"""
SELECT product_id, regexp_replace(url, '//[^/?#@\s]*@', '//***@') AS url, stage, code, detail, attempts,
       is_retryable, model, last_at
  FROM catvec.failures
 WHERE (%(code)s::text IS NULL OR code = %(code)s)
 ORDER BY last_at DESC, product_id, url
 LIMIT %(limit)s
"""

COUNT = """
SELECT stage, code, count(*) AS failures, min(detail) AS sample
  FROM catvec.failures
 GROUP BY stage, code
 ORDER BY count(*) DESC, stage, code
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFailure:
    """A row of catvec.failures."""

    product_id: str | None
    url: str
    stage: str
    code: str
    detail: str
    attempts: int
    is_retryable: bool
    model: str | None
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCount:
    """How often one code stands in catvec.failures, with the words of one of them."""

    stage: str
    code: str
    failures: int
    sample: str


def list_failures(connection: Connection, *, code: str | None = None, limit: int = 50) -> list[StoredFailure]:
    """The failures that stand now, newest first."""
    with connection.cursor(row_factory=class_row(StoredFailure)) as cursor:
        return cursor.execute(LIST, {"code": code, "limit": limit}).fetchall()


def count_failures(connection: Connection) -> list[FailureCount]:
    """The failures that stand now, by code, the most frequent first."""
    with connection.cursor(row_factory=class_row(FailureCount)) as cursor:
        return cursor.execute(COUNT).fetchall()
