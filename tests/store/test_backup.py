"""pg_dump, and pg_restore by an owner who is no superuser, into a database in which the extension waits."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pipeline.store.connect import Session
from pipeline.store.embedded.binaries import find_programs
from pipeline.store.index import build_index, find_index
from pipeline.store.migrate import migrate
from pipeline.store.models import list_models
from tests.fixtures.database import database_copy
from tests.fixtures.roles import READER, STRANGER, WRITER, grant, login
from tests.fixtures.store import Shop, product, unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.store.connect import Connection
    from tests.fixtures.command import Catvec
    from tests.fixtures.healthy import Healthy

pytestmark = pytest.mark.usefixtures("roles")

ANSWERS = [
    "SELECT * FROM catvec.similar_products('P03', 12)",
    "SELECT * FROM catvec.similar_products('P03', 12, model => 'precise')",
    "SELECT * FROM catvec.similar_products_batch(ARRAY['P01', 'P02'], 5, '{\"category\": \"odd\"}')",
    "SELECT * FROM catvec.search_by_query('summer', 12)",
    "SELECT * FROM catvec.duplicates(0.5)",
    "SELECT * FROM catvec.neighbours",
    "SELECT * FROM catvec.product_tags ORDER BY product_id, label",
    "SELECT * FROM catvec.similar_products('P03', 12, '{\"tag:kind\": \"unknown\"}')",
    "SELECT * FROM catvec.products ORDER BY product_id",
    "SELECT product_id, url, embedding::text FROM catvec.image_embeddings ORDER BY product_id",
    "SELECT product_id, embedding_fp32::text FROM catvec.image_embeddings_precise ORDER BY product_id",
    "SELECT name, state, storage, dims, activated_at FROM catvec.models",
    "SELECT * FROM catvec.run_status",
]

RIGHTS = """
SELECT n.nspname || '.' || c.relname, aclexplode(c.relacl)::text
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname IN ('catvec', 'catvec_store')
 UNION ALL
SELECT nspname, aclexplode(nspacl)::text FROM pg_namespace WHERE nspname IN ('catvec', 'catvec_store', 'public')
 UNION ALL
SELECT proname, aclexplode(proacl)::text FROM pg_proc WHERE pronamespace = 'catvec_store'::regnamespace
 UNION ALL
SELECT defaclobjtype::text, aclexplode(defaclacl)::text FROM pg_default_acl
 ORDER BY 1, 2
