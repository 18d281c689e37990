"""Databases and models that cannot be used, and questions that cannot be answered.

Each has its exit code, its sentence and its cure; and nothing that was stored before is lost.
"""

from __future__ import annotations

import json
import shutil
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from pipeline.store.connect import SPELLING
from pipeline.store.migrate import newest_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.healthy import Healthy

COPY_AGAIN = "copy the whole model folder; if it is a Git clone of the Hub, run git lfs pull in it"
NEW_NAME = (
    "give the new model a name of its own with --model-name NAME, so that its vectors stand beside the old ones"
)


@pytest.mark.parametrize(
    ("parts", "what", "hint"),
    [
        ({"password": "s3cret"}, "refused the user or password", "check the user and password in --db"),
        ({"dbname": "nosuch"}, "does not exist", "create it, or check the name at the end of --db"),
        ({"port": 1}, "is not listening", "is the server running? check host and port in --db"),
        ({"host": "nosuch.invalid"}, "has a host name that cannot be found", "check the host in --db"),
        ({"user": "nobody"}, "refused the user or password", "check the user and password in --db"),
    ],
)
def test_a_wrong_database_url(catvec: Catvec, healthy: Healthy, parts: dict[str, Any], what: str, hint: str) -> None:
    now = {**healthy.parts, **parts}
    place = f"postgresql://{now['user']}@{now['host']}:{now['port']}/{now['dbname']}"
    run = ["run", healthy.folder / "catalog.csv"]

    for command in (run, ["status"], ["failures"], ["search", "red"], ["similar", "P01"], ["db", "migrate"]):
        outcome = catvec(*command, "--db", healthy.url_with(**parts))

        assert outcome.complaint() == (1, f"database {place} {what}", hint)
        assert "s3cret" not in outcome.err


def test_what_is_no_database_url_is_wrong_use(catvec: Catvec, healthy: Healthy) -> None:
    for url in ("", "mysql://u:s3cret@host/shop", "postgresql://u:s3c@ret@host/shop"):
        outcome = catvec("-v", "run", healthy.folder / "catalog.csv", "--db", url)

        assert outcome.code == 2
        assert f"hint: {SPELLING}" in outcome.err
        assert "s3c" not in outcome.err
        assert "ret@" not in outcome.err


@pytest.fixture
def bare_database(postgres: str) -> Iterator[str]:
    """A database without the extension, and a role that may not create it: the role's URL."""
    name = f"catvec_test_{uuid.uuid4().hex[:12]}"
    words = {"role": sql.Identifier(name), "name": sql.Identifier(name)}
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {role} LOGIN PASSWORD 'right'").format(**words))
        connection.execute(sql.SQL("CREATE DATABASE {name} OWNER {role}").format(**words))
        host, port = connection.info.host, connection.info.port
    yield f"postgresql://{name}:right@{host}:{port}/{name}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {name} WITH (FORCE)").format(**words))
        connection.execute(sql.SQL("DROP ROLE {role}").format(**words))


def test_a_database_without_the_extension(catvec: Catvec, healthy: Healthy, bare_database: str) -> None:
    name = bare_database.rpartition("/")[2]

    run = catvec("run", healthy.folder / "catalog.csv", "--db", bare_database, "--model", healthy.model)
    status = catvec("status", "--db", bare_database)

    assert run.complaint() == (
        1,
        f"the vector extension is missing in database {name!r}, and user {name!r} may not create it",
        f"an administrator runs once in {name!r}: CREATE EXTENSION vector;",
    )
    assert status.complaint() == (
        1,
        f"database {name!r} has no vector extension",
        "an administrator of the database runs: CREATE EXTENSION vector;",
    )


def test_a_database_that_catvec_has_never_seen(catvec: Catvec, empty_database_url: str) -> None:
    name = empty_database_url.rpartition("/")[2]

    for command in (["status"], ["failures"], ["models"], ["similar", "P01"], ["search", "red"]):
        assert catvec(*command, "--db", empty_database_url).complaint() == (
            1,
            f"database {name!r} has no catvec tables",
            "run: catvec db migrate",
        )


