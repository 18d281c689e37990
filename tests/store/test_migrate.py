"""Migrations: twice, two at once, without superuser, and with the right words when it cannot be done."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import migrations.sql
from pipeline.errors import StoreError
from pipeline.store import migrate as migrate_module
from pipeline.store.connect import connect
from pipeline.store.migrate import current_version, migrate, newest_version, require_current

if TYPE_CHECKING:
    from collections.abc import Iterator

OBJECTS = """
SELECT n.nspname, c.relkind, c.relname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname IN ('catvec', 'catvec_store')
 UNION ALL
SELECT n.nspname, 'p', p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')'
  FROM pg_proc p
  JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname IN ('catvec', 'catvec_store')
 ORDER BY 1, 2, 3
"""

FIRST_RELEASE = """
INSERT INTO catvec_store.products (product_id, catalog) VALUES ('A', 'default'), ('B', 'default');
INSERT INTO catvec_store.images (product_id, url, position, content_sha256)
VALUES ('A', 'a.jpg', 0, sha256('a')), ('B', 'b.jpg', 0, sha256('b'));
INSERT INTO catvec_store.models (name, source, revision, location, preprocess, fingerprint, dims, has_text, state)
VALUES ('tiny', 'folder', 'sha256:1', '/models/tiny', '{}', 'print', 2, true, 'ready');
SELECT catvec_store.create_model_table('tiny');
INSERT INTO catvec_store.emb_tiny (content_sha256, embedding, run_id)
VALUES (sha256('a'), '[1,0]', 1), (sha256('b'), '[0.6,0.8]', 1);
SELECT catvec_store.activate_model('tiny');
"""


def objects(url: str) -> list[tuple[str, ...]]:
    with connect(url) as connection:
        return connection.execute(OBJECTS).fetchall()


@contextmanager
def bare_database(postgres: str, *, owner: str | None = None, setup: str = "") -> Iterator[str]:
    """The URL of a new database without the vector extension, of a role that owns nothing else."""
    parts = conninfo_to_dict(postgres)
    name = f"catvec_test_{uuid.uuid4().hex[:12]}"
    role = owner or name
    with psycopg.connect(postgres, autocommit=True) as connection:
        if owner is None:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'right'").format(sql.Identifier(role)))
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(role)))
    admin = f"postgresql://{parts['user']}:{parts.get('password', '')}@{parts['host']}:{parts['port']}/{name}"
    try:
        if setup:
            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute(setup)  # type: ignore[arg-type]
        yield admin if owner else f"postgresql://{role}:right@{parts['host']}:{parts['port']}/{name}"
    finally:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            if owner is None:
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def superuser(postgres: str) -> str:
    """The administrator's URL, where he may make roles and keep extensions from them."""
    with psycopg.connect(postgres) as connection:
        row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    if row != (True,):
        pytest.skip("the test server's administrator is no superuser")
    return postgres


def test_a_second_time_changes_nothing(empty_database_url: str) -> None:
    migrate(empty_database_url)
    first = objects(empty_database_url)
    with connect(empty_database_url) as connection:
        before = connection.execute("SELECT xmin::text, * FROM catvec_store.alembic_version").fetchall()

    migrate(empty_database_url)

    assert objects(empty_database_url) == first
    assert ("catvec", "v", "products") in first
    with connect(empty_database_url) as connection:
        assert connection.execute("SELECT xmin::text, * FROM catvec_store.alembic_version").fetchall() == before
        assert current_version(connection) == newest_version() == before[0][1]
        require_current(connection)


def test_several_at_once_are_as_good_as_one(empty_database_url: str) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def one() -> None:
        start.wait(10)
        try:
            migrate(empty_database_url)
        except BaseException as error:  # noqa: BLE001 - counted below
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert errors == []
    with connect(empty_database_url) as connection:
        require_current(connection)


def test_it_needs_no_superuser_once_the_extension_is_there(superuser: str) -> None:
    with bare_database(superuser, setup="CREATE EXTENSION vector") as url:
        migrate(url)

        with connect(url) as connection:
            require_current(connection)
            row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
            assert row == (False,)


