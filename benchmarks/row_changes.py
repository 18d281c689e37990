"""How many rows of a table were ever written, by PostgreSQL's own statistics."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store.connect import Connection

SETTLE_S = 10.0

CHANGES = "SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relid = to_regclass(%s)"

OTHERS = """
SELECT count(*)
  FROM pg_stat_activity
 WHERE datname = current_database()
   AND application_name LIKE 'catvec %'
   AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Rows of one table written since it was made, or between two moments."""

    inserted: int
    updated: int
    deleted: int

    def __sub__(self, before: Changes) -> Changes:
        return Changes(
            inserted=self.inserted - before.inserted,
            updated=self.updated - before.updated,
            deleted=self.deleted - before.deleted,
        )


NONE = Changes(inserted=0, updated=0, deleted=0)


def count_changes(connection: Connection, table: str) -> Changes:
    """Those of `table`, such as catvec_store.images; none when it does not exist."""
    settle(connection)
    row = connection.execute(CHANGES, (table,)).fetchone()
    return Changes(inserted=row[0], updated=row[1], deleted=row[2]) if row else NONE


def settle(connection: Connection) -> None:
    """Wait until catvec's other connections are gone: a backend reports its counts when it ends."""
    deadline = time.monotonic() + SETTLE_S
    while connection.execute(OTHERS).fetchone() != (0,):
        if time.monotonic() > deadline:
            raise SystemExit(f"other catvec connections are still open after {SETTLE_S:g} s")
        time.sleep(0.1)
