"""Connections to the database with the vectors: opening them, naming what is wrong, riding out a lost one.

A `Session` is one connection that heals: work handed to `Session.run` is one transaction, done again from the
start when the server went away in the middle. So work must not change anything outside the database before it
returns.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, LiteralString, TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipeline import __version__
from pipeline.errors import AwayError, ConfigError, LockedError, StoreError
from pipeline.store.wire import VectorArray, VectorArrayDumper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple]  # type: ignore[type-arg]
Result = TypeVar("Result")

OLDEST_VECTOR = (0, 8, 0)
"""iterative scans came with pgvector 0.8.0; without them a filtered search returns too few rows"""

OUTAGE_S = 60.0
"""how long a lost server is waited for: a restart takes seconds, a failover about half a minute"""
RUN_OUTAGE_S = 600.0
"""the same in a run, whose device goes on meanwhile: managed databases are away for minutes when they are upgraded"""
CANCEL_S = 1.0
"""how long the server may take to hear that a statement is cancelled"""
CONNECT_S, CONNECT_AGAIN_S, CONNECT_LAST_S = 10, 5, 2
"""how long a server may take to answer: at first; when it went away, for it is tried again; when all is to stop
(libpq waits for no less)"""
UNANSWERED_MS = 30_000
"""when a network that swallows what is sent counts as lost; without it that takes Linux a quarter of an hour"""

GONE = ("08", "57P", "25006", "53300")
"""SQLSTATE prefixes that mean: the server went away or went read-only, and may come back"""
CONTENDED = ("40001", "40P01", "55P03")
"""serialization failure, deadlock, lock timeout: the same work succeeds later"""


SPELLING = (
    "write it as postgresql://user:password@host:5432/database, with @ : / ? % in a password as %40 %3A %2F %3F %25"
)
_UNKNOWN_OPTION = re.compile('invalid (?:URI query parameter:|connection option) "([a-z_]+)"')


def normalise_url(url: str) -> str:
    """The URL as psycopg wants it; SQLAlchemy's and Heroku's spellings are understood.

    Raises ConfigError when it is no PostgreSQL connection string, or cannot be the one that was meant.
    """
    if not url.strip():
        raise ConfigError("the database URL is empty", hint=SPELLING)
    scheme, separator, rest = url.partition("://")
    if separator and scheme in {"postgres", "postgresql+psycopg", "postgresql+psycopg2"}:
        url = f"postgresql://{rest}"
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        # not chained: libpq quotes what it stumbled over, which may be the password
        raise _not_a_url(url, str(error)) from None
    if _is_misread(url, parts):
        raise ConfigError(
            "the database URL cannot be read: its password ends early, or its port is no number", hint=SPELLING
        )
    return url


def _not_a_url(url: str, reason: str) -> ConfigError:
    unknown = _UNKNOWN_OPTION.search(reason)
    if unknown:
        return ConfigError(f"the database URL has the option {unknown[1]!r}, which PostgreSQL does not know")
    shown = url if re.fullmatch(r"[\w.-]+", url) else hide_password(url)
    return ConfigError(f"{shown!r} is not a PostgreSQL connection string", hint=SPELLING)


def _is_misread(url: str, parts: dict[str, Any]) -> bool:
    """Whether libpq took a piece of an unescaped password for the host, the port or the database."""
    path = url.partition("://")[2].partition("/")[2].partition("?")[0]
    host, port = str(parts.get("host") or ""), str(parts.get("port") or "")
    return "@" in path or ("@" in host and not host.startswith(("/", "@"))) or not re.fullmatch(r"[\d,]*", port)


def hide_password(url: str) -> str:
    """The URL without anything that could be a password, for messages."""
    scheme, separator, _ = url.partition("://")
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return f"{scheme}://…" if separator else "…"
    if _is_misread(url, parts):
        return "postgresql://…"
    place = f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}"
    return f"postgresql://{parts.get('user') or ''}@{place}/{parts.get('dbname') or ''}"


def connect(url: str, *, timeout_s: int = CONNECT_S) -> Connection:
    """A new connection in autocommit mode, without the vector types (`Session` registers them).

    The URL's own connect_timeout outweighs `timeout_s`. Raises ConfigError for what is no URL, and StoreError that
    says what is wrong and what to do.
    """
    url = normalise_url(url)
    timeout_s = int(conninfo_to_dict(url).get("connect_timeout") or timeout_s)
    try:
        return psycopg.connect(
            make_conninfo(
                url,
                application_name=f"catvec {__version__}",
                connect_timeout=timeout_s,
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=3,
                tcp_user_timeout=UNANSWERED_MS,
            ),
            autocommit=True,
            # catvec's statements differ from run to run, and a plan cached under other settings would be kept
            prepare_threshold=None,
        )
    except UnicodeError as error:  # a part of the host's name is empty or longer than 63 characters
        raise _connect_error(url, "resolve host", timeout_s) from error
    except psycopg.OperationalError as error:
        raise _connect_error(url, str(error), timeout_s) from error


def _connect_error(url: str, text: str, timeout_s: object) -> StoreError:
    place = hide_password(url)
    known = (
        ("password authentication failed", "refused the user or password", "check the user and password in --db"),
        ("no password supplied", "wants a password", "put it into --db, or into ~/.pgpass"),
        ('database ".*" does not exist', "does not exist", "create it, or check the name at the end of --db"),
        ('role ".*" does not exist', "has no such user", "create it, or check the user in --db"),
        ("pg_hba.conf", "does not let this host in", "ask its administrator for an entry in pg_hba.conf"),
        ("Connection refused", "is not listening", "is the server running? check host and port in --db"),
        ("resolve host", "has a host name that cannot be found", "check the host in --db"),
        ("timeout", f"does not answer within {timeout_s} s", "check host and port in --db, and the firewall"),
        ("too many", "has no free connection", "try again later, or raise max_connections"),
    )
    for pattern, what, cure in known:
        if re.search(pattern, text):
            return StoreError(f"database {place} {what}", hint=cure)
    password = conninfo_to_dict(url).get("password")
    detail = " ".join(text.split())
    return StoreError(
        f"database {place} cannot be reached: {detail.replace(str(password), '…') if password else detail}"
    )


def find_vector(connection: Connection) -> tuple[str, str] | None:
    """Schema and version of the vector extension in this database, or None."""
    row = connection.execute(
        "SELECT n.nspname, e.extversion FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " WHERE e.extname = 'vector'"
    ).fetchone()
    return (row[0], row[1]) if row else None


def require_vector(connection: Connection) -> str:
    """The schema of the vector extension. Raises StoreError when it is missing or too old."""
    found = find_vector(connection)
    if found is None:
        raise StoreError(
            f"database {connection.info.dbname!r} has no vector extension",
            hint="an administrator of the database runs: CREATE EXTENSION vector;",
        )
    schema, version = found
    if parse_version(version) < OLDEST_VECTOR:
        raise StoreError(
            f"the vector extension is {version}, expected at least 0.8.0",
            hint="install pgvector 0.8.4 or newer on the server, then run: ALTER EXTENSION vector UPDATE;",
        )
    return schema


def parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def adopt_vector_types(connection: Connection) -> None:
    """Make the connection read and write vectors, wherever the extension lives, and leave nothing set."""
    schema = require_vector(connection)
    with connection.transaction():
        # LOCAL: a pooler may give this server connection to somebody else next
        connection.execute(sql.SQL("SET LOCAL search_path TO {}, pg_catalog").format(sql.Identifier(schema)))
        register_vector(connection)
    connection.adapters.register_dumper(VectorArray, VectorArrayDumper)


def translate(error: psycopg.Error) -> StoreError:
    """A psycopg error as ours, with the cure where there is a known one."""
    state = error.sqlstate or ""
    message = (error.diag.message_primary or str(error).partition("\n")[0]).strip()
    if state == "42501":
        return StoreError(message, hint="connect as the owner of catvec's tables, or have the right granted")
    if state == "42P06":
        return StoreError(
            message, hint="catvec needs the schemas catvec and catvec_store for itself: use another database"
        )
    if state in {"3F000", "42P01", "42883"}:
        return StoreError(message, hint="run: catvec db migrate")
    if state == "53100":
        return StoreError(message, hint="free some space on the database server, then run the same command again")
    if state.startswith(("08", "57P")) or (not state and isinstance(error, psycopg.OperationalError)):
        return StoreError(message, hint="the server went away; when it is back, run the same command again")
    return StoreError(message, hint=error.diag.message_hint)


@contextmanager
def translated() -> Iterator[None]:
    """psycopg's errors inside the block as StoreError."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


