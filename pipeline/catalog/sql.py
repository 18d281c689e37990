"""The rows of a SELECT in any database that SQLAlchemy speaks to, streamed from the server.

The password in the URL is in no error: neither catvec's own words nor the driver's are shown with it.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.catalog.rows import Row, Table
from pipeline.catalog.source import SourceError
from pipeline.errors import CatalogError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, CursorResult, Engine

_BATCH_ROWS = 1000
"""rows fetched at once"""

_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "mysql": "mysql+pymysql"}
"""the driver for a URL that names none: psycopg is here already, PyMySQL installs without a compiler"""

_PACKAGES = {
    "mysql+pymysql": "pymysql",
    "mariadb+pymysql": "pymysql",
    "mysql+mysqldb": "mysqlclient",
    "postgresql+psycopg2": "psycopg2-binary",
    "postgresql+asyncpg": "asyncpg",
    "mssql+pyodbc": "pyodbc",
    "oracle+oracledb": "oracledb",
    "snowflake": "snowflake-sqlalchemy",
    "bigquery": "sqlalchemy-bigquery",
    "duckdb": "duckdb-engine",
}


@contextmanager
def open_sql(uri: str, query: str | None) -> Iterator[Table]:
    """The rows of `query`, in a transaction that is rolled back.

    Raises ConfigError for a URL, driver or query that cannot work, CatalogError for what the database refuses,
    and SourceError from the rows.
    """
    from sqlalchemy.exc import SQLAlchemyError

    url = _parse(uri)
    if not query or not query.strip():
        raise ConfigError(
            "a database as catalog needs --query",
            hint="for example --query 'SELECT id, image_url, title, price FROM products'",
        )
    engine = _make_engine(url)
    try:
        with engine.connect() as connection:
            result = _execute(connection, query)
            yield Table(names=tuple(result.keys()), rows=_rows(result, url))
    except SQLAlchemyError as error:
        raise CatalogError(f"{_shown(url)} refuses: {_reason(error, url)}") from error
    finally:
        engine.dispose()


def _parse(uri: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        # not chained: both quote the URL, or the part of the password that was taken for a port
        raise ConfigError(
            "the catalog's database URL cannot be read, expected DIALECT://USER:PASSWORD@HOST:PORT/DATABASE",
            hint="write @ : / # in a password as %40 %3A %2F %23",
        ) from None
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    # SQLite makes an empty database of a name that does not exist
    is_file = url.get_backend_name() == "sqlite" and not (url.database or ":").startswith((":", "file:"))
    if is_file and not Path(str(url.database)).is_file():
        raise CatalogError(f"no such file {url.database!r}", hint="sqlite:////folder/file.db has four slashes")
    return url


def _make_engine(url: URL) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        return create_engine(url, poolclass=NullPool)
    except (ImportError, NoSuchModuleError) as error:
        package = _PACKAGES.get(url.drivername) or getattr(error, "name", None)
        hint = f"pip install {package}" if package else "pip install the SQLAlchemy dialect for this database"
        raise ConfigError(f"no driver for {url.drivername!r} is installed", hint=hint) from error
    except (ArgumentError, TypeError, ValueError):
        raise ConfigError(f"the options in the URL of {_shown(url)} are not known to its driver") from None


def _execute(connection: Connection, query: str) -> CursorResult[Any]:
    options = {"stream_results": True, "max_row_buffer": _BATCH_ROWS, "no_parameters": True}
    if connection.dialect.name == "postgresql":
        options["postgresql_readonly"] = True
    # the driver's own execute: text() would take ':name' in the query for a parameter, and no_parameters keeps
    # the driver from doing the same with %
    result = connection.execution_options(**options).exec_driver_sql(query.strip().rstrip(";"))
    if not result.returns_rows:
        connection.rollback()
        raise ConfigError("--query returns no rows, expected a SELECT")
    return result


def _rows(result: CursorResult[Any], url: URL) -> Iterator[Row]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        for row, values in enumerate(result.mappings(), start=1):
            yield Row(row=row, values=dict(values))
    except SQLAlchemyError as error:
        raise SourceError(f"cannot be read further ({_reason(error, url)})") from error


def _shown(url: URL) -> str:
    place = url.host or url.database or ""
    return f"{url.get_backend_name()} database {place!r}"


def _reason(error: Exception, url: URL) -> str:
    text = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    for secret in (url.password, *url.query.values()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return text