def test_a_database_of_a_newer_catvec(catvec: Catvec, unchanged: Healthy) -> None:
    unchanged.execute("UPDATE catvec_store.alembic_version SET version_num = '9999'")
    name = unchanged.parts["dbname"]

    for command in (["run", unchanged.folder / "catalog.csv"], ["status"], ["db", "migrate"]):
        assert catvec(*command, "--db", unchanged.url).complaint() == (
            1,
            f"database {name!r} is at version 9999, this catvec knows up to {newest_version()}",
            "install a newer catvec",
        )


def test_a_role_that_may_only_read_finds_and_does_not_run(
    catvec: Catvec, unchanged: Healthy, bare_database: str
) -> None:
    reader = bare_database.rpartition("/")[2]
    unchanged.execute(f"GRANT USAGE ON SCHEMA catvec TO {reader}")
    unchanged.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA catvec TO {reader}")
    url = unchanged.url_with(user=reader, password="right")
    try:
        for command in (["similar", "P01"], ["search", "red"], ["failures"], ["models"], ["status"]):
            assert catvec(*command, "--db", url).code == 0
        run = catvec("run", unchanged.folder / "catalog.csv", *unchanged.options, "--db", url)
        assert run.complaint() == (
            1,
            "permission denied for schema catvec_store",
            "connect as the owner of catvec's tables, or have the right granted",
        )
    finally:
        unchanged.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA catvec FROM {reader}")
        unchanged.execute(f"REVOKE USAGE ON SCHEMA catvec FROM {reader}")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_the_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def nothing_at_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (
            without_weights,
            (
                1,
                "{folder} has no weights, expected model.safetensors or pytorch_model.bin, "
                "or an index with all its shards",
                COPY_AGAIN,
            ),
        ),
        (
            half_the_weights,
            (
                1,
                "the weights in {folder} cannot be loaded: "
                "Error while deserializing header: incomplete metadata, file not fully covered",
                "copy the model folder again, or run git lfs pull if it is a Git clone of the Hub",
            ),
        ),
        (
            without_config,
            (
                1,
                "{folder} has no config.json, expected a model folder as transformers saves it",
                "convert the model with transformers' save_pretrained",
            ),
        ),
        (
            nothing_at_all,
            (
                2,
                "there is no model folder '{folder}'",
                "a Hub id has the form owner/name, for example openai/clip-vit-base-patch32",
            ),
        ),
    ],
)
def test_a_model_that_cannot_be_loaded(
    catvec: Catvec, unchanged: Healthy, tmp_path: Path, spoil: Callable[[Path], None], complaint: tuple[int, str, str]
) -> None:
    folder = shutil.copytree(unchanged.model, tmp_path / "model")
    spoil(folder)
    options = ("--db", unchanged.url, "--model", folder, "--model-name", "healthy")

    outcome = catvec("run", unchanged.folder / "catalog.csv", *options)

    code, error, hint = complaint
    assert outcome.complaint() == (code, error.format(folder=folder), hint)


