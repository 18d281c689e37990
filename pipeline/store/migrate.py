"""Bringing a database to this release's tables, views and functions, with Alembic and the SQL in migrations/."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.errors import StoreError
from pipeline.store.connect import Session, connect, find_vector, require_vector, translated
from pipeline.store.locks import keep_trying
from pipeline.store.pooler import require_session
from pipeline.store.roles import require_owner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.store.connect import Connection

LOCK = "SELECT pg_try_advisory_lock(hashtextextended('catvec:migrate', 0))"
LOCK_WAIT_S = 60.0
"""another migration is waited for, and so are readers; the longest so far takes well under a second"""
LOCK_TRY = "300ms"
"""at a time: later readers wait behind a migration that waits"""
REPLACED = ("catvec.models", "catvec.image_embeddings")


def newest_version() -> str:
    """The version that this release of catvec works with."""
    import migrations

    versions = Path(migrations.__file__).parent / "versions"
    return max(path.name[:4] for path in versions.glob("[0-9]*.py"))


def current_version(connection: Connection) -> str | None:
    """The version the database is at, or None when catvec has never been there."""
    row = connection.execute("SELECT to_regclass('catvec.schema_version')").fetchone()
    if row is None or row[0] is None:
        return None
    version = connection.execute("SELECT version FROM catvec.schema_version").fetchone()
    return version[0] if version else None


def require_current(connection: Connection) -> None:
    """Raise StoreError unless the database is at this release's version."""
    found, expected = current_version(connection), newest_version()
    if found == expected:
        return
    if found is None:
        raise StoreError(f"database {connection.info.dbname!r} has no catvec tables", hint="run: catvec db migrate")
    _refuse_newer(connection, found, expected)
    raise StoreError(
        f"database {connection.info.dbname!r} is at version {found}, expected {expected}",
        hint="run: catvec db migrate",
    )


@contextmanager
def open_current(url: str) -> Iterator[Session]:
    """A session with a database at this release's version; psycopg's errors inside the block come out as StoreError.

    Raises StoreError.
    """
    with Session(url) as session, translated():
        require_current(session.connection())
        yield session


def _refuse_newer(connection: Connection, found: str, expected: str) -> None:
    if found > expected:
        raise StoreError(
            f"database {connection.info.dbname!r} is at version {found}, this catvec knows up to {expected}",
            hint="install a newer catvec",
        )


def migrate(url: str) -> None:
    """Bring the database at `url` to `newest_version()`; safe to call twice and from several processes at once.

    Needs no superuser once the vector extension exists. Raises StoreError.
    """
    with connect(url) as connection, translated():
        require_session(connection, url)
        _take_lock(connection)
        found, newest = current_version(connection), newest_version()
        if found == newest:
            return
        if found is not None:
            _refuse_newer(connection, found, newest)
            require_owner(connection, f"bring the database from version {found} to {newest}")
        vector_schema = _provide_vector(connection)
        connection.execute("CREATE SCHEMA IF NOT EXISTS catvec_store")
        quoted = sql.Identifier(vector_schema).as_string(connection)
        try:
            # apps may be reading what is replaced
            keep_trying(
                connection, lambda _: _upgrade(url, quoted), relations=REPLACED, wait_s=LOCK_WAIT_S, is_option=False
            )
        except psycopg.errors.DependentObjectsStillExist as error:
            raise _in_use(error) from error


def _in_use(error: psycopg.Error) -> StoreError:
    """Somebody has built on a function that an edition replaces because it has an argument more."""
    objects = "; ".join(str(error.diag.message_detail or error.diag.message_primary).splitlines())
    return StoreError(
        f"objects that are not catvec's stand in the way: {objects}",
        hint="keep their definitions (pg_dump --schema-only), drop them, run: catvec db migrate, and make them again",
    )


def _take_lock(connection: Connection) -> None:
    # polled: a blocking lock beside a CREATE INDEX CONCURRENTLY is a deadlock
    deadline = time.monotonic() + LOCK_WAIT_S
    while connection.execute(LOCK).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise StoreError("another migration has been running for a minute", hint="try again when it is done")
        time.sleep(0.05)


def _provide_vector(connection: Connection) -> str:
    if find_vector(connection) is None:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.errors.InsufficientPrivilege as error:
            raise StoreError(
                f"the vector extension is missing in database {connection.info.dbname!r}, and user "
                f"{connection.info.user!r} may not create it",
                hint=f"an administrator runs once in {connection.info.dbname!r}: CREATE EXTENSION vector;",
            ) from error
        except psycopg.Error as error:
            raise StoreError(
                f"the vector extension cannot be created: {error.diag.message_primary or error}",
                hint="install pgvector 0.8.4 or newer on the database server (package postgresql-NN-pgvector)",
            ) from error
    return require_vector(connection)


def _upgrade(url: str, vector_schema: str, version: str = "head") -> None:
    import sqlalchemy
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    import migrations

    def open_connection() -> Connection:
        connection = connect(url)
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (LOCK_TRY,))
        connection.autocommit = False
        return connection

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=open_connection, poolclass=sqlalchemy.pool.NullPool
    )
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["vector_schema"] = vector_schema
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, version)
            connection.commit()
    except CommandError as error:
        raise StoreError(f"the database cannot be migrated: {error}") from error
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from error
        raise StoreError(str(error.orig)) from error
