"""Checks of a database server that need no tables of catvec's: reachable, new enough, near, with the extension."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pipeline.doctor.finding import Verdict, ok, problem, skipped, warning

if TYPE_CHECKING:
    from datetime import timedelta

    from pipeline.store.connect import Connection

OLDEST_SERVER = 150000
"""PostgreSQL 15: the oldest that catvec is tested with"""
ROUND_TRIP_S = 0.020
"""a batch is one round trip, and so is a page of the work list: up to here they hide behind the encoding"""
CLOCK_S = 60.0

# pgvector's changelog: 0.8.2 closed CVE-2026-3172, 0.8.3 and 0.8.4 repaired what vacuum does to HNSW
SAFE_VECTOR = (0, 8, 2)
SOUND_VECTOR = (0, 8, 4)
UPDATE_VECTOR = "an administrator runs in this database: ALTER EXTENSION vector UPDATE;"


def check_version(connection: Connection) -> Verdict:
    from pipeline.store.health import see_server

    server = see_server(connection)
    detail = f"PostgreSQL {server.version}, {server.encoding}"
    if server.number < OLDEST_SERVER:
        return problem(f"{detail}; expected 15 or newer", "upgrade the server")
    if server.is_replica:
        return warning(
            f"{detail}; it is a read-only replica", "searches are welcome here; for runs name the primary in --db"
        )
    if server.encoding != "UTF8":
        return warning(
            f"{detail}; titles with characters outside {server.encoding} cannot be stored",
            "make the database with: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0;",
        )
    return ok(detail)


def check_round_trip(connection: Connection) -> Verdict:
    from pipeline.store.health import measure_round_trip

    seconds = measure_round_trip(connection)
    detail = f"{1000 * seconds:,.1f} ms to the database and back"
    if seconds > ROUND_TRIP_S:
        return warning(detail, "run catvec nearer to the database; searches wait for it as well")
    return ok(detail)


def check_clock(connection: Connection) -> Verdict:
    from pipeline.store.health import measure_clock

    ahead_s = measure_clock(connection).total_seconds()
    if abs(ahead_s) <= CLOCK_S:
        return ok(f"the server's clock agrees to {abs(ahead_s):.1f} s")
    where = "ahead of" if ahead_s > 0 else "behind"
    return warning(
        f"the server's clock is {abs(ahead_s):,.0f} s {where} this machine's", "set both by NTP: run times are wrong"
    )


def check_pooler(connection: Connection) -> Verdict:
    from pipeline.store.pooler import is_pooled

    if not is_pooled(connection):
        return ok("none in between")
    return warning(
        "a pooler such as PgBouncer stands in between; in transaction mode the lock of a run does not hold",
        "for catvec run give --db the server's own address and port, or session mode; searches may use the pooler",
    )


def check_transactions(connection: Connection) -> Verdict:
    from pipeline.store.health import see_transactions

    found = see_transactions(connection)
    unseen = f"; sessions of other users that cannot be seen: {found.hidden}" if found.hidden else ""
    if found.long:
        oldest = found.long[0]
        who = f"process {oldest.pid} of {oldest.user!r} ({oldest.application or 'no name'})"
        more = f" and {len(found.long) - 1} more" if len(found.long) > 1 else ""
        return warning(
            f"{who}{more} has had a transaction open for {span(oldest.age)}: an index build waits for it{unseen}",
            f"end it in its application, or: SELECT pg_terminate_backend({oldest.pid});",
        )
    if found.prepared:
        return warning(
            f"the prepared transaction {found.prepared[0]!r} has been open for long: an index build waits for it",
            "COMMIT PREPARED or ROLLBACK PREPARED it",
        )
    return ok(f"none is open for more than 5 min{unseen}")


def check_vector(connection: Connection) -> Verdict:
    from pipeline.store.connect import find_vector, parse_version, require_vector
    from pipeline.store.health import offered_vector

    found, offered = find_vector(connection), offered_vector(connection)
    if found is None and offered is None:
        return problem(
            "the server has no pgvector",
            "install pgvector 0.8.4 or newer on the database server (package postgresql-NN-pgvector)",
        )
    require_vector(connection)
    schema, version = found or ("", "")
    detail = f"{version} in schema {schema}"
    has_newer = offered is not None and parse_version(offered) > parse_version(version)
    cure = UPDATE_VECTOR if has_newer else f"install pgvector 0.8.4 or newer on the server, then {UPDATE_VECTOR}"
    if parse_version(version) < SAFE_VECTOR:
        return warning(f"{detail} can be attacked while it builds an index (CVE-2026-3172)", cure)
    if parse_version(version) < SOUND_VECTOR:
        return warning(f"{detail} may damage HNSW indexes in VACUUM", cure)
    if has_newer:
        return warning(f"{detail}, the server has {offered}", cure)
    return ok(detail)


def check_search_path(connection: Connection) -> Verdict:
    from pipeline.store.connect import find_vector
    from pipeline.store.health import is_on_path

    schema, _ = find_vector(connection) or ("", "")
    if not schema:
        return skipped("there is no vector extension")
    if is_on_path(connection, schema):
        return ok(f"has {schema}, where the vector types are")
    user = connection.info.user
    return warning(
        f"lacks schema {schema}: `embedding <=> $1` fails for {user!r} (catvec and its SQL functions still work)",
        f'ALTER ROLE {quoted(user)} SET search_path = "$user", public, {quoted(schema)};',
    )


def check_tables(connection: Connection) -> Verdict:
    from pipeline.store.health import see_rights
    from pipeline.store.migrate import newest_version, require_current

    rights = see_rights(connection)
    if rights.may_enter is False:
        return Verdict(
            "skipped",
            f"user {rights.user!r} reads the public schema catvec only",
            "connect as a user that runs catvec",
        )
    require_current(connection)
    return ok(f"version {newest_version()}, the newest")


def check_rights(connection: Connection) -> Verdict:
    from pipeline.store.health import see_rights

    rights = see_rights(connection)
    is_new = rights.owner is None
    wanted = {"TEMPORARY": rights.may_stage, "CREATE": rights.may_create or not is_new}
    lacking = ", ".join(right for right, is_granted in wanted.items() if not is_granted)
    if lacking:
        database = quoted(connection.info.dbname)
        return problem(
            f"user {rights.user!r} lacks {lacking} on database {database}, which a run needs",
            f"an administrator runs: GRANT {lacking} ON DATABASE {database} TO {quoted(rights.user)};",
        )
    if is_new:
        return ok(f"user {rights.user!r} may make catvec's tables")
    if rights.owns_tables:
        return ok(f"user {rights.user!r} may run, build indexes and migrate")
    if rights.may_write:
        return warning(
            f"user {rights.user!r} may write vectors, but not add a model, build an index or migrate",
            f"for those connect as {rights.owner}, or: GRANT {rights.owner} TO {quoted(rights.user)};",
        )
    return warning(
        f"user {rights.user!r} may read and search, not run",
        f"for catvec run connect as {rights.owner}, or let {rights.owner} run: "
        f"catvec db grant --writer {shlex.quote(rights.user)}",
    )


def quoted(name: str) -> str:
    """A name as SQL takes it, for statements that people copy."""
    return '"' + name.replace('"', '""') + '"'


def span(age: timedelta) -> str:
    """A length of time as people say it: 40 s, 12 min, 3 h, 5 days."""
    seconds = max(age.total_seconds(), 0.0)
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
