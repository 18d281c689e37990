"""Connections: what is wrong is said in one sentence without the password, and a lost server is ridden out."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pipeline.errors import AwayError, CatvecError, ConfigError, LockedError, StoreError
from pipeline.store.connect import (
    SPELLING,
    Connection,
    Session,
    connect,
    hide_password,
    normalise_url,
    require_vector,
    translate,
)
from pipeline.store.runs import begin_run, take_lock
from tests.fixtures.store import model_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.store import Shop


def with_parts(url: str, **parts: object) -> str:
    """The URL with other parts; `password=""` leaves the password out."""
    now = {**conninfo_to_dict(url), **parts}
    password = f":{now['password']}" if now.get("password") else ""
    return f"postgresql://{now['user']}{password}@{now['host']}:{now['port']}/{now['dbname']}"


def place(url: str, **parts: object) -> str:
    return with_parts(url, **{**parts, "password": ""})


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def error_of(url: str) -> CatvecError:
    with pytest.raises(CatvecError) as caught, Session(url):
        pass
    error = caught.value
    shown = f"{error!r} {error} {error.message} {error.hint} {pickle.dumps(error)!r}"
    assert "s3cret" not in shown
    assert "ret@" not in shown
    return error


@pytest.mark.parametrize(
    ("parts", "what", "hint"),
    [
        ({"password": "s3cret"}, "refused the user or password", "check the user and password in --db"),
        (
            {"user": "nobody", "password": "s3cret"},
            "refused the user or password",
            "check the user and password in --db",
        ),
        ({"password": ""}, "wants a password", "put it into --db, or into ~/.pgpass"),
        ({"dbname": "nosuch"}, "does not exist", "create it, or check the name at the end of --db"),
        (
            {"port": 1, "password": "s3cret"},
            "is not listening",
            "is the server running? check host and port in --db",
        ),
        (
            {"host": "nosuch.invalid", "password": "s3cret"},
            "has a host name that cannot be found",
            "check the host in --db",
        ),
        (
            {"host": "a" * 64 + ".invalid", "password": "s3cret"},
            "has a host name that cannot be found",
            "check the host in --db",
        ),
    ],
)
def test_each_wrong_part_of_the_url_has_its_sentence(
    database_url: str, parts: dict[str, Any], what: str, hint: str
) -> None:
    error = error_of(with_parts(database_url, **parts))

    assert (type(error), error.message, error.hint) == (
        StoreError,
        f"database {place(database_url, **parts)} {what}",
        hint,
    )


def test_a_server_that_says_nothing_is_given_up(database_url: str) -> None:
    with silent_server() as port:
        started = time.monotonic()
        url = with_parts(database_url, port=port, password="s3cret")

        error = error_of(f"{url}?connect_timeout=2")

    assert error.message == f"database {place(database_url, port=port)} does not answer within 2 s"
    assert error.hint == "check host and port in --db, and the firewall"
    assert time.monotonic() - started < 6


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the database URL is empty"),
        ("  ", "the database URL is empty"),
        ("shop", "'shop' is not a PostgreSQL connection string"),
        ("mysql://u:s3cret@host/shop", "'mysql://…' is not a PostgreSQL connection string"),
        ("host=shop s3cret", "'…' is not a PostgreSQL connection string"),
        ("host=shop password='s3cret", "'…' is not a PostgreSQL connection string"),
        ("postgresql://u:s3cret%ret@host/shop", "'postgresql://…' is not a PostgreSQL connection string"),
    ],
)
def test_what_is_no_url_is_refused(url: str, message: str) -> None:
    error = error_of(url)

    assert (type(error), error.message, error.hint) == (ConfigError, message, SPELLING)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3c@ret@host/shop",
        "postgresql://u:s3c/ret@host/shop",
        "postgresql://u:s3cret",
        "postgresql+psycopg://u:s3c@ret@host/shop",
    ],
)
def test_a_password_with_a_bare_sign_in_it_is_not_taken_for_the_host(url: str) -> None:
    """libpq would look for a host `ret@host`, and the error would print half of the password."""
    error = error_of(url)

    assert (type(error), error.message, error.hint) == (
        ConfigError,
        "the database URL cannot be read: its password ends early, or its port is no number",
        SPELLING,
    )


@pytest.mark.parametrize(
    "url", ["postgresql://u:s3cret@host/shop?sslmod=require", "host=shop password=s3cret sslmod=require"]
)
def test_an_unknown_option_is_named(url: str) -> None:
    error = error_of(url)

    assert (type(error), error.message) == (
        ConfigError,
        "the database URL has the option 'sslmod', which PostgreSQL does not know",
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:s3cret@host:5433/shop", "postgresql://u@host:5433/shop"),
        ("postgresql://u:s3cret%40ret@host/shop", "postgresql://u@host:5432/shop"),
        ("postgresql://host/shop?user=u&password=s3cret", "postgresql://u@host:5432/shop"),
        ("host=host user=u password=s3cret dbname=shop", "postgresql://u@host:5432/shop"),
        ("postgresql:///shop?host=/run/postgresql", "postgresql://@/run/postgresql:5432/shop"),
        ("postgres+x://u:s3cret@host/shop", "postgres+x://…"),
        ("password='s3cret", "…"),
        ("postgresql://u:s3c@ret@host/shop", "postgresql://…"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert hide_password(url) == shown
    assert repr(Session(url)) == f"Session({shown!r})"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_the_spellings_of_others_are_understood(scheme: str) -> None:
    assert normalise_url(f"{scheme}://u:p%40@host/shop") == "postgresql://u:p%40@host/shop"


def test_several_hosts_in_one_url_are_taken_as_they_are() -> None:
    url = "postgresql://u:s3cret@one:5432,two:5433/shop"

    assert normalise_url(url) == url
    assert hide_password(url) == "postgresql://u@one,two:5432,5433/shop"


def test_an_old_vector_extension_is_refused(database_url: str) -> None:
    """No server here has an old pgvector: this connection sees a copy of the list of extensions in its place."""
    with connect(database_url) as connection:
        connection.execute(
            "CREATE TEMPORARY TABLE pg_extension AS "
            "SELECT extname, extnamespace, '0.7.4' AS extversion FROM pg_catalog.pg_extension"
        )
        connection.execute("SET search_path TO pg_temp, pg_catalog")

        with pytest.raises(StoreError) as caught:
            require_vector(connection)

    assert caught.value.message == "the vector extension is 0.7.4, expected at least 0.8.0"
    assert caught.value.hint == (
        "install pgvector 0.8.4 or newer on the server, then run: ALTER EXTENSION vector UPDATE;"
    )


def kill_from_outside(url: str, connection: Connection) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))


def test_a_session_does_its_work_again_after_the_connection_was_cut(shop: Shop, database_url: str) -> None:
    shop.session.run(lambda connection: connection.execute("CREATE TABLE catvec_store.notes (note text)"))
    tries = []

    def work(connection: Connection) -> str:
        tries.append(connection.info.backend_pid)
        connection.execute("INSERT INTO catvec_store.notes VALUES (%s)", (f"try {len(tries)}",))
        if len(tries) == 1:
            kill_from_outside(database_url, connection)
        connection.execute("SELECT 1")
        return "done"

    assert shop.session.run(work) == "done"
    assert len(set(tries)) == 2
    assert shop.all("SELECT note FROM catvec_store.notes") == [("try 2",)]


def test_a_connection_cut_between_two_pieces_of_work_is_opened_again(shop: Shop, database_url: str) -> None:
    kill_from_outside(database_url, shop.session.connection())

    assert shop.session.rows("SELECT 1") == [(1,)]


def test_run_once_does_not_repeat(shop: Shop, database_url: str) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        kill_from_outside(database_url, connection)
        connection.execute("SELECT 1")

    with pytest.raises(StoreError, match="terminating connection due to administrator command"):
        shop.session.run_once(work)

    assert len(tries) == 1
    assert shop.session.rows("SELECT 1") == [(1,)]


def test_an_error_that_will_not_pass_is_raised_at_once_with_its_cure(shop: Shop) -> None:
    started = time.monotonic()

    with pytest.raises(StoreError) as caught:
        shop.session.rows("SELECT * FROM catvec_store.nothing")

    assert caught.value.message == 'relation "catvec_store.nothing" does not exist'
    assert caught.value.hint == "run: catvec db migrate"
    assert time.monotonic() - started < 1


def test_a_server_process_that_is_frozen_is_given_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the bytes, and the request to cancel, and answers none of them."""
    monkeypatch.setattr("pipeline.store.connect.CANCEL_S", 0.3)
    pid = shop.session.connection().info.backend_pid
    raised: list[AwayError] = []

    def wait() -> None:
        try:
            shop.session.run(lambda connection: connection.execute("SELECT pg_sleep(60)"))
        except AwayError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while shop.session.connection().info.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
        time.sleep(0.01)
    try:
        os.kill(pid, signal.SIGSTOP)
    except (ProcessLookupError, PermissionError):
        pytest.skip("the server is on another machine, or another user's")
    try:
        began = time.monotonic()
        while waiting.is_alive() and time.monotonic() - began < 10:
            shop.session.cancel()
            waiting.join(0.1)
        with pytest.raises(AwayError, match="the database did not answer in time, and the run was to stop"):
            shop.session.run(lambda connection: connection.execute("SELECT 1"))
    finally:
        os.kill(pid, signal.SIGCONT)

    assert not waiting.is_alive()
    assert [error.message for error in raised] == ["the database did not answer in time, and the run was to stop"]


