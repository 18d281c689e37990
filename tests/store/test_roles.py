"""Readers, writers and the owner: each connects as himself, and tries what he must not do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pipeline.errors import StoreError
from pipeline.store.connect import Session
from pipeline.store.health import see_rights
from pipeline.store.index import find_index
from pipeline.store.migrate import migrate
from pipeline.store.models import find_model
from tests.fixtures.catalogs import photo, write_catalog
from tests.fixtures.roles import READER, STRANGER, WRITER, grant, login
from tests.fixtures.store import Shop, model_spec, product, unit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.store.connect import Connection
    from tests.fixtures.command import Catvec
    from tests.fixtures.healthy import Healthy

pytestmark = pytest.mark.usefixtures("roles")

RIGHTS = """
SELECT n.nspname || '.' || c.relname, c.relacl::text
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname IN ('catvec', 'catvec_store')
 UNION ALL
SELECT nspname, nspacl::text FROM pg_namespace
 UNION ALL
SELECT proname, proacl::text FROM pg_proc
 UNION ALL
SELECT defaclobjtype::text, defaclacl::text FROM pg_default_acl
 UNION ALL
SELECT datname, datacl::text FROM pg_database WHERE datname = current_database()
 ORDER BY 1, 2
"""

# every function and view of the contract, as an app calls it with nothing set
READS = [
    "SELECT * FROM catvec.products",
    "SELECT * FROM catvec.image_embeddings",
    "SELECT * FROM catvec.image_embeddings_tiny",
    "SELECT * FROM catvec.models",
    "SELECT * FROM catvec.failures",
    "SELECT * FROM catvec.run_status",
    "SELECT * FROM catvec.schema_version",
    "SELECT * FROM catvec.queries",
    "SELECT * FROM catvec.neighbours",
    "SELECT * FROM catvec.tag_attributes",
    "SELECT * FROM catvec.product_tags",
    "SELECT * FROM catvec.similar_products('A')",
    "SELECT * FROM catvec.similar_products('A', 5, '{\"category\": \"dress\"}', 'tiny', 0.1, 'mean')",
    "SELECT * FROM catvec.similar_products('A', 5, '{\"tag:colour\": \"red\"}')",
    "SELECT * FROM catvec.similar_products_batch(ARRAY['A', 'B'], 5)",
    "SELECT * FROM catvec.search_by_vector('[1,0,0,0]', 5)",
    "SELECT * FROM catvec.search_by_array(ARRAY[1,0,0,0], 5)",
    "SELECT * FROM catvec.search_by_query('summer', 5)",
    "SELECT * FROM catvec.duplicates(0.5)",
    "SELECT catvec.combine_vectors(ARRAY[catvec.product_vector('A'), catvec.product_vector('B')])",
]
CALLS = [statement for statement in READS if "(" in statement]

NOT_FOR_READERS = [
    "SELECT * FROM catvec_store.products",
    "SELECT * FROM catvec_store.emb_tiny",
    "SELECT * FROM catvec_store.models",
    "SELECT catvec_store.activate_model('tiny')",
    "SELECT catvec_store.mark_ready(1::smallint)",
    "UPDATE catvec.products SET title = 'mine'",
    "DELETE FROM catvec.products",
    "INSERT INTO catvec.products (product_id) VALUES ('X')",
    "UPDATE catvec.models SET name = 'mine'",
    "CREATE TABLE catvec.mine (a int)",
    "CREATE VIEW catvec.mine AS SELECT 1 AS a",
    "CREATE FUNCTION catvec.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE VIEW catvec.products AS SELECT 1 AS product_id",
    "DROP VIEW catvec.products",
    "DROP FUNCTION catvec.search_by_array",
    "DROP SCHEMA catvec CASCADE",
    "ALTER VIEW catvec.products RENAME TO mine",
    "TRUNCATE catvec_store.products",
    "CREATE SCHEMA mine",
]

NOT_FOR_WRITERS = [
    # models are the owner's: their state, their tables, what apps read
    "SELECT catvec_store.activate_model('tiny')",
    "SELECT catvec_store.retire_model('tiny')",
    "SELECT catvec_store.create_model_table('tiny')",
    "SELECT catvec_store.create_model_view('tiny')",
    "UPDATE catvec_store.models SET state = 'active'",
    "UPDATE catvec_store.models SET ef_search = 10",
    "UPDATE catvec_store.models SET location = 'here', name = 'mine'",
    "INSERT INTO catvec_store.models (name, source, revision, location, preprocess, fingerprint, dims, has_text)"
    " VALUES ('mine', 'folder', 'x', 'x', '{}', 'x', 4, true)",
    "DELETE FROM catvec_store.models",
    "LOCK TABLE catvec_store.models IN SHARE ROW EXCLUSIVE MODE",
    # vectors are added and forgotten, never changed
    "UPDATE catvec_store.emb_tiny SET embedding = embedding",
    "TRUNCATE catvec_store.emb_tiny",
    "DROP TABLE catvec_store.emb_tiny",
    "ALTER TABLE catvec_store.emb_tiny ADD COLUMN mine int",
    "CREATE INDEX mine ON catvec_store.emb_tiny (run_id)",
    "DROP INDEX catvec_store.emb_tiny_pkey",
    # neither is what else stays
    "DELETE FROM catvec_store.runs",
    "TRUNCATE catvec_store.products CASCADE",
    "TRUNCATE catvec_store.failures",
    "UPDATE catvec_store.alembic_version SET version_num = '0000'",
    "DELETE FROM catvec_store.alembic_version",
    "CREATE TABLE catvec_store.mine (a int)",
    "CREATE FUNCTION catvec_store.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP SCHEMA catvec_store CASCADE",
    "CREATE RULE mine AS ON INSERT TO catvec_store.products DO INSTEAD NOTHING",
    *(statement for statement in NOT_FOR_READERS if "catvec." in statement or "SCHEMA" in statement),
]


@pytest.fixture
def granted_shop(shop: Shop, database_url: str) -> Shop:
    """A shop that `fill` filled."""
    return fill(shop, database_url)


def fill(shop: Shop, url: str) -> Shop:
    """Two products with vectors of the active model `tiny` and a stored text; READER and WRITER have their rights."""
    shop.sync(product("A", "1.jpg", category="dress"), product("B", "2.jpg", row=2, category="dress"))
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, 0), unit(1, 1, 0, 0)])
    shop.activate(model)
    connection = shop.session.connection()
    connection.execute("INSERT INTO catvec_store.queries (name, text) VALUES ('summer', 'summer dresses')")
    connection.execute(
        "INSERT INTO catvec_store.query_vectors (name, model_id, embedding) VALUES ('summer', %s, '[1,0,0,0]')",
        (model.model_id,),
    )
    connection.execute(
        "INSERT INTO catvec_store.neighbours (model_id, product_id, contents, neighbour_ids, similarities, wanted)"
        " VALUES (%s, 'A', '', '{B}', '{0.7}', 1)",
        (model.model_id,),
    )
    shop.tag(model, "colour", {"A": "red", "B": "red"})
    connection.execute("INSERT INTO catvec_store.bad_rows VALUES ('default', 7, 'X', 'x.jpg', 'no_image', 'none')")
    grant(url)
    return shop


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows of a statement, undone afterwards."""
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        rows = cursor.fetchall() if cursor.description else []
        connection.rollback()
    return rows