ACTIVE = psycopg.pq.TransactionStatus.ACTIVE
NOT_IN_TIME = "the database did not answer in time, and the run was to stop"


def _sever(connection: Connection) -> None:
    """Make whoever waits for this connection see its end; another thread must not close it under its feet."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


class Session:
    """One connection with vector types, opened on entering and again when the server went away.

    `on_connect` runs on each new connection (a run takes its lock there); `give_up` is asked while the server is
    away, which is waited for as long as `patience_s`. Not for use by two threads at once, but for `cancel`.
    """

    def __init__(
        self,
        url: str,
        *,
        on_connect: Callable[[Connection], None] | None = None,
        give_up: Callable[[], bool] = lambda: False,
        patience_s: float | None = None,
    ) -> None:
        self._url = url
        self._patience_s = OUTAGE_S if patience_s is None else patience_s
        self._away_since: float | None = None
        self._on_connect = on_connect
        self._give_up = give_up
        self._connection: Connection | None = None
        self._cancelled_at: float | None = None
        self._is_severed = False

    def __enter__(self) -> Session:
        with translated():
            self.connection()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({hide_password(self._url)!r})"

    @property
    def is_away(self) -> bool:
        """The server is away and waited for at this moment; any thread may look."""
        return self._away_since is not None

    @property
    def away_s(self) -> float | None:
        """Seconds for which it has been waited for; None while it is there."""
        since = self._away_since
        return None if since is None else time.monotonic() - since

    def connection(self) -> Connection:
        """The live connection, in autocommit mode: for statements that refuse a transaction."""
        if self._is_severed:
            raise AwayError(NOT_IN_TIME)
        if self._connection is None or self._connection.closed:
            is_first = self._connection is None
            timeout_s = CONNECT_LAST_S if self._give_up() else CONNECT_S if is_first else CONNECT_AGAIN_S
            self._connection = connect(self._url, timeout_s=timeout_s)
            try:
                adopt_vector_types(self._connection)
                if self._on_connect is not None:
                    self._on_connect(self._connection)
            except BaseException:
                self._connection.close()
                raise
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cancel(self) -> None:
        """From another thread: end the statement that this session waits for, if any, with AwayError.

        To be called again until it has ended: a server that does not hear of it, or goes on with it for `CANCEL_S`,
        is given up, and the session with it.
        """
        connection = self._connection
        if connection is None or connection.closed or connection.info.transaction_status != ACTIVE:
            return
        now = time.monotonic()
        self._cancelled_at = self._cancelled_at or now
        if now - self._cancelled_at < CANCEL_S:
            try:
                connection.cancel_safe(timeout=CANCEL_S)
            except psycopg.Error as error:
                logger.debug("not cancelled: %s", error)
            else:
                return
        self._is_severed = True
        _sever(connection)

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Do the work in one transaction, again from the start while the server is away, as long as `patience_s`.

        Raises AwayError when it stays away, StoreError; data and constraint errors of psycopg pass through for the
        caller who can part them.
        """
        return self._ride_out(partial(_in_transaction, work))

    def run_in_one_trip(self, work: Callable[[Connection], None]) -> None:
        """The same for work that reads no answers: everything from BEGIN to COMMIT travels together."""
        self._ride_out(partial(_in_one_trip, work))

    def _ride_out(self, attempt: Callable[[Connection], Result]) -> Result:
        outage = _Outage(self._patience_s, self._give_up)
        try:
            while True:
                try:
                    result = attempt(self.connection())
                except (psycopg.DataError, psycopg.IntegrityError):
                    raise
                except (psycopg.Error, StoreError) as error:
                    self._wait_or_raise(error, outage)
                else:
                    outage.end()
                    return result
        finally:
            self._away_since = None

    def _wait_or_raise(self, error: psycopg.Error | StoreError, outage: _Outage) -> None:
        if self._is_severed or (self._cancelled_at and isinstance(error, psycopg.errors.QueryCanceled)):
            raise AwayError(NOT_IN_TIME) from error
        found, cause = (translate(error), error) if isinstance(error, psycopg.Error) else (error, error.__cause__)
        if not _may_pass(error):
            raise found from cause
        if outage.is_over():
            raise found if isinstance(found, LockedError) else AwayError(found.message, hint=found.hint) from cause
        self._away_since = self._away_since or time.monotonic()
        outage.wait(error)

    def run_once(self, work: Callable[[Connection], Result]) -> Result:
        """Do work that cannot be done again (it reads a stream) in one transaction. Raises StoreError."""
        with translated(), self.connection().transaction():
            return work(self.connection())

    def rows(self, query: LiteralString | sql.Composed, parameters: dict[str, object] | None = None) -> list[tuple]:  # type: ignore[type-arg]
        """The rows of one query."""
        return self.run(lambda connection: connection.execute(query, parameters).fetchall())


