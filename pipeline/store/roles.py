"""Who may do what: the owner migrates, adds models, builds indexes and switches; writers run; readers search.

Roles are made by an administrator; here they are only given what they need, and what comes later (the tables and
views of further models) is given beforehand. Nobody here is ever given what the owner does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.errors import ConfigError, StoreError
from pipeline.store.connect import require_vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.connect import Connection

# the vector tables and views of later models are the owner's too
READER = """
GRANT USAGE ON SCHEMA catvec TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA catvec TO {role};
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA catvec TO {role};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA catvec GRANT SELECT ON TABLES TO {role};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA catvec GRANT EXECUTE ON FUNCTIONS TO {role}
"""

# A vector is never changed, only added, and deleted when nothing has shown it for long; of a model a run changes
# where its weights were found last, and through mark_ready that it is loaded.
WRITER = """
GRANT USAGE ON SCHEMA catvec_store TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA catvec_store TO {role};
GRANT INSERT, UPDATE ON catvec_store.runs TO {role};
GRANT INSERT, UPDATE, DELETE ON catvec_store.products, catvec_store.images, catvec_store.unused_contents,
                                catvec_store.failures, catvec_store.bad_rows, catvec_store.queries,
                                catvec_store.query_vectors, catvec_store.neighbours,
                                catvec_store.tag_attributes, catvec_store.product_tags TO {role};
GRANT UPDATE (location) ON catvec_store.models TO {role};
GRANT EXECUTE ON FUNCTION catvec_store.mark_ready(smallint) TO {role};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA catvec_store GRANT SELECT, INSERT, DELETE ON TABLES TO {role}
"""

# for ANALYZE after a load; older servers keep that to the owner, and autovacuum does it later
MAINTAIN = """
GRANT MAINTAIN ON catvec_store.products, catvec_store.images, catvec_store.product_tags TO {role};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA catvec_store GRANT MAINTAIN ON TABLES TO {role}
"""
MAINTAIN_SINCE = 170000

OWNER = """
SELECT pg_get_userbyid(n.nspowner),
       pg_has_role(n.nspowner, 'USAGE')
       AND (SELECT bool_and(pg_has_role(c.relowner, 'USAGE'))
              FROM pg_class c
             WHERE c.relnamespace IN (to_regnamespace('catvec'), to_regnamespace('catvec_store'))
               AND c.relkind IN ('r', 'v'))
  FROM pg_namespace n
 WHERE n.nspname = 'catvec_store'
"""

VECTOR_TABLES = "SELECT 'emb_' || m.name FROM catvec_store.models m WHERE m.state <> 'retired' ORDER BY m.model_id"

# what is not catvec's own: the owner of catvec's tables need not own the database or the extension's schema
LACKED = """
SELECT has_database_privilege(%(role)s, d.oid, 'CONNECT'), has_database_privilege(%(role)s, d.oid, 'TEMPORARY'),
       has_schema_privilege(%(role)s, n.oid, 'USAGE'), pg_has_role(d.datdba, 'USAGE'),
       pg_has_role(n.nspowner, 'USAGE')
  FROM pg_database d, pg_namespace n
 WHERE d.datname = current_database()
   AND n.nspname = %(schema)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """Who has which rights now; `left` are statements that an administrator still has to run."""

    owner: str
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    left: tuple[str, ...]


def grant_roles(connection: Connection, *, readers: Sequence[str], writers: Sequence[str]) -> Granted:
    """Let the roles read, or read and run, now and with later models; in the caller's transaction.

    Safe to call again. Raises ConfigError for roles that do not exist, StoreError for those who may not grant.
    """
    owner = require_owner(connection, "give others their rights")
    _require_roles(connection, (*readers, *writers))
    # a model that is being added, or another grant, waits, so that no table is missed; readers do not
    connection.execute("LOCK TABLE catvec_store.models IN SHARE ROW EXCLUSIVE MODE")
    for role in (*readers, *writers):
        _execute(connection, READER, owner, role)
    for role in writers:
        _execute(connection, WRITER, owner, role)
        _grant_vector_tables(connection, role)
        if connection.info.server_version >= MAINTAIN_SINCE:
            _execute(connection, MAINTAIN, owner, role)
    left = [statement for role in readers for statement in _open_place(connection, role, is_writer=False)]
    left += [statement for role in writers for statement in _open_place(connection, role, is_writer=True)]
    return Granted(owner=owner, readers=tuple(readers), writers=tuple(writers), left=tuple(dict.fromkeys(left)))


def is_owner(connection: Connection) -> bool:
    """Whether this user may do what the owner of catvec's tables may."""
    return _find_owner(connection)[1]


def require_owner(connection: Connection, what: str) -> str:
    """The owner of catvec's tables. Raises StoreError unless this user may act for him."""
    owner, is_he = _find_owner(connection)
    if not is_he:
        raise StoreError(
            f"user {connection.info.user!r} may not {what}: catvec's tables belong to {owner!r}",
            hint=f"run the same command once as {owner!r}, with --db",
        )
    return owner


def _find_owner(connection: Connection) -> tuple[str, bool]:
    row = connection.execute(OWNER).fetchone()
    if row is None:
        raise StoreError(f"database {connection.info.dbname!r} has no catvec tables", hint="run: catvec db migrate")
    return str(row[0]), bool(row[1])


def _require_roles(connection: Connection, roles: Sequence[str]) -> None:
    if not roles:
        raise ConfigError("no role is named", hint="name it with --reader ROLE or --writer ROLE")
    rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", (list(roles),)).fetchall()
    known = {row[0] for row in rows}
    for role in roles:
        if role in ("", "public"):
            raise ConfigError(f"{role!r} is no role of its own", hint="name a user or group of the server's")
        if role not in known:
            name = sql.Identifier(role).as_string(connection)
            raise ConfigError(
                f"the server has no role {role!r}",
                hint=f"an administrator runs: CREATE ROLE {name} LOGIN PASSWORD '…';",
            )


def _execute(connection: Connection, statements: str, owner: str, role: str) -> None:
    connection.execute(sql.SQL(statements).format(owner=sql.Identifier(owner), role=sql.Identifier(role)))


def _grant_vector_tables(connection: Connection, role: str) -> None:
    rights = "INSERT, DELETE" + (", MAINTAIN" if connection.info.server_version >= MAINTAIN_SINCE else "")
    for [table] in connection.execute(VECTOR_TABLES).fetchall():
        connection.execute(
            sql.SQL("GRANT {} ON catvec_store.{} TO {}").format(
                sql.SQL(rights), sql.Identifier(table), sql.Identifier(role)
            )
        )


def _open_place(connection: Connection, role: str, *, is_writer: bool) -> list[str]:
    """Let the role into the database and to the vector types; returns the statements that this user may not run."""
    schema = require_vector(connection)
    [(connects, stages, sees, owns_database, owns_schema)] = connection.execute(
        LACKED, {"role": role, "schema": schema}
    ).fetchall()
    database, name = sql.Identifier(connection.info.dbname), sql.Identifier(role)
    wanted = [("CONNECT", "DATABASE", database, connects, owns_database)]
    wanted += [("TEMPORARY", "DATABASE", database, stages, owns_database)] if is_writer else []
    wanted += [("USAGE", "SCHEMA", sql.Identifier(schema), sees, owns_schema)]
    left = []
    for right, kind, place, has_it, may_grant in wanted:
        grant = sql.SQL("GRANT {} ON {} {} TO {}").format(sql.SQL(right), sql.SQL(kind), place, name)
        if may_grant:
            connection.execute(grant)
        elif not has_it:
            left.append(f"{grant.as_string(connection)};")
    return left