def test_a_hub_model_that_is_not_here_while_offline(
    catvec_process: Starter, unchanged: Healthy, tmp_path: Path
) -> None:
    process = catvec_process(
        *("run", unchanged.folder / "catalog.csv", "--db", unchanged.url, "--model", "acme/clip"),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    _, err = process.communicate(timeout=60)

    assert process.returncode == 2
    [error, hint] = err.splitlines()[-2:]
    assert error == (
        "error: model 'acme/clip' at revision 'main' cannot be had: it is not in the cache, and HF_HUB_OFFLINE is "
        f"set; searched the cache {tmp_path}/hub"
    )
    assert hint.startswith("hint: on a machine with access run `hf download acme/clip --revision main")


def test_a_misspelt_model(catvec: Catvec, unchanged: Healthy) -> None:
    outcome = catvec("run", unchanged.folder / "catalog.csv", "--db", unchanged.url, "--model", "vit-b-23")

    assert outcome.complaint() == (
        2,
        "unknown model 'vit-b-23', expected vit-b-32, vit-b-16, vit-l-14, vit-l-14-336, a Hub id such as "
        "google/siglip-base-patch16-224, or a model folder that exists",
        "did you mean vit-b-32?",
    )


def test_a_model_of_another_dimension_under_the_same_name(
    catvec: Catvec, unchanged: Healthy, tiny_clip_other: Path
) -> None:
    options = ("--db", unchanged.url, "--model", tiny_clip_other, "--model-name", "healthy")

    code, error, hint = catvec("run", unchanged.folder / "catalog.csv", *options).complaint()

    assert (code, hint) == (1, NEW_NAME)
    assert error.startswith(
        "model 'healthy' in this database was made by another model: dimensions 48 instead of 32, weights sha256:"
    )


def test_a_table_that_disagrees_with_its_model(catvec: Catvec, unchanged: Healthy) -> None:
    """Somebody put a vector table of another dimension in the place of the model's."""
    unchanged.execute("ALTER TABLE catvec_store.emb_healthy RENAME TO emb_aside")
    unchanged.execute("CREATE TABLE catvec_store.emb_healthy (content_sha256 bytea, embedding public.halfvec(16))")

    altered = catvec("run", unchanged.folder / "catalog.csv", *unchanged.options)
    unchanged.execute("DROP TABLE catvec_store.emb_healthy")
    gone = catvec("run", unchanged.folder / "catalog.csv", *unchanged.options)
    status = catvec("status", "--db", unchanged.url)
    unchanged.execute("ALTER TABLE catvec_store.emb_aside RENAME TO emb_healthy")

    assert altered.complaint() == (
        1,
        "table catvec_store.emb_healthy holds halfvec(16), model 'healthy' gives 32 dimensions to store as halfvec",
        "somebody altered the table: restore it from a backup",
    )
    assert gone.complaint() == (
        1,
        "the table catvec_store.emb_healthy of model 'healthy' is gone",
        "restore it from a backup",
    )
    assert status.complaint()[:2] == (1, 'relation "catvec_store.emb_healthy" does not exist')


def test_questions_that_cannot_be_answered(catvec: Catvec, unchanged: Healthy, tmp_path: Path) -> None:
    page = tmp_path / "page.jpg"
    page.write_text("<html>Please log in</html>")
    cases: list[tuple[list[object], int, str, str | None]] = [
        (["similar", "nope"], 2, "no product 'nope'", None),
        (["similar", "P01", "--model", "old"], 2, 'no model "old", there are: healthy', None),
        (
            ["search", "red", "--model", "old"],
            2,
            "no model 'old' in this database, there are: healthy",
            "see: catvec models",
        ),
        (["search", " "], 2, "the text to search for is empty", None),
        (
            ["search"],
            2,
            "nothing to look for: give words, --image FILE or --like PRODUCT_ID",
            'for example: catvec search "red dress" --minus striped',
        ),
        (
            ["search", "--image", tmp_path / "no.jpg"],
            2,
            f"cannot read '{tmp_path}/no.jpg': No such file or directory",
            None,
        ),
        (
            ["search", "--image", page],
            2,
            f"cannot search with '{page}': the file is no image but an HTML page: 'Please log in'",
            None,
        ),
        (
            ["search", "red", "--filter", "dress"],
            2,
            "--filter 'dress' is not JSON: expecting value",
            """write it like '{"category": "dress"}'""",
        ),
        (
            ["search", "red", "--filter", json.dumps({"price": 3})],
            2,
            'filter key "price" is 3, expected {"min": number, "max": number}, either or both',
            None,
        ),
        (
            ["search", "red", "--device", "gpu"],
            2,
            "--device is 'gpu', expected auto, all, cuda, cuda:N, mps or cpu",
            "several with commas, such as --device cuda:0,cuda:1",
        ),
        (
            ["models", "activate", "old"],
            2,
            "no model 'old' in this database, there are: healthy",
            "see: catvec models",
        ),
    ]
    for words, code, error, hint in cases:
        assert catvec(*words, "--db", unchanged.url).complaint() == (code, error, hint)