def refused(url: str, statements: list[str]) -> list[str]:
    """Those of the statements that are refused for want of a right."""
    denied = []
    for statement in statements:
        try:
            ask(url, statement)
        except psycopg.errors.InsufficientPrivilege:
            denied.append(statement)
    return denied


@pytest.mark.parametrize("role", [READER, WRITER])
def test_who_reads_may_read_all_of_the_contract(granted_shop: Shop, database_url: str, role: str) -> None:
    url = login(database_url, role)

    assert [statement for statement in READS if not ask(url, statement)] == []


def test_a_reader_may_do_nothing_else(granted_shop: Shop, database_url: str) -> None:
    assert refused(login(database_url, READER), NOT_FOR_READERS) == NOT_FOR_READERS


def test_a_writer_may_not_do_what_the_owner_does(granted_shop: Shop, database_url: str) -> None:
    assert refused(login(database_url, WRITER), NOT_FOR_WRITERS) == NOT_FOR_WRITERS


def test_who_was_granted_nothing_may_do_nothing(granted_shop: Shop, database_url: str) -> None:
    statements = [*READS, *NOT_FOR_READERS, *NOT_FOR_WRITERS]

    assert refused(login(database_url, STRANGER), statements) == statements


def test_a_model_that_comes_later_is_open_to_both(granted_shop: Shop, database_url: str) -> None:
    later = granted_shop.register(model_spec("later", revision="sha256:2"))
    insert = (
        "INSERT INTO catvec_store.emb_later (content_sha256, embedding, run_id)"
        " VALUES (decode(repeat('ab', 32), 'hex'), '[0,1,0,0]', 1) RETURNING run_id"
    )

    assert ask(login(database_url, READER), "SELECT * FROM catvec.image_embeddings_later") == []
    assert ask(login(database_url, WRITER), insert) == [(1,)]
    assert refused(
        login(database_url, WRITER),
        ["TRUNCATE catvec_store.emb_later", "UPDATE catvec_store.emb_later SET run_id = 2"],
    ) == ["TRUNCATE catvec_store.emb_later", "UPDATE catvec_store.emb_later SET run_id = 2"]
    with Session(login(database_url, WRITER)) as session:
        session.run(lambda connection: connection.execute("SELECT catvec_store.mark_ready(%s)", (later.model_id,)))
    assert granted_shop.one("SELECT state FROM catvec.models WHERE name = 'later'") == "ready"
    granted_shop.activate(later)
    assert ask(login(database_url, READER), "SELECT * FROM catvec.image_embeddings") == []