def test_a_deadlock_is_done_again(database_url: str, shop: Shop) -> None:
    shop.session.run(
        lambda connection: connection.execute("CREATE TABLE catvec_store.pair AS SELECT 1 AS id UNION SELECT 2")
    )
    both_hold_one, tries = threading.Barrier(2), []

    def lock_both(first: int, second: int) -> None:
        def work(connection: Connection) -> None:
            tries.append(first)
            connection.execute("SELECT 1 FROM catvec_store.pair WHERE id = %s FOR UPDATE", (first,))
            if len(tries) <= 2:
                both_hold_one.wait(10)
            connection.execute("SELECT 1 FROM catvec_store.pair WHERE id = %s FOR UPDATE", (second,))

        with Session(database_url) as session:
            session.run(work)

    other = threading.Thread(target=lock_both, args=(2, 1))
    other.start()
    lock_both(1, 2)
    other.join(20)

    assert sorted(tries) in ([1, 1, 2], [1, 2, 2])


def test_the_second_taker_of_a_lock_is_told_who_holds_it(database_url: str, shop: Shop) -> None:
    model = shop.register(model_spec("tiny"))
    with Session(database_url, on_connect=lambda connection: take_lock(connection, "tiny")) as holder:
        holder.run(lambda connection: begin_run(connection, model, "default"))
        [(host, pid, since)] = shop.all("SELECT host, pid, started_at FROM catvec.run_status")

        with (
            pytest.raises(LockedError) as caught,
            Session(database_url, on_connect=lambda connection: take_lock(connection, "tiny")),
        ):
            pass
        with Session(database_url, on_connect=lambda connection: take_lock(connection, "other")):
            pass  # the lock is the model's, not the database's

    assert caught.value.message == (
        f"another run with model 'tiny' is going on: process {pid} on {host}, since {since:%Y-%m-%d %H:%M:%S %Z}"
    )
    assert caught.value.hint == "wait until it is done (--wait 30m does), or stop it"