"""


@pytest.fixture
def backed_up(healthy: Healthy, catvec: Catvec, tiny_clip_other: Path, tmp_path: Path) -> Healthy:
    """The healthy shop with a second model in full precision, a stored text, neighbours, tags and rights."""
    second = ("--model", tiny_clip_other, "--model-name", "precise", "--storage", "vector")
    assert catvec("run", healthy.folder / "catalog.csv", "--db", healthy.url, *second).code == 0
    with psycopg.connect(healthy.url) as connection:
        connection.execute("INSERT INTO catvec_store.queries (name, text) VALUES ('summer', 'summer dresses')")
        connection.execute(
            "INSERT INTO catvec_store.query_vectors (name, model_id, embedding)"
            " SELECT 'summer', m.model_id, v.embedding FROM catvec.models m, catvec.image_embeddings v"
            "  WHERE m.is_active AND v.product_id = 'P05'"
        )
    assert catvec("neighbours", "build", "-k", 3, "--db", healthy.url).code == 0
    labels = tmp_path / "labels.yaml"
    labels.write_text("kind: {labels: [dress, bag], threshold: 0.99999}", encoding="utf-8")
    assert catvec("tag", labels, "--db", healthy.url).code == 0
    grant(healthy.url)
    return healthy


class Backup:
    """pg_dump and pg_restore of the server's version, as a user calls them."""

    def __init__(self, folder: Path, server_version: int) -> None:
        self.file = folder / "catvec.dump"
        self.programs = _programs(server_version // 10000)

    def dump(self, url: str, *options: str) -> None:
        self._run("pg_dump", "--format=custom", f"--file={self.file}", *options, url)

    def restore(self, url: str, *options: str) -> None:
        self._run("pg_restore", "--exit-on-error", *options, f"--dbname={url}", str(self.file))

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run([self.programs / program, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def _programs(major: int) -> Path:
    """Where the programs of this version are: beside catvec's own server, or the system's."""
    system = shutil.which("pg_restore")
    folders = [find_programs(), *([Path(system).resolve().parent, Path(system).parent] if system else [])]
    for folder in folders:
        if all((folder / name).is_file() for name in ("pg_dump", "pg_restore")) and _major(folder) == major:
            return folder
    pytest.skip(f"there is no pg_dump and pg_restore of PostgreSQL {major}, the server's version")


def _major(folder: Path) -> int:
    said = subprocess.run([folder / "pg_restore", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\) (\d+)", said)
    return int(found[1]) if found else 0


@pytest.fixture
def backup(tmp_path: Path, healthy: Healthy) -> Backup:
    with psycopg.connect(healthy.url) as connection:
        return Backup(tmp_path, connection.info.server_version)


def rows(url: str, statements: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    with psycopg.connect(url) as connection:
        return {statement: connection.execute(statement).fetchall() for statement in statements}  # type: ignore[call-overload]


def check_restored(source: Healthy, url: str, catvec: Catvec) -> None:
    """All answers, as reader; the indexes; and a run, by the writer, that finds nothing to do."""
    expected = rows(login(source.url, READER), ANSWERS)
    assert all(expected.values())
    assert rows(login(url, READER), ANSWERS) == expected
    assert rows(url, [RIGHTS]) == rows(source.url, [RIGHTS])
    with Session(url) as session:
        states = [find_index(session.connection(), model) for model in list_models(session.connection())]
    assert [(state.is_valid, state.kind) for state in states] == [(True, "hnsw"), (True, "hnsw")]
    options = ("--model", source.model, "--model-name", "healthy", "--db", login(url, WRITER), "--json")
    night = catvec("run", source.folder / "catalog.csv", *options)
    assert (night.code, night.json()["unchanged"]) == (0, 12), night.err


def test_catvec_alone_comes_back(backup: Backup, backed_up: Healthy, empty_database_url: str, catvec: Catvec) -> None:
    backup.dump(backed_up.url, "--schema=catvec", "--schema=catvec_store")

    backup.restore(empty_database_url, "--no-owner")

    grant(empty_database_url)  # the rights on the database and on the extension's schema are not the schemas' own
    check_restored(backed_up, empty_database_url, catvec)


def test_a_whole_database_comes_back(
    backup: Backup, backed_up: Healthy, empty_database_url: str, catvec: Catvec
) -> None:
    backed_up.execute("CREATE SCHEMA shop; CREATE TABLE shop.orders AS SELECT 1 AS id")
    backup.dump(backed_up.url)

    backup.restore(empty_database_url, "--no-owner", "--no-comments")

    assert rows(empty_database_url, ["SELECT id FROM shop.orders"]) == {"SELECT id FROM shop.orders": [(1,)]}
    check_restored(backed_up, empty_database_url, catvec)


def test_another_owner_brings_it_back_and_grants_anew(
    backup: Backup, backed_up: Healthy, empty_database_url: str, administrator: Callable[[str], Connection]
) -> None:
    backup.dump(backed_up.url, "--schema=catvec", "--schema=catvec_store")
    with administrator(empty_database_url) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} OWNER TO {STRANGER}")
    url = login(empty_database_url, STRANGER)

    backup.restore(url, "--no-owner", "--no-privileges")

    assert grant(url).owner == STRANGER
    assert rows(login(url, READER), ANSWERS) == rows(login(backed_up.url, READER), ANSWERS)


def test_an_extension_in_another_schema_is_no_hindrance(
    backup: Backup,
    empty_database_url: str,
    administrator: Callable[[str], Connection],
    postgres: str,
    database_owner: str,
) -> None:
    with administrator(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions")
        connection.execute(f"GRANT USAGE ON SCHEMA extensions TO {database_owner}, {READER}")
        template = connection.info.dbname
    with (
        database_copy(postgres, database_owner, template=template) as source,
        database_copy(postgres, database_owner, template=template) as target,
    ):
        migrate(source)
        with Session(source) as session:
            shop = Shop(session)
            shop.sync(product("A", "1.jpg"), product("B", "2.jpg", row=2))
            model = shop.register()
            shop.embed(model, [unit(1, 0, 0, 0), unit(1, 1, 0, 0)])
            build_index(session.connection(), model)
            shop.activate(model)
        grant(source)
        backup.dump(source, "--schema=catvec", "--schema=catvec_store")

        backup.restore(target, "--no-owner")

        question = ["SELECT product_id, round(similarity::numeric, 3)::text FROM catvec.similar_products('A')"]
        assert rows(login(target, READER), question) == {question[0]: [("B", "0.707")]}
        with Session(target) as session:
            assert find_index(session.connection(), model).is_valid