def test_the_extension_may_live_in_any_schema(superuser: str) -> None:
    schema = '"Its own %"'
    setup = (
        f"CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO PUBLIC; CREATE EXTENSION vector SCHEMA {schema}"
    )
    with bare_database(superuser, setup=setup) as url:
        migrate(url)

        with connect(url) as connection:
            require_current(connection)


def test_it_creates_the_extension_where_it_may(superuser: str) -> None:
    administrator = conninfo_to_dict(superuser)["user"]
    with bare_database(superuser, owner=str(administrator)) as url:
        migrate(url)

        with connect(url) as connection:
            require_current(connection)


def test_without_the_right_to_create_the_extension_it_says_what_an_administrator_types(superuser: str) -> None:
    with bare_database(superuser) as url:
        name = conninfo_to_dict(url)["dbname"]
        with pytest.raises(StoreError) as caught:
            migrate(url)
        left_behind = objects(url)

    assert caught.value.message == (
        f"the vector extension is missing in database {name!r}, and user {name!r} may not create it"
    )
    assert caught.value.hint == f"an administrator runs once in {name!r}: CREATE EXTENSION vector;"
    assert left_behind == []


def test_a_role_that_may_not_create_schemas_is_told(superuser: str) -> None:
    with bare_database(superuser, setup="CREATE EXTENSION vector") as url:
        name = str(conninfo_to_dict(url)["dbname"])
        with psycopg.connect(superuser, autocommit=True) as connection:
            # only its owner may create schemas in a database
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(name)))

        with pytest.raises(StoreError) as caught:
            migrate(url)

    assert caught.value.message == f"permission denied for database {name}"
    assert caught.value.hint == "connect as the owner of catvec's tables, or have the right granted"


