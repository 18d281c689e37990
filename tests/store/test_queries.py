"""Stored texts in the tables: a vector always belongs to the text beside it, whoever writes at the same time."""

from __future__ import annotations

import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest

from pipeline.errors import ConfigError
from pipeline.store.connect import Session
from pipeline.store.migrate import migrate
from pipeline.store.psql import find_psql
from pipeline.store.queries import (
    StoredQuery,
    find_missing,
    list_queries,
    put_query,
    put_vectors,
    query_statement,
    remove_query,
    vector_literal,
    vector_statement,
)
from tests.fixtures.store import Shop, model_spec, product, unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

X, Y = unit(1, 0, 0, 0), unit(0, 1, 0, 0)


@pytest.fixture
def model(shop: Shop) -> StoredModel:
    """A lies on the first axis, B on the second."""
    shop.sync(product("A", "a.jpg", category="dr'ess"), product("B", "b.jpg", row=2, category="shöe \\ (  ,  )"))
    made = shop.register()
    shop.embed(made, [X, Y])
    shop.activate(made)
    return made


def write(
    name: str, text: str, model: StoredModel, vector: NDArray[np.float32], *, replaced: bool = False
) -> Callable[[Connection], StoredQuery]:
    def work(connection: Connection) -> StoredQuery:
        stored = put_query(connection, name, text, replace=replaced)
        put_vectors(connection, model=model, queries=[stored], vectors=vector[None])
        return stored

    return work


def stored(shop: Shop) -> list[tuple[Any, ...]]:
    return shop.all("SELECT name, text, model, embedding::text FROM catvec.queries ORDER BY name, model")


def test_a_text_keeps_its_vectors_until_another_replaces_it(shop: Shop, model: StoredModel) -> None:
    second = shop.register(model_spec("second", dims=3, revision="sha256:2"))
    shop.session.run(write("q", "red", model, X))
    shop.session.run(write("q", "red", second, unit(1, 0, 0)))
    assert list_queries(shop.session.connection()) == [StoredQuery(name="q", text="red", models=["second", "tiny"])]

    shop.session.run(write("q", "red", model, Y))  # the same text has the same vector: nothing is rewritten
    with pytest.raises(ConfigError) as caught:
        shop.session.run(write("q", "blue", model, Y))

    assert caught.value.message == "query 'q' is stored already, with the text 'red'"
    assert caught.value.hint == "take another name, or add --replace: the vectors of the old text go"
    assert stored(shop) == [("q", "red", "second", "[1,0,0]"), ("q", "red", "tiny", "[1,0,0,0]")]
    assert find_missing(shop.session.connection(), second) == []

    shop.session.run(write("q", "blue", model, Y, replaced=True))
    assert stored(shop) == [("q", "blue", "tiny", "[0,1,0,0]")]
    assert [query.name for query in find_missing(shop.session.connection(), second)] == ["q"]
    assert shop.session.run(lambda connection: remove_query(connection, "q"))
    assert not shop.session.run(lambda connection: remove_query(connection, "q"))
    assert shop.all("SELECT * FROM catvec_store.query_vectors") == []


@pytest.mark.parametrize("text", ["blue", None])
def test_a_text_that_changed_while_it_was_encoded_gets_no_vector(
    shop: Shop, model: StoredModel, text: str | None
) -> None:
    other = shop.register(model_spec("other", revision="sha256:2"))
    shop.session.run(write("q", "red", model, X))
    missing = find_missing(shop.session.connection(), other)
    if text is None:
        shop.session.run(lambda connection: remove_query(connection, "q"))
    else:
        shop.session.run(write("q", text, model, Y, replaced=True))

    shop.session.run(lambda connection: put_vectors(connection, other, missing, X[None]))

    assert stored(shop) == ([] if text is None else [("q", "blue", "tiny", "[0,1,0,0]")])


def test_who_replaces_a_text_waits_for_its_vector_and_takes_it_away(
    shop: Shop, model: StoredModel, database_url: str
) -> None:
    other = shop.register(model_spec("other", revision="sha256:2"))
    shop.session.run(write("q", "red", model, X))
    missing = find_missing(shop.session.connection(), other)
    connection = shop.session.connection()
    with connection.transaction():
        put_vectors(connection, other, missing, X[None])
        replacing = in_thread(database_url, write("q", "blue", model, Y, replaced=True))
        wait_for_lock(shop)
    replacing.join(timeout=10)

    assert stored(shop) == [("q", "blue", "tiny", "[0,1,0,0]")]


@pytest.mark.parametrize("text", ["red", "blue"])
def test_of_two_who_add_a_name_at_once_the_second_finds_the_first(
    shop: Shop, model: StoredModel, database_url: str, text: str
) -> None:
    refused: list[Exception] = []
    connection = shop.session.connection()
    with connection.transaction():
        write("q", "red", model, X)(connection)
        second = in_thread(database_url, write("q", text, model, Y), refused)
        wait_for_lock(shop)
    second.join(timeout=10)

    assert stored(shop) == [("q", "red", "tiny", "[1,0,0,0]")]
    assert [str(error) for error in refused] == (
        [] if text == "red" else ["query 'q' is stored already, with the text 'red'"]
    )