def longest_away_s(sessions: Iterable[Session]) -> float | None:
    """Seconds for which a server has been waited for by one of them; None while it is there for all."""
    return max((away_s for session in sessions if (away_s := session.away_s) is not None), default=None)


class _Outage:
    """The waiting while the server is away: short at first, then every few seconds, told once."""

    def __init__(self, patience_s: float, give_up: Callable[[], bool]) -> None:
        self._patience_s = patience_s
        self._give_up = give_up
        self._began = time.monotonic()
        self._pause_s = 0.1
        self._is_told = False

    def is_over(self) -> bool:
        return self._give_up() or time.monotonic() - self._began > self._patience_s

    def wait(self, error: Exception) -> None:
        level = logging.DEBUG if self._is_told else logging.WARNING
        self._is_told = True
        logger.log(level, "%s; trying again for %.0f s", " ".join(str(error).split()), self._patience_s)
        ends = time.monotonic() + self._pause_s
        while time.monotonic() < ends and not self._give_up():
            time.sleep(0.1)
        self._pause_s = min(self._pause_s * 2, 5.0)

    def end(self) -> None:
        if self._is_told:
            logger.warning("the database is back after %.0f s", time.monotonic() - self._began)


def _may_pass(error: psycopg.Error | StoreError) -> bool:
    if isinstance(error, StoreError):  # of connecting
        # a lock that is taken on reconnecting is our own: the server has not noticed yet that we were lost
        return isinstance(error, LockedError) or isinstance(error.__cause__, psycopg.OperationalError)
    state = error.sqlstate or ""
    lost = not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return lost or state.startswith(GONE) or state.startswith(CONTENDED)


def _in_transaction(work: Callable[[Connection], Result], connection: Connection) -> Result:
    with connection.transaction():
        return work(connection)


def _in_one_trip(work: Callable[[Connection], None], connection: Connection) -> None:
    """psycopg's own transaction() would wait for four answers inside a pipeline: 160 ms instead of 40."""
    errors = []
    try:
        with connection.pipeline():
            try:
                connection.execute("BEGIN")
                work(connection)
                connection.execute("COMMIT")  # the server skips it after an error
            except psycopg.Error as error:
                errors.append(error)  # outside the block: psycopg logs what else it hears then as a warning
    except psycopg.Error as error:
        errors.append(error)
    finally:
        if not connection.closed:
            with suppress(psycopg.Error):
                connection.rollback()  # nothing, when all went well
    if errors:
        raise errors[0]
