"""What may stand between us and the server: a pooler such as PgBouncer, and whether it leaves a session in one piece.

In session mode a client keeps its server process, and all is as if there were no pooler. In transaction mode each
transaction may reach another one: fine for searches, which leave nothing set behind, but what belongs to a session
(the lock of a run, the settings of an index build) is then left with somebody else.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.store.connect import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.store.connect import Connection

ASK = "SELECT pg_backend_pid()"
ROUNDS = 25
PAUSE_S = 0.005
"""at most, and by chance: the clients of a busy pool meet its processes in turn, so that asking in step with them
showed always the same one"""


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between: it makes up the process number that clients are told on connecting."""
    return connection.info.backend_pid != _server_process(connection)


def require_session(connection: Connection, url: str) -> None:
    """Raise StoreError when `connection`, made with `url` and in autocommit mode, is no session of its own."""
    if is_pooled(connection) and _is_shared(connection, url):
        raise StoreError(
            "a pooler in transaction mode stands between here and the database: what belongs to a session, such as "
            "the lock of a run, does not hold",
            hint="give --db the server's own address and port, or the pooler's in session mode; searches may go on "
            "through this one",
        )


def holding(url: str, take: Callable[[Connection], None]) -> Callable[[Connection], None]:
    """What a `Session` of this URL does on connecting to hold a lock until it ends: `take` it, where sessions hold.

    Through a pooler in transaction mode it would stay behind with the pooler's own connection, and lock everybody
    out: so that is refused with StoreError before.
    """

    def on_connect(connection: Connection) -> None:
        require_session(connection, url)
        take(connection)

    return on_connect


def _is_shared(connection: Connection, url: str) -> bool:
    """Whether two clients meet the same server process, or one client meets several."""
    own = _server_process(connection)
    with connect(url) as other:
        for _ in range(ROUNDS):
            if _server_process(other) == own or _server_process(connection) != own:
                return True
            time.sleep(random.uniform(0, PAUSE_S))  # noqa: S311 - no secret
    return False


def _server_process(connection: Connection) -> int:
    row = connection.execute(ASK).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM gives a row
    return int(row[0])