def test_a_lock_is_free_when_its_connection_dies(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.connect.OUTAGE_S", 0.3)
    with Session(database_url, on_connect=lambda connection: take_lock(connection, "tiny")) as holder:
        kill_from_outside(database_url, holder.connection())

        with connect(database_url) as heir:
            take_lock(heir, "tiny")

            # the first one comes back, and hopes for a while that the lock is still its own
            with pytest.raises(LockedError):
                holder.rows("SELECT 1")


def test_a_session_takes_its_lock_again_on_a_new_connection(database_url: str) -> None:
    with Session(database_url, on_connect=lambda connection: take_lock(connection, "tiny")) as holder:
        kill_from_outside(database_url, holder.connection())
        holder.rows("SELECT 1")

        with connect(database_url) as other, pytest.raises(LockedError):
            take_lock(other, "tiny")


def test_a_database_without_the_extension_is_named(postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE catvec_test_bare")
    try:
        error = error_of(with_parts(postgres, dbname="catvec_test_bare"))
    finally:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("DROP DATABASE catvec_test_bare WITH (FORCE)")

    assert error.message == "database 'catvec_test_bare' has no vector extension"
    assert error.hint == "an administrator of the database runs: CREATE EXTENSION vector;"


def test_a_connection_that_was_terminated_has_the_hint_of_one_that_was_lost() -> None:
    found = translate(psycopg.errors.AdminShutdown("terminating connection due to administrator command"))

    assert found.message == "terminating connection due to administrator command"
    assert found.hint == "the server went away; when it is back, run the same command again"