def test_a_step_that_breaks_leaves_nothing_behind_and_can_be_done_again(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step has three files; here the last one does not come through."""
    run_file = migrations.sql.execute_sql

    def break_off(name: str) -> None:
        run_file(name)
        if name.endswith("functions.sql"):
            migrations.sql.op.get_bind().connection.cursor().execute("SELECT 1 / 0")

    monkeypatch.setattr(migrations.sql, "execute_sql", break_off)
    with pytest.raises(StoreError, match="division by zero"):
        migrate(empty_database_url)
    monkeypatch.undo()

    left = [name for schema, kind, name in objects(empty_database_url) if kind in "rvp"]
    assert [name for name in left if name != "alembic_version"] == []
    with connect(empty_database_url) as connection, pytest.raises(StoreError, match="has no catvec tables"):
        require_current(connection)

    migrate(empty_database_url)
    with connect(empty_database_url) as connection:
        require_current(connection)


def set_version(url: str, version: str) -> None:
    with connect(url) as connection:
        connection.execute("UPDATE catvec_store.alembic_version SET version_num = %s", (version,))


def test_a_database_of_a_newer_catvec_is_left_alone(database_url: str) -> None:
    set_version(database_url, "9999")
    name, before = conninfo_to_dict(database_url)["dbname"], objects(database_url)

    with pytest.raises(StoreError) as from_migrate:
        migrate(database_url)
    with connect(database_url) as connection, pytest.raises(StoreError) as from_require:
        require_current(connection)

    for error in (from_migrate.value, from_require.value):
        assert error.message == f"database {name!r} is at version 9999, this catvec knows up to {newest_version()}"
        assert error.hint == "install a newer catvec"
    assert objects(database_url) == before


def test_an_unknown_older_version_is_an_error_and_no_traceback(database_url: str) -> None:
    set_version(database_url, "0000")

    with pytest.raises(StoreError, match=r"^the database cannot be migrated: .*0000"):
        migrate(database_url)


def test_what_is_behind_or_empty_asks_for_a_migration(database_url: str, empty_database_url: str) -> None:
    set_version(database_url, "0000")
    name, empty = (conninfo_to_dict(url)["dbname"] for url in (database_url, empty_database_url))

    with connect(database_url) as connection, pytest.raises(StoreError) as behind:
        require_current(connection)
    with connect(empty_database_url) as connection, pytest.raises(StoreError) as missing:
        require_current(connection)

    assert behind.value.message == f"database {name!r} is at version 0000, expected {newest_version()}"
    assert missing.value.message == f"database {empty!r} has no catvec tables"
    assert behind.value.hint == missing.value.hint == "run: catvec db migrate"


def test_a_migration_that_never_ends_is_not_waited_for_forever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "LOCK_WAIT_S", 0.2)
    with connect(database_url) as other:
        other.execute(migrate_module.LOCK)

        with pytest.raises(StoreError) as caught:
            migrate(database_url)

    assert caught.value.message == "another migration has been running for a minute"
    assert caught.value.hint == "try again when it is done"


def test_tables_of_the_same_names_elsewhere_are_no_obstacle(empty_database_url: str) -> None:
    with connect(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA mine; SET search_path TO mine")
        connection.execute("CREATE TABLE mine.products (id int); CREATE TABLE mine.models (id int)")

    migrate(empty_database_url)

    with connect(empty_database_url) as connection:
        assert connection.execute("SELECT count(*) FROM catvec_store.products").fetchone() == (0,)


def test_a_schema_of_that_name_that_is_not_ours_is_left_alone(empty_database_url: str) -> None:
    with connect(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA catvec; CREATE TABLE catvec.orders (id int)")

    with pytest.raises(StoreError) as caught:
        migrate(empty_database_url)

    assert caught.value.message == 'schema "catvec" already exists'
    assert caught.value.hint == "catvec needs the schemas catvec and catvec_store for itself: use another database"

    with connect(empty_database_url) as connection:
        assert connection.execute("SELECT count(*) FROM catvec.orders").fetchone() == (0,)
        with pytest.raises(StoreError, match="has no catvec tables"):
            require_current(connection)


@contextmanager
def reading(url: str, *, seconds: float) -> Iterator[list[float]]:
    """One reader holds the views in a transaction for so long, another reads on; how long its reads took."""
    waits: list[float] = []
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as other:
        holder.execute("SELECT count(*) FROM catvec.models, catvec.image_embeddings")
        over = threading.Event()

        def read() -> None:
            while not over.wait(0.02):
                began = time.monotonic()
                other.execute("SELECT product_id FROM catvec.similar_products('A')").fetchall()
                waits.append(time.monotonic() - began)

        threads = [threading.Thread(target=read), threading.Timer(seconds, holder.rollback)]
        for thread in threads:
            thread.start()
        try:
            yield waits
        finally:
            over.set()
            for thread in threads:
                thread.join()


def test_what_others_have_built_on_a_function_is_named_and_kept(empty_database_url: str) -> None:
    with connect(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA catvec_store")
        migrate_module._upgrade(empty_database_url, "public", "0001")
        connection.execute(FIRST_RELEASE)
        connection.execute("CREATE SCHEMA shop")
        connection.execute("CREATE VIEW shop.like_a AS SELECT * FROM catvec.similar_products('A', 3)")

        with pytest.raises(StoreError, match=r"stand in the way: view shop\.like_a depends on function") as caught:
            migrate(empty_database_url)

        assert "CASCADE" not in str(caught.value.hint)
        assert current_version(connection) == "0001"
        assert len(connection.execute("SELECT * FROM shop.like_a").fetchall()) == 1


def test_a_database_of_the_first_release_keeps_what_it_has(empty_database_url: str) -> None:
    """Products, vectors and the active model stay; views gain columns, functions what this release promises."""
    with connect(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA catvec_store")
        migrate_module._upgrade(empty_database_url, "public", "0001")
        connection.execute(FIRST_RELEASE)
        view = "SELECT product_id, image_id, url, embedding, embedded_at FROM catvec.image_embeddings ORDER BY 1"
        vectors = "SELECT * FROM catvec_store.emb_tiny ORDER BY 1"
        before = [connection.execute(query).fetchall() for query in (view, vectors)]
        assert len(before[0]) == 2

        with reading(empty_database_url, seconds=1.5) as waits:
            migrate(empty_database_url)

        assert max(waits) < 1.0, "a reader waited for the migration that waited for another reader"

        assert [connection.execute(query).fetchall() for query in (view, vectors)] == before
        assert connection.execute(
            "SELECT product_id FROM catvec.similar_products('A', combine => 'mean')"
        ).fetchall() == [("B",)]
        assert connection.execute("SELECT name, storage, index_kind, state FROM catvec.models").fetchall() == [
            ("tiny", "halfvec", "hnsw", "active")
        ]