def test_the_planner_is_told_by_a_writer_too(granted_shop: Shop, database_url: str) -> None:
    if granted_shop.session.connection().info.server_version < 170000:
        pytest.skip("the server is older than PostgreSQL 17, which knows no MAINTAIN")
    notices: list[str | None] = []
    with psycopg.connect(login(database_url, WRITER), autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        for table in ("emb_tiny", "images", "products"):
            connection.execute(f"ANALYZE catvec_store.{table}")

    assert notices == []


def test_a_second_time_changes_nothing(granted_shop: Shop, database_url: str) -> None:
    before = granted_shop.all(RIGHTS)

    granted = grant(database_url)

    assert granted_shop.all(RIGHTS) == before
    assert (granted.readers, granted.writers, granted.left) == ((READER,), (WRITER,), ())


def test_the_command_says_what_it_granted(catvec: Catvec, database_url: str) -> None:
    owner = conninfo_to_dict(database_url)["user"]
    both = ("db", "grant", "--reader", READER, "--reader", STRANGER, "--writer", WRITER, "--db", database_url)

    said, data = catvec(*both), catvec(*both, "--json")

    assert (said.code, said.out) == (0, "")
    assert said.err.splitlines() == [
        f"{READER} may read the views and call the functions of schema catvec",
        f"{STRANGER} may read the views and call the functions of schema catvec",
        f"{WRITER} may do so too, and run known models; new models, indexes and switches are {owner}'s",
    ]
    assert data.json() == {"owner": owner, "readers": [READER, STRANGER], "writers": [WRITER], "left": []}


def test_a_role_that_does_not_exist_is_not_made(catvec: Catvec, database_url: str) -> None:
    assert catvec("db", "grant", "--reader", READER, "--writer", 'no "one"', "--db", database_url).complaint() == (
        2,
        "the server has no role 'no \"one\"'",
        'an administrator runs: CREATE ROLE "no ""one""" LOGIN PASSWORD \'…\';',
    )
    assert ask(database_url, "SELECT 1 FROM pg_roles WHERE rolname LIKE 'no %'") == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(login(database_url, READER), "SELECT * FROM catvec.products")


def test_nobody_is_named(catvec: Catvec, database_url: str) -> None:
    assert catvec("db", "grant", "--db", database_url).complaint() == (
        2,
        "no role is named",
        "name it with --reader ROLE or --writer ROLE",
    )


def test_only_the_owner_grants(granted_shop: Shop, database_url: str) -> None:
    owner = conninfo_to_dict(database_url)["user"]

    with pytest.raises(StoreError) as caught:
        grant(login(database_url, WRITER), writers=(STRANGER,))

    assert caught.value.message == (
        f"user {WRITER!r} may not give others their rights: catvec's tables belong to {owner!r}"
    )
    assert caught.value.hint == f"run the same command once as {owner!r}, with --db"


def test_an_administrator_grants_for_the_owner(
    superuser: Connection, postgres: str, database_url: str, shop: Shop
) -> None:
    parts = conninfo_to_dict(postgres)
    address = f"postgresql://{parts['user']}:{parts.get('password', '')}@{parts['host']}:{parts['port']}"

    grant(f"{address}/{superuser.info.dbname}")

    shop.register()  # by the owner, afterwards
    assert ask(login(database_url, READER), "SELECT * FROM catvec.image_embeddings_tiny") == []


def test_what_the_owner_may_not_give_is_left_to_an_administrator(
    superuser: Connection, database_url: str, catvec: Catvec
) -> None:
    name, owner = superuser.info.dbname, conninfo_to_dict(database_url)["user"]
    superuser.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER")
    superuser.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    superuser.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {owner}")
    superuser.execute("CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions")
    superuser.execute(f"GRANT USAGE ON SCHEMA extensions TO {owner}")

    outcome = catvec("db", "grant", "--reader", READER, "--writer", WRITER, "--db", database_url, "--json")

    left = outcome.json()["left"]
    assert left == [
        f'GRANT CONNECT ON DATABASE "{name}" TO "{READER}";',
        f'GRANT USAGE ON SCHEMA "extensions" TO "{READER}";',
        f'GRANT CONNECT ON DATABASE "{name}" TO "{WRITER}";',
        f'GRANT TEMPORARY ON DATABASE "{name}" TO "{WRITER}";',
        f'GRANT USAGE ON SCHEMA "extensions" TO "{WRITER}";',
    ]
    assert outcome.err.splitlines()[-1] == f"still missing; an administrator runs: {left[-1]}"
    for statement in left:
        superuser.execute(statement)
    assert grant(database_url).left == ()
    with Session(login(database_url, WRITER)) as session:
        rights = see_rights(session.connection())
    assert (rights.may_write, rights.may_stage, rights.owns_tables) == (True, True, False)


def test_an_extension_in_another_schema_changes_nothing_for_readers(
    granted_shop: Shop, database_url: str, empty_database_url: str, administrator: Callable[[str], Connection]
) -> None:
    with administrator(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions")
        connection.execute(f"GRANT USAGE ON SCHEMA extensions TO {READER}, {conninfo_to_dict(database_url)['user']}")
    migrate(empty_database_url)
    with Session(empty_database_url) as session:
        fill(Shop(session), empty_database_url)

    with (
        psycopg.connect(login(database_url, READER)) as usual,
        psycopg.connect(login(empty_database_url, READER)) as other,
    ):
        other.execute("SET search_path = ''")  # not even the default one
        for statement in CALLS:
            rows = other.execute(statement).fetchall()  # type: ignore[call-overload]
            assert rows == usual.execute(statement).fetchall() != [], statement  # type: ignore[call-overload]


# a run as the writer


class Nightly:
    """The catalog of a healthy shop in a folder of its own, and `catvec run` on it."""

    def __init__(self, healthy: Healthy, folder: Path, catvec: Catvec) -> None:
        self.healthy, self.folder, self.catvec = healthy, folder, catvec
        for row in healthy.rows:
            (folder / row["image"]).write_bytes((healthy.folder / row["image"]).read_bytes())

    def run(self, *more: object, url: str | None = None, name: str = "healthy") -> Any:
        options = ("--model", self.healthy.model, "--model-name", name, "--db", url or self.healthy.url)
        return self.catvec("run", self.folder / "catalog.csv", *options, "--json", *more)

    def write(self, rows: list[dict[str, Any]]) -> None:
        write_catalog(self.folder / "catalog.csv", rows)


@pytest.fixture
def nightly(healthy: Healthy, tmp_path: Path, catvec: Catvec) -> Nightly:
    nightly = Nightly(healthy, tmp_path, catvec)
    nightly.write(list(healthy.rows))
    grant(healthy.url)
    return nightly


def test_a_writer_runs_every_night(nightly: Nightly, healthy: Healthy) -> None:
    """New, changed, removed and broken products, by a user who may do no more than that."""
    rows = [dict(row) for row in healthy.rows]
    rows[1]["title"] = "renamed"
    (nightly.folder / "20.jpg").write_bytes(photo(20))
    (nightly.folder / "21.jpg").write_bytes(photo(3))  # bytes that are known
    (nightly.folder / "22.jpg").write_bytes(b"<html>")
    rows += [{**rows[2], "sku": f"P{number}", "image": f"{number}.jpg"} for number in (20, 21, 22)]
    rows.append({**rows[2], "sku": "", "image": "20.jpg"})
    nightly.write(rows[1:])

    outcome = nightly.run("--tolerate-failures", 1, url=login(healthy.url, WRITER))

    assert (outcome.code, "WARNING" in outcome.err) == (0, False), outcome.err
    summary = outcome.json()
    counts = ("finished", "seen", "unchanged", "reused", "embedded", "failed", "removed")
    assert [summary[name] for name in counts] == [True, 15, 11, 1, 1, 2, 1]
    found = {row[0] for row in healthy.execute("SELECT product_id FROM catvec.image_embeddings")}
    assert found == {f"P{number:02}" for number in (*range(1, 12), 20, 21)}
    assert healthy.execute("SELECT title FROM catvec.products WHERE product_id = 'P01'") == [("renamed",)]
    assert sorted(code for _, code, _ in healthy.failures().values()) == ["missing_id", "not_an_image"]
    (nightly.folder / "22.jpg").write_bytes(photo(22))
    again = nightly.run("--tolerate-failures", 1, url=login(healthy.url, WRITER))
    assert [again.json()[name] for name in counts] == [True, 15, 13, 0, 1, 1, 0]
    assert healthy.execute("SELECT state, count(*) FROM catvec.run_status GROUP BY state") == [("finished", 3)]
    assert find_index_of(healthy).is_valid


def test_a_writer_who_may_not_analyze_is_not_troubled(nightly: Nightly, healthy: Healthy) -> None:
    """PostgreSQL before 17 knows no such right; it warns and skips."""
    if healthy.execute("SELECT current_setting('server_version_num')::integer >= 170000") == [(True,)]:
        healthy.execute(f"REVOKE MAINTAIN ON ALL TABLES IN SCHEMA catvec_store FROM {WRITER}")
    (nightly.folder / "20.jpg").write_bytes(photo(20))
    nightly.write([*healthy.rows, {**healthy.rows[2], "sku": "P20", "image": "20.jpg"}])

    outcome = nightly.run(url=login(healthy.url, WRITER))

    assert (outcome.code, outcome.json()["embedded"]) == (0, 1)
    assert "skipping" not in outcome.err


def test_a_writer_keeps_stored_texts_neighbours_and_tags(
    nightly: Nightly, healthy: Healthy, catvec: Catvec, tmp_path: Path
) -> None:
    writer, reader = login(healthy.url, WRITER), login(healthy.url, READER)
    labels = tmp_path / "labels.yaml"
    labels.write_text("colour: [red, green]", encoding="utf-8")

    for command in (
        ("queries", "add", "summer", "a red thing"),
        ("queries", "add", "winter", "a blue thing"),
        ("queries", "remove", "winter"),
        ("neighbours", "build", "-k", 3),
        ("neighbours", "build", "-k", 2),
        ("tag", labels),
        ("tag", labels),
    ):
        outcome = catvec(*command, "--db", writer)
        assert outcome.code == 0, outcome.err

    assert ask(reader, "SELECT count(*) FROM catvec.product_tags") == [(12,)]
    assert ask(reader, "SELECT name, model FROM catvec.queries") == [("summer", "healthy")]
    assert ask(reader, "SELECT count(*) FROM catvec.neighbours") == [(24,)]
    for command in (("queries", "add", "autumn", "a thing"), ("neighbours", "build"), ("tag", labels)):
        assert catvec(*command, "--db", reader).code == 1


def find_index_of(healthy: Healthy) -> Any:
    with Session(healthy.url) as session:
        model = find_model(session.connection(), "healthy")
        assert model is not None
        return find_index(session.connection(), model)


def test_a_writer_whose_model_moved_says_so_to_searches(nightly: Nightly, healthy: Healthy, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(healthy.model)
    real = str(healthy.model.resolve())
    healthy.execute("UPDATE catvec_store.models SET location = '/gone'")

    assert nightly.run(url=login(healthy.url, WRITER)).code == 0

    assert healthy.execute("SELECT location FROM catvec.models") == [(real,)]


def test_a_new_model_is_the_owners(nightly: Nightly, healthy: Healthy, tiny_clip_other: Path) -> None:
    writer = login(healthy.url, WRITER)

    outcome = nightly.run("--model", tiny_clip_other, url=writer, name="other")

    assert outcome.complaint() == (
        1,
        f"user {WRITER!r} may not add model 'other': catvec's tables belong to {healthy.parts['user']!r}",
        f"run the same command once as {healthy.parts['user']!r}, with --db",
    )
    assert nightly.run("--model", tiny_clip_other, name="other").code == 0
    assert nightly.run("--model", tiny_clip_other, url=writer, name="other").json()["unchanged"] == 12


def test_a_missing_index_is_the_owners(nightly: Nightly, healthy: Healthy, caplog: pytest.LogCaptureFixture) -> None:
    healthy.execute("DROP INDEX catvec_store.emb_healthy_hnsw")

    outcome = nightly.run(url=login(healthy.url, WRITER))

    assert (outcome.code, outcome.json()["finished"]) == (0, True)
    assert caplog.messages == [
        f"model healthy has no index, so searches read every vector; user {WRITER!r} may not build it: the owner of "
        "catvec's tables runs once: catvec index build"
    ]
    assert not find_index_of(healthy).exists
    caplog.clear()
    assert nightly.run("--no-build-index", url=login(healthy.url, WRITER)).code == 0
    assert caplog.messages == []
    assert nightly.run().code == 0
    assert find_index_of(healthy).is_valid


def test_the_first_switch_is_the_owners(nightly: Nightly, healthy: Healthy, caplog: pytest.LogCaptureFixture) -> None:
    """The owner's first run broke off before its end, and a writer finished it."""
    healthy.execute("UPDATE catvec_store.models SET state = 'loading', activated_at = NULL")

    outcome = nightly.run(url=login(healthy.url, WRITER))

    assert outcome.code == 0
    assert caplog.messages == [
        "apps read no model yet; the owner of catvec's tables runs: catvec models activate healthy"
    ]
    assert healthy.execute("SELECT state FROM catvec.models") == [("ready",)]
    assert nightly.run().code == 0
    assert healthy.execute("SELECT state FROM catvec.models") == [("active",)]


def test_an_older_database_is_the_owners(nightly: Nightly, healthy: Healthy) -> None:
    healthy.execute("UPDATE catvec_store.alembic_version SET version_num = '0001'")
    owner, newest = healthy.parts["user"], "0005"

    for command in (["run", nightly.folder / "catalog.csv"], ["db", "migrate"]):
        assert nightly.catvec(*command, "--db", login(healthy.url, WRITER)).complaint() == (
            1,
            f"user {WRITER!r} may not bring the database from version 0001 to {newest}: catvec's tables belong to "
            f"{owner!r}",
            f"run the same command once as {owner!r}, with --db",
        )


def test_a_reader_searches_and_does_not_run(nightly: Nightly, healthy: Healthy, catvec: Catvec) -> None:
    reader = login(healthy.url, READER)

    hits = catvec("similar", "P01", "-k", 3, "--db", reader, "--json").json()["hits"]
    found = catvec("search", "--image", nightly.folder / "7.jpg", "-k", 1, "--db", reader, "--json").json()["hits"]

    assert hits == catvec("similar", "P01", "-k", 3, "--db", healthy.url, "--json").json()["hits"]
    assert [hit["product_id"] for hit in found] == ["P07"]
    assert nightly.run(url=reader).complaint()[:2] == (1, "permission denied for schema catvec_store")
