"""Databases for benchmarks: catvec's own PostgreSQL with its usual settings, in a temporary home."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from pipeline.store.embedded import EmbeddedServer, lease

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """`environment` makes catvec use it, without its password on a command line."""

    url: str
    environment: Mapping[str, str]


@contextmanager
def embedded_server() -> Iterator[EmbeddedServer]:
    """A running server that nobody else uses; it is gone afterwards."""
    # short, for the socket's path; open, because under root the server is another user's
    folder = Path(tempfile.mkdtemp(prefix="catvec-bench-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with lease(folder / "home"):
            yield EmbeddedServer(home=folder / "home")
    finally:
        shutil.rmtree(folder)


@contextmanager
def whole_database(url: str | None) -> Iterator[Database]:
    """The named database, or the one that catvec makes for itself in a fresh home."""
    if url is not None:
        yield Database(url=url, environment={"CATVEC_DATABASE_URL": url})
        return
    with embedded_server() as server:
        yield Database(url=server.url(), environment={"CATVEC_HOME": str(server.home)})


@contextmanager
def empty_database(server: EmbeddedServer) -> Iterator[Database]:
    """A fresh database with the vector extension and nothing else; it is dropped afterwards."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    parts = urlsplit(server.url())
    url = parts._replace(path=f"/{name}").geturl()
    identifier, owner = sql.Identifier(name), sql.Identifier(str(parts.username))
    with psycopg.connect(server.admin_url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(identifier, owner))
        with psycopg.connect(server.admin_url(name), autocommit=True) as inside:
            inside.execute("CREATE EXTENSION IF NOT EXISTS vector")
        try:
            yield Database(url=url, environment={"CATVEC_DATABASE_URL": url})
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def describe_server(url: str) -> dict[str, str]:
    """Versions of PostgreSQL and pgvector."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
    if row is None:
        raise SystemExit("the database has no vector extension")
    return {"postgresql": row[0].split()[0], "pgvector": row[1]}