def in_thread(
    url: str, work: Callable[[Connection], object], errors: list[Exception] | None = None
) -> threading.Thread:
    def run() -> None:
        with Session(url) as session:
            try:
                session.run(work)
            except ConfigError as error:
                (errors if errors is not None else []).append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def wait_for_lock(shop: Shop) -> None:
    """Until somebody waits for what this session holds."""
    deadline = time.monotonic() + 10
    while not shop.one("SELECT count(*) FROM pg_locks WHERE NOT granted"):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.01)


def test_a_vector_that_is_no_unit_vector_is_refused(shop: Shop, model: StoredModel) -> None:
    for vector in (np.full(4, np.nan, np.float32), np.full(4, 1, np.float32)):
        with pytest.raises((psycopg.DataError, psycopg.IntegrityError)):
            shop.session.run(write("q", "red", model, vector))

    assert shop.all("SELECT * FROM catvec_store.queries") == []


def test_a_literal_keeps_what_matters(shop: Shop) -> None:
    vector = unit(*np.random.default_rng(1).normal(size=512))

    read = shop.one("SELECT %s::vector", vector_literal(vector)).to_numpy()

    np.testing.assert_allclose(read, vector, rtol=1e-6)
    assert np.linalg.norm(read) == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("conditions", "found"),
    [({}, ["A", "B"]), ({"category": "dr'ess"}, ["A"]), ({"category": "shöe \\ (  ,  )"}, ["B"]), ({"x": '"'}, [])],
)
def test_a_statement_runs_in_psql_as_it_is(
    shop: Shop, database_url: str, conditions: dict[str, Any], found: list[str]
) -> None:
    for quoting in ("on", "off"):
        statement = vector_statement(shop.session.connection(), X, k=5, conditions=conditions, model="tiny")

        rows = psql(database_url, f"SET standard_conforming_strings = {quoting};\n{statement}")

        assert [row.split("|")[0] for row in rows] == found


@pytest.mark.parametrize(
    "name", ["it's", 'say "hi"', "Sommerkleider für 夏 🌻", "back\\slash", " ( ,  ", ":name %s {}", "'); --"]
)
def test_names_may_hold_whatever_text_may(shop: Shop, model: StoredModel, database_url: str, name: str) -> None:
    shop.session.run(write(name, f"{name}'s text", model, X))

    for pinned in (None, "tiny"):
        statement = query_statement(shop.session.connection(), name, model=pinned)
        assert [row.split("|")[0] for row in psql(database_url, statement)] == ["A", "B"]
    assert shop.session.run(lambda connection: remove_query(connection, name))


def psql(url: str, script: str) -> list[str]:
    program = [find_psql(), url, "--no-psqlrc", "--quiet", "-At", "-v", "ON_ERROR_STOP=1", "-f", "-"]
    ran = subprocess.run(program, input=script, capture_output=True, encoding="utf-8", timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (
            "'nix'",
            "no stored query 'nix'",
            "see the view catvec.queries; make one with: catvec queries add NAME TEXT",
        ),
        ("NULL", "no stored query NULL", "see the view catvec.queries; make one with: catvec queries add NAME TEXT"),
        (
            "'q', 5, '{}', 'second'",
            'stored query "q" has no vector under model "second"',
            "run: catvec queries refresh --model second",
        ),
        ("'q', 5, '{}', 'third'", 'no model "third", there are: second, tiny', None),
        ("'q', 0", "k is 0, expected 1 to 1000", None),
    ],
)
def test_the_sql_function_says_what_is_missing(
    shop: Shop, model: StoredModel, call: str, message: str, hint: str | None
) -> None:
    shop.register(model_spec("second", dims=3, revision="sha256:2"))
    shop.session.run(write("q", "red", model, X))

    with pytest.raises(psycopg.Error) as caught:
        shop.all(f"SELECT * FROM catvec.search_by_query({call})")

    assert (caught.value.diag.message_primary, caught.value.diag.message_hint) == (message, hint)


def test_a_text_without_any_vector_is_listed_and_says_so(shop: Shop, model: StoredModel) -> None:
    shop.session.run(lambda connection: put_query(connection, "q", "red", replace=False))

    assert list_queries(shop.session.connection()) == [StoredQuery(name="q", text="red", models=[])]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match='"q" has no vector under model "tiny"'):
        shop.all("SELECT * FROM catvec.search_by_query('q')")


def test_statements_need_no_search_path_when_the_extension_is_elsewhere(
    postgres: str, empty_database_url: str
) -> None:
    admin_url = f"{postgres.rsplit('/', 1)[0]}/{empty_database_url.rsplit('/', 1)[1]}"
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute('CREATE SCHEMA "Ext 1"; ALTER EXTENSION vector SET SCHEMA "Ext 1"')
        admin.execute('GRANT USAGE ON SCHEMA "Ext 1" TO PUBLIC')
    migrate(empty_database_url)
    with Session(empty_database_url) as session:
        shop = Shop(session)
        shop.sync(product("A", "a.jpg"), product("B", "b.jpg", row=2))
        model = shop.register()
        shop.embed(model, [X, Y])
        shop.activate(model)
        session.run(write("q", "red", model, Y))
        by_vector = vector_statement(session.connection(), X, k=1, conditions={}, model="tiny")
        by_query = query_statement(session.connection(), "q", model=None)

    assert psql(empty_database_url, by_vector) == ["A||1"]
    assert psql(empty_database_url, by_query) == ["B||1", "A||0"]
