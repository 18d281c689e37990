"""`catvec doctor` on real databases: a healthy one, and each thing broken on purpose."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipeline.doctor import examination
from pipeline.doctor.finding import ok
from pipeline.store import health
from pipeline.store.migrate import newest_version
from pipeline.store.roles import grant_roles
from tests.fixtures.doctor import change, look, seen, states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.doctor.finding import Verdict
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel
    from tests.fixtures.command import Catvec
    from tests.fixtures.store import Shop

HAS_NOTHING = "catvec's tables cannot be looked at"


# a healthy database


def test_nothing_is_found_in_a_healthy_database(database_url: str, first_model: StoredModel) -> None:
    findings = look(database_url)
    assert states(findings) == {}
    assert list(findings) == [
        *("database", "server", "round trip", "clock", "pooler", "long transactions", "vector extension"),
        *("search path", "rights", "tables", "active model"),
        *("weights of tiny", "vectors of tiny", "index of tiny", "use of the index of tiny"),
        *("index memory", "tags", "last run", "failures", "statistics"),
    ]
    assert findings["vectors of tiny"].detail == "3 of 3 images have one"
    assert findings["tables"].detail == f"version {newest_version()}, the newest"


def test_a_freshly_migrated_database_has_no_problem(database_url: str) -> None:
    findings = look(database_url)
    assert states(findings) == {"active model": "warning"}
    assert findings["active model"].cure == "begin with: catvec run CATALOG"


def test_looking_writes_nothing(shop: Shop, database_url: str, first_model: StoredModel) -> None:
    with (
        health.connect_to_read(database_url) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
        connection.transaction(),
    ):
        connection.execute("DELETE FROM catvec_store.models")
    before = shop.all("SELECT m.*, m.xmin::text FROM catvec_store.models m")
    look(database_url)
    assert shop.all("SELECT m.*, m.xmin::text FROM catvec_store.models m") == before


def test_the_command_prints_a_table_and_the_cures(
    catvec: Catvec, database_url: str, first_model: StoredModel
) -> None:
    outcome = catvec("doctor", "--db", database_url)
    assert outcome.code == 0
    assert " vectors of tiny " in outcome.out
    assert outcome.err.splitlines()[-1].startswith("all is well: ")


def test_the_command_gives_one_json_object(
    catvec: Catvec, database_url: str, shop: Shop, first_model: StoredModel
) -> None:
    change(shop, "UPDATE catvec_store.models SET state = 'ready'")
    outcome = catvec("doctor", "--db", database_url, "--json")
    assert outcome.code == 1
    found = outcome.json()
    assert (found["problems"], len(outcome.out.splitlines())) == (1, 1)
    assert [finding for finding in found["findings"] if finding["state"] == "problem"] == [
        {
            "name": "active model",
            "state": "problem",
            "detail": "none, although tiny is ready: searches find nothing",
            "cure": "catvec models activate tiny",
        }
    ]


# the way to the database


def test_a_wrong_password_is_a_problem_and_never_shown(catvec: Catvec, database_url: str) -> None:
    parts = conninfo_to_dict(database_url)
    url = f"postgresql://{parts['user']}:s3cret-word@{parts['host']}:{parts['port']}/{parts['dbname']}"
    outcome = catvec("doctor", "--db", url)
    if outcome.code == 0:
        pytest.skip("this server trusts everybody")
    assert outcome.code == 1
    assert "refused the user or password" in outcome.out
    assert "hint: database: check the user and password in --db" in outcome.err
    assert "the database cannot be reached" in outcome.out
    assert "s3cret-word" not in outcome.out + outcome.err


@pytest.mark.parametrize("url", ["postgresql://u:s3cret-word@127.0.0.1:1/x", "mysql://u:s3cret-word@host/x"])
def test_what_cannot_be_reached_skips_the_rest(url: str) -> None:
    findings = look(url)
    assert findings["database"].state == "problem"
    assert findings["database"].cure
    assert states(findings) == dict.fromkeys(findings, "skipped") | {"database": "problem"}
    assert "s3cret-word" not in repr(findings)


def test_a_connection_lost_on_the_way_skips_the_rest(
    database_url: str, first_model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_it(connection: Connection) -> Verdict:
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return ok("survived")

    monkeypatch.setitem(examination.SERVER_CHECKS, "round trip", lose_it)
    findings = look(database_url)
    assert findings["round trip"].state == "problem"
    assert "terminating connection" in findings["round trip"].detail
    assert findings["clock"].detail == "the connection was lost"
    assert {findings[name].state for name in ("clock", "tables", *examination.CONTENT)} == {"skipped"}


def test_a_check_that_breaks_does_not_keep_the_others_from_looking(
    database_url: str, first_model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(connection: Connection) -> Verdict:
        raise KeyError("s3cret-word")

    monkeypatch.setitem(examination.SERVER_CHECKS, "round trip", break_down)
    findings = look(database_url)
    assert seen(findings["round trip"]) == ("problem", "the check itself broke: KeyError", "see: catvec -v doctor")
    assert list(states(findings)) == ["round trip"]


def test_a_question_without_an_answer_is_skipped(
    database_url: str, first_model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(connection: Connection) -> Verdict:
        connection.execute("SELECT pg_sleep(60)")
        return ok("waited")

    monkeypatch.setattr(health, "ANSWER_S", 0.1)
    monkeypatch.setitem(examination.SERVER_CHECKS, "round trip", wait)
    findings = look(database_url)
    assert states(findings) == {"round trip": "skipped"}
    assert findings["round trip"].detail == "no answer within 0.1 s"


@contextmanager
def relay(url: str, *, other_pid: bool = False, delay_s: float = 0.0) -> Iterator[str]:
    """A relay to the database that answers late, or makes up the process number as PgBouncer does."""
    parts = conninfo_to_dict(url)
    target = (str(parts["host"]), int(str(parts["port"])))

    def carry(source: socket.socket, sink: socket.socket, treat: Callable[[bytes], bytes]) -> None:
        while data := source.recv(65536):
            sink.sendall(treat(data))
        sink.shutdown(socket.SHUT_WR)

    def ask(data: bytes) -> bytes:
        time.sleep(delay_s)
        return data

    def answer(data: bytes) -> bytes:
        head, key, tail = data.partition(b"K\0\0\0\x0c")
        return head + key + b"\0\0\0\1" + tail[4:] if key and other_pid else data

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection(target) as server:
                back = threading.Thread(target=carry, args=(server, client, answer))
                back.start()
                carry(client, server, ask)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        yield make_conninfo(url, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        thread.join(timeout=10)


def test_a_pooler_in_between_is_seen(database_url: str, first_model: StoredModel) -> None:
    with relay(database_url, other_pid=True) as url:
        findings = look(url)
    assert states(findings) == {"pooler": "warning"}
    assert "in transaction mode the lock of a run does not hold" in findings["pooler"].detail


def test_a_database_far_away_is_seen(database_url: str) -> None:
    with relay(database_url, delay_s=0.025) as url:
        findings = look(url)
    assert findings["round trip"].state == "warning"
    assert findings["round trip"].cure == "run catvec nearer to the database; searches wait for it as well"
    assert findings["clock"].state == "ok"


def test_a_long_transaction_is_seen(
    database_url: str, first_model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LONG_TRANSACTION", timedelta(0))
    with psycopg.connect(database_url, application_name="report") as other:
        pid, user = other.info.backend_pid, other.info.user
        other.execute("SELECT count(*) FROM catvec.products")
        finding = look(database_url)["long transactions"]
    assert finding.state == "warning"
    assert f"process {pid} of {user!r} (report) has had a transaction open for 0 s" in finding.detail
    assert finding.cure == f"end it in its application, or: SELECT pg_terminate_backend({pid});"


# extension, tables, rights


def test_a_missing_extension_is_a_problem(database_url: str, superuser: Connection) -> None:
    superuser.execute("DROP SCHEMA catvec, catvec_store CASCADE; DROP EXTENSION vector")
    findings = look(database_url)
    name = superuser.info.dbname
    assert seen(findings["vector extension"]) == (
        "problem",
        f"database {name!r} has no vector extension",
        "an administrator of the database runs: CREATE EXTENSION vector;",
    )
    assert seen(findings["tables"]) == (
        "problem",
        f"database {name!r} has no catvec tables",
        "run: catvec db migrate",
    )
    assert {findings[name].state for name in examination.CONTENT} == {"skipped"}


@pytest.mark.parametrize(
    ("version", "state", "words"),
    [
        ("0.7.4", "problem", "the vector extension is 0.7.4, expected at least 0.8.0"),
        ("0.8.1", "warning", "0.8.1 in schema public can be attacked while it builds an index (CVE-2026-3172)"),
        ("0.8.3", "warning", "0.8.3 in schema public may damage HNSW indexes in VACUUM"),
        ("0.8.4", "warning", "0.8.4 in schema public, the server has 0.8.5"),
    ],
)
def test_an_old_extension_is_seen(
    database_url: str, superuser: Connection, version: str, state: str, words: str
) -> None:
    offered = health.offered_vector(superuser)
    superuser.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", (version,))
    finding = look(database_url)["vector extension"]
    assert (finding.state, finding.detail) == (state, words.replace("0.8.5", str(offered)))
    assert "ALTER EXTENSION vector UPDATE;" in (finding.cure or "")


def test_an_extension_off_the_search_path_is_seen(
    database_url: str, superuser: Connection, first_model: StoredModel
) -> None:
    superuser.execute("CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions")
    user = conninfo_to_dict(database_url)["user"]
    superuser.execute(sql.SQL("GRANT USAGE ON SCHEMA extensions TO {}").format(sql.Identifier(str(user))))
    findings = look(database_url)
    assert states(findings) == {"search path": "warning"}
    assert findings["search path"].detail == (
        f"lacks schema extensions: `embedding <=> $1` fails for {user!r} (catvec and its SQL functions still work)"
    )
    assert findings["search path"].cure == f'ALTER ROLE "{user}" SET search_path = "$user", public, "extensions";'


def test_a_database_without_tables_says_how_to_make_them(empty_database_url: str) -> None:
    findings = look(empty_database_url)
    assert states(findings) == {"tables": "problem"} | dict.fromkeys(examination.CONTENT, "skipped")
    assert findings["tables"].cure == "run: catvec db migrate"
    assert findings["failures"].detail == HAS_NOTHING
    assert "may make catvec's tables" in findings["rights"].detail


def test_tables_of_another_release_are_a_problem(shop: Shop, database_url: str) -> None:
    change(shop, "UPDATE catvec_store.alembic_version SET version_num = '0000'")
    finding = look(database_url)["tables"]
    assert (finding.state, finding.cure) == ("problem", "run: catvec db migrate")
    assert finding.detail.endswith(f"is at version 0000, expected {newest_version()}")


@pytest.fixture
def guest(superuser: Connection, database_url: str) -> Iterator[tuple[str, str]]:
    """The name and URL of another user, who has been granted nothing."""
    name = f"catvec_guest_{uuid.uuid4().hex[:8]}"
    role = sql.Identifier(name)
    superuser.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(name)))
    yield name, make_conninfo(database_url, user=name, password=name)
    superuser.execute(sql.SQL("DROP OWNED BY {}").format(role))
    superuser.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_reader_is_told_what_he_may_do(
    shop: Shop, superuser: Connection, guest: tuple[str, str], first_model: StoredModel
) -> None:
    name, url = guest
    superuser.execute(sql.SQL("GRANT USAGE ON SCHEMA catvec TO {}").format(sql.Identifier(name)))
    findings = look(url)
    owner = shop.session.connection().info.user
    assert states(findings) == {"rights": "warning", "tables": "skipped"} | dict.fromkeys(
        examination.CONTENT, "skipped"
    )
    assert seen(findings["rights"])[1:] == (
        f"user '{name}' may read and search, not run",
        f"for catvec run connect as {owner}, or let {owner} run: catvec db grant --writer {name}",
    )
    assert findings["long transactions"].detail.endswith("; sessions of other users that cannot be seen: 2")
    assert findings["tables"].detail == f"user '{name}' reads the public schema catvec only"


def test_a_writer_is_told_what_he_may_not_do(shop: Shop, guest: tuple[str, str], first_model: StoredModel) -> None:
    name, url = guest
    shop.session.run(lambda connection: grant_roles(connection, readers=(), writers=(name,)))
    findings = look(url)
    assert states(findings) == {"rights": "warning"}
    assert findings["rights"].detail == (
        f"user '{name}' may write vectors, but not add a model, build an index or migrate"
    )


def test_a_database_where_nothing_may_be_made_is_a_problem(
    superuser: Connection, guest: tuple[str, str], database_url: str
) -> None:
    name, url = guest
    superuser.execute("DROP SCHEMA catvec, catvec_store CASCADE")
    database = superuser.info.dbname
    assert seen(look(url)["rights"]) == (
        "problem",
        f"user '{name}' lacks CREATE on database \"{database}\", which a run needs",
        f'an administrator runs: GRANT CREATE ON DATABASE "{database}" TO "{name}";',
    )
    revoke = sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))
    superuser.execute(revoke)
    assert (look(url)["rights"].cure or "").startswith("an administrator runs: GRANT TEMPORARY, CREATE ON DATABASE")


# catvec's own server


def test_the_own_server_is_looked_at_but_never_made(catvec: Catvec, embedded_home: Path) -> None:
    outcome = catvec("doctor", "--home", embedded_home)
    assert outcome.code == 0
    assert f"not made yet; it would be made in {embedded_home}" in outcome.out
    assert "hint: own server: catvec run CATALOG makes it, or catvec db start" in outcome.err
    assert not embedded_home.exists()


def test_the_own_server_is_started_when_it_is_stopped(catvec: Catvec, old_home: Path) -> None:
    outcome = catvec("doctor", "--home", old_home, "--json")
    assert outcome.code == 0
    findings = {finding["name"]: finding for finding in outcome.json()["findings"]}
    assert findings["own server"]["detail"].endswith("started for this examination")
    assert findings["tables"]["state"] == "ok"
    assert catvec("db", "status", "--home", old_home, "--json").json()["running"] is False


def test_an_own_server_that_does_not_start_skips_the_rest(catvec: Catvec, old_home: Path) -> None:
    (old_home / "data" / "PG_VERSION").write_text("16\n")
    outcome = catvec("doctor", "--home", old_home, "--json")
    assert outcome.code == 1
    findings = {finding["name"]: finding for finding in outcome.json()["findings"]}
    assert "is a folder of PostgreSQL '16'" in findings["database"]["detail"]
    assert findings["tables"]["detail"] == "the database cannot be reached"
