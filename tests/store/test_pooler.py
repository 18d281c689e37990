"""Behind a real PgBouncer: searches leave nothing to the next client, and runs are refused a shared session."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pipeline.errors import StoreError
from pipeline.store.connect import Session, connect
from pipeline.store.pooler import is_pooled, require_session
from pipeline.store.scratch import scratch_tables
from tests.fixtures.doctor import look
from tests.fixtures.roles import READER, grant, login

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec
    from tests.fixtures.healthy import Healthy
    from tests.fixtures.pooler import Pooler

CLIENTS = 10
ROUNDS = 12

QUESTIONS = {
    "product": "SELECT product_id, round(similarity::numeric, 5) FROM catvec.similar_products('P03', 4)",
    "filter": """SELECT product_id FROM catvec.similar_products('P03', 4, '{"category": "odd"}')""",
    "vector": "SELECT product_id FROM catvec.search_by_vector((SELECT embedding FROM catvec.image_embeddings"
    " WHERE product_id = 'P05'), 3)",
    "array": "SELECT product_id FROM catvec.search_by_array(ARRAY[{numbers}], 5)",
    "view": "SELECT product_id FROM catvec.image_embeddings ORDER BY embedding <=> '[{numbers}]' LIMIT 5",
    "batch": "SELECT query_product, product_id FROM catvec.similar_products_batch(ARRAY['P01', 'P02'], 2)",
    "duplicates": "SELECT product_id, duplicate_id FROM catvec.duplicates(0.9)",
}
LOCKS = """
SELECT count(*)
  FROM pg_locks l
  JOIN pg_database d ON d.oid = l.database
 WHERE l.locktype = 'advisory'
   AND d.datname = current_database()
"""
NUMBERS = ", ".join(str(number / 32) for number in range(1, 33))


def questions() -> dict[str, str]:
    return {name: text.replace("{numbers}", NUMBERS) for name, text in QUESTIONS.items()}


def answers(url: str) -> dict[str, list[tuple[Any, ...]]]:
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        return {name: connection.execute(text).fetchall() for name, text in questions().items()}  # type: ignore[call-overload]


def settings(url: str) -> dict[int, dict[str, str]]:
    """All settings of both server connections, by process: a transaction on each, so that none is seen twice."""
    found = {}
    with ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(psycopg.connect(url, prepare_threshold=None))
            # the settings of hnsw and plpgsql come with their libraries
            connection.execute("SELECT '[1]'::halfvec, catvec.choose_model()")
            # the pooler itself keeps this one up to date
            rows = connection.execute("SELECT name, setting FROM pg_settings WHERE name <> 'application_name'")
            found[_pid(connection)] = dict(rows.fetchall())
    return found


def _pid(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.usefixtures("roles")
def test_ten_readers_on_two_connections_get_right_answers_and_leave_nothing_set(
    pooler: Pooler, healthy: Healthy, catvec: Catvec
) -> None:
    grant(healthy.url)
    expected = answers(healthy.url)
    assert all(expected[name] for name in expected if name != "duplicates")
    wrong: list[object] = []

    def ask(url: str) -> None:
        try:
            wrong.extend(found for _ in range(ROUNDS) if (found := answers(url)) != expected)
        except BaseException as error:  # noqa: BLE001 - told below
            wrong.append(error)

    with pooler(login(healthy.url, READER)) as url:
        before = settings(url)
        clients = [threading.Thread(target=ask, args=(url,)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        similar = catvec("similar", "P03", "-k", 4, "--db", url, "--json")
        found = catvec("search", "--image", healthy.folder / "7.jpg", "-k", 1, "--db", url, "--json")
        words = catvec("search", "a red thing", "-k", 3, "--db", url, "--json")
        for client in clients:
            client.join(60)
        after = settings(url)

    assert wrong == []
    assert [hit["product_id"] for hit in similar.json()["hits"]] == [row[0] for row in expected["product"]]
    assert [hit["product_id"] for hit in found.json()["hits"]] == ["P07"]
    assert len(words.json()["hits"]) == 3
    assert len(before) == 2
    assert {pid: found.items() - before[pid].items() for pid, found in after.items()} == {
        pid: set() for pid in before
    }
    assert before.popitem()[1].items() >= {"hnsw.ef_search": "40", "enable_hashjoin": "on"}.items()


def test_a_session_leaves_nothing_set(database_url: str) -> None:
    query = "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'application_name'"
    with psycopg.connect(database_url, autocommit=True) as connection:
        expected = connection.execute(query).fetchall()

    with Session(database_url) as session:
        assert session.rows(query) == expected
        assert session.rows("SELECT '[1,2]'::halfvec")[0][0].to_list() == [1, 2]


def test_what_takes_a_lock_is_refused_behind_a_shared_session(
    pooler: Pooler, unchanged: Healthy, catvec: Catvec, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.yaml"
    labels.write_text("colour: [red, green]")
    with pooler(unchanged.url) as url:
        for command in (
            ["run", unchanged.folder / "catalog.csv", "--model", unchanged.model, "--model-name", "healthy"],
            ["db", "migrate"],
            ["tag", labels],
            ["tag", "--drop", "colour"],
            ["neighbours", "build"],
        ):
            assert catvec(*command, "--db", url).complaint() == (
                1,
                "a pooler in transaction mode stands between here and the database: what belongs to a session, such "
                "as the lock of a run, does not hold",
                "give --db the server's own address and port, or the pooler's in session mode; searches may go on "
                "through this one",
            )
        with pytest.raises(StoreError, match="a pooler in transaction mode"), scratch_tables(url, dims=2):
            pass
        # a lock that was taken through the pooler would stay with it
        assert unchanged.execute(LOCKS) == [(0,)]
        assert look(url)["pooler"].state == "warning"


def test_a_run_goes_through_a_pooler_in_session_mode(pooler: Pooler, healthy: Healthy, catvec: Catvec) -> None:
    with pooler(healthy.url, mode="session", size=3) as url:
        outcome = catvec(
            *("run", healthy.folder / "catalog.csv", "--model", healthy.model, "--model-name", "healthy"),
            *("--db", url, "--json"),
        )

    assert outcome.code == 0, outcome.err
    assert outcome.json()["unchanged"] == 12


def test_a_shared_session_is_known_while_others_are_busy(pooler: Pooler, database_url: str) -> None:
    """Each query may then meet either of the server's processes."""
    done = threading.Event()

    def be_busy(url: str) -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            while not done.is_set():
                connection.execute("SELECT pg_sleep(0.001)")

    with pooler(database_url) as url:
        others = [threading.Thread(target=be_busy, args=(url,)) for _ in range(4)]
        for other in others:
            other.start()
        try:
            for _ in range(5):
                with connect(url) as connection, pytest.raises(Exception, match="a pooler in transaction mode"):
                    require_session(connection, url)
        finally:
            done.set()
            for other in others:
                other.join(10)


def test_a_direct_connection_is_a_session(database_url: str) -> None:
    with connect(database_url) as connection:
        require_session(connection, database_url)

        assert not is_pooled(connection)
