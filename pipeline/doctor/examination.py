"""One examination: this machine, the database, what is in it. A check whose ground is missing is skipped."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pipeline.doctor import content, server
from pipeline.doctor.finding import Finding, Verdict, ok, run_check, skip_all, skipped
from pipeline.doctor.machine import examine_machine
from pipeline.errors import CatvecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.store.connect import Connection
    from pipeline.store.embedded import EmbeddedServer, ServerStatus
    from pipeline.store.models import StoredModel

DATABASE, TABLES = "database", "tables"

SERVER_CHECKS: dict[str, Callable[[Connection], Verdict]] = {
    "server": server.check_version,
    "round trip": server.check_round_trip,
    "clock": server.check_clock,
    "pooler": server.check_pooler,
    "long transactions": server.check_transactions,
    "vector extension": server.check_vector,
    "search path": server.check_search_path,
    "rights": server.check_rights,
    TABLES: server.check_tables,
}
CONTENT = (
    *("active model", "weights", "vectors", "index", "use of the index", "index memory"),
    *("tags", "last run", "failures", "statistics"),
)
"""the names of what needs catvec's tables; those of a model carry its name when there is one"""
UNREACHABLE = "the database cannot be reached"


def examine(db: str | None, *, home: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Everything that could be wrong. `db` is a URL; without one catvec's own server below `home` is meant.

    That one is started when it exists, as by every command, but never made. Raises nothing that a check meets.
    """
    findings = examine_machine(environ, home=home if db is None else None)
    if db is None:
        return [*findings, *_examine_own_server(home)]
    return [*findings, *examine_database(db)]


def _examine_own_server(home: Path) -> list[Finding]:
    from pipeline.store.embedded import EmbeddedServer, lease

    own = EmbeddedServer(home=home)
    findings = [run_check("own server", partial(_check_own_server, own))]
    if findings[0].state != "ok":
        return [*findings, *skip_all((DATABASE, *SERVER_CHECKS, *CONTENT), "there is no server to look at")]
    try:
        with lease(home) as url:
            findings += examine_database(url)
    except CatvecError as error:
        is_started = len(findings) > 1
        name = "own server's end" if is_started else DATABASE
        findings.append(Finding(name=name, state="problem", detail=error.message, cure=error.hint))
        if not is_started:
            findings += skip_all((*SERVER_CHECKS, *CONTENT), UNREACHABLE)
    return findings


def _check_own_server(own: EmbeddedServer) -> Verdict:
    from pipeline.store.embedded.binaries import find_programs, require_cpu

    require_cpu()
    find_programs()
    status = own.status()
    if not status.data.exists():
        return skipped(
            f"not made yet; it would be made in {status.home}",
            "catvec run CATALOG makes it, or catvec db start; or name your own database with --db",
        )
    return ok(_describe(status))


def _describe(status: ServerStatus) -> str:
    if status.running:
        return f"runs below {status.home}, process {status.pid}"
    return f"below {status.home}, started for this examination"


def examine_database(url: str) -> list[Finding]:
    """Look at one database, through one connection that cannot write."""
    from pipeline.store.connect import hide_password
    from pipeline.store.health import connect_to_read

    try:
        connection = connect_to_read(url)
    except CatvecError as error:
        unreachable = Finding(name=DATABASE, state="problem", detail=error.message, cure=error.hint)
        return [unreachable, *skip_all((*SERVER_CHECKS, *CONTENT), UNREACHABLE)]
    with connection:
        findings = [Finding(name=DATABASE, state="ok", detail=hide_password(url))]
        findings += [_ask(connection, name, check) for name, check in SERVER_CHECKS.items()]
        states = {finding.name: finding.state for finding in findings}
        if states[TABLES] != "ok":
            return [*findings, *skip_all(CONTENT, "catvec's tables cannot be looked at")]
        return [*findings, *_examine_content(connection)]


def _ask(connection: Connection, name: str, check: Callable[[Connection], Verdict]) -> Finding:
    """One check in one read-only transaction; what this user may not see, or nobody quickly, is skipped."""
    from pipeline.store.health import is_only_unanswered, reading

    def ask() -> Verdict:
        if connection.closed:
            return skipped("the connection was lost")
        try:
            with reading(connection):
                return check(connection)
        except CatvecError as error:
            if is_only_unanswered(error):
                return skipped(error.message, error.hint)
            raise

    return run_check(name, ask)


def _examine_content(connection: Connection) -> list[Finding]:
    from pipeline.store.health import RunSign, see_runs
    from pipeline.store.models import list_models

    models: list[StoredModel] = []
    signs: list[RunSign] = []

    def check_active(connection: Connection) -> Verdict:
        models.extend(model for model in list_models(connection) if not model.is_retired)
        return content.check_active(models)

    def check_runs(connection: Connection) -> Verdict:
        signs.extend(see_runs(connection))
        return content.check_run(signs[0]) if signs else ok("none yet")

    findings = [_ask(connection, "active model", check_active)]
    for model in models:
        findings += _examine_model(connection, model)
    findings.append(_ask(connection, "index memory", lambda there: content.check_index_memory(there, models)))
    findings.append(_ask(connection, "tags", lambda there: content.check_tags(there, models)))
    findings.append(_ask(connection, "last run", check_runs))
    findings += [run_check(f"run {sign.run_id}", partial(content.check_run, sign)) for sign in signs[1:]]
    findings.append(_ask(connection, "failures", content.check_failures))
    findings.append(_ask(connection, "statistics", lambda there: content.check_statistics(there, models)))
    return findings


def _examine_model(connection: Connection, model: StoredModel) -> list[Finding]:
    from pipeline.store.connect import require_vector

    findings = [
        run_check(f"weights of {model.name}", partial(content.check_weights, model)),
        _ask(connection, f"vectors of {model.name}", lambda there: content.check_vectors(there, model)),
        _ask(connection, f"index of {model.name}", lambda there: content.check_index(there, model)),
    ]
    if model.is_active:
        findings.append(
            _ask(
                connection,
                f"use of the index of {model.name}",
                lambda there: content.check_use(there, model, vector_schema=require_vector(there)),
            )
        )
    return findings
