"""catvec index, as a user types it; killed, out of disk, and refused."""

from __future__ import annotations

import resource
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from PIL import Image

from pipeline.store.connect import Session
from pipeline.store.embedded import EmbeddedServer
from pipeline.store.migrate import migrate
from tests.fixtures.store import Shop, model_spec

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.healthy import Healthy

SLOW = "UPDATE catvec_store.models SET index_m = 64, index_ef_construction = 1000"
QUICK = "UPDATE catvec_store.models SET index_m = 4, index_ef_construction = 8"
BUILDING = "SELECT tuples_done FROM pg_stat_progress_create_index WHERE datname = current_database()"


def fill(url: str, table: str, *, rows: int, dims: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"INSERT INTO catvec_store.{table} (content_sha256, embedding, run_id)"
            f" SELECT sha256(i::text::bytea), l2_normalize((SELECT array_agg(random() - 0.5)"
            f" FROM generate_series(1, {dims}) WHERE i > 0)::real[]::halfvec), 0 FROM generate_series(1, {rows}) AS i"
        )


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def wait_for_build(url: str) -> None:
    deadline = time.monotonic() + 30
    while not any(1 <= done <= 800 for (done,) in execute(url, BUILDING)):
        assert time.monotonic() < deadline, "no index is being built"
        time.sleep(0.02)


def indexes(url: str) -> dict[str, bool]:
    """The HNSW indexes that are there, and whether they are valid."""
    rows = execute(
        url,
        "SELECT c.relname, x.indisvalid FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
        " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw'",
    )
    return dict(rows)


def test_the_index_from_its_build_to_its_end(catvec: Catvec, healthy: Healthy, tmp_path: Path) -> None:
    db = ("--db", healthy.url)
    execute(healthy.url, "DROP INDEX catvec_store.emb_healthy_hnsw")
    fill(healthy.url, "emb_healthy", rows=500, dims=32)

    built = catvec("index", "build", *db)
    assert (built.code, built.out) == (0, "")
    assert built.err.splitlines()[-1].startswith("index emb_healthy_hnsw is valid: hnsw, m 16, ef_construction 128, ")
    assert catvec("index", "build", "--json", *db).json()["is_valid"] is True

    refused = catvec("index", "build", "--m", 8, *db).complaint()
    assert refused == (
        2,
        "index emb_healthy_hnsw stands already, with m 16, not 8",
        "catvec index rebuild with the same options makes a new one and lets it take this one's place",
    )
    again = catvec("index", "rebuild", "healthy", "--m", 8, "--binary-rerank", "--json", *db).json()
    assert (again["kind"], again["m"], again["ef_construction"]) == ("binary", 8, 128)

    table = catvec("index", "status", *db)
    assert "binary" in table.out
    assert table.err.splitlines()[-1] == "healthy: nothing to do"
    [report] = catvec("index", "status", "healthy", "--json", *db).json()["indexes"]
    assert (report["state"], report["kind"], report["recall"]) == ("valid", "binary", 1.0)

    chart = tmp_path / "curve.svg"
    tuned = catvec("index", "tune", "--sample", 10, "--chart", chart, "--m", "8,16", "--rows", 200, *db)
    assert tuned.code == 0, tuned.err
    assert "chosen" in tuned.out
    assert tuned.err.splitlines()[-1] == "the functions search with ef_search 40 (before: 100) from now on"
    assert "<svg" in chart.read_text(encoding="utf-8")
    assert execute(healthy.url, "SELECT ef_search FROM catvec.models") == [(40,)]
    picture = tmp_path / "curve.png"
    dry = catvec("index", "tune", "--sample", 10, "--dry-run", "--json", "--chart", picture, *db).json()
    with Image.open(picture) as image:
        assert image.size == (1560, 690)
    assert (dry["is_stored"], len(dry["curve"]), dry["before"]) == (False, 12, 40)

    asked = catvec("index", "drop", *db).complaint()
    assert asked == (
        2,
        "dropping index emb_healthy_hnsw makes searches slow, and there is no terminal to ask on",
        "say so beforehand: catvec index drop healthy --yes",
    )
    assert indexes(healthy.url) == {"emb_healthy_hnsw": True}
    gone = catvec("index", "drop", "--yes", *db)
    assert gone.err.endswith("so does: catvec index build\n")
    assert indexes(healthy.url) == {}
    assert catvec("index", "drop", "--yes", *db).err == "there is no index to drop\n"
    assert len(execute(healthy.url, "SELECT * FROM catvec.similar_products('P01', 5)")) == 5

    # the next run builds it again, as it was wanted last
    assert catvec("run", healthy.folder / "catalog.csv", *healthy.options).code == 0
    assert catvec("index", "build", "--json", *db).json()["kind"] == "binary"


def test_bad_input_is_told_before_any_work(catvec: Catvec, healthy: Healthy, tmp_path: Path) -> None:
    db = ("--db", healthy.url)
    for arguments, code, message in (
        (("build", "nix"), 1, "no model 'nix' in this database, there are: healthy"),
        (
            ("rebuild", "--m", 64, "--ef-construction", 64),
            2,
            "--ef-construction is 64, expected at least twice --m 64",
        ),
        (("tune", "--m", "8,x"), 2, "--m is '8,x', expected numbers from 2 to 100 with commas between"),
        (("tune", "--chart", "a.pdf"), 2, "--chart is 'a.pdf', expected a name that ends in .png or .svg"),
        (
            ("tune", "--chart", tmp_path / "no" / "a.png"),
            2,
            f"--chart is '{tmp_path}/no/a.png', but there is no folder '{tmp_path}/no'",
        ),
    ):
        assert catvec("index", *arguments, *db).complaint()[:2] == (code, message)

    execute(healthy.url, "DROP INDEX catvec_store.emb_healthy_hnsw; TRUNCATE catvec_store.emb_healthy")
    empty = (1, "model 'healthy' has no vectors to index", "run catvec run with it first")
    for command in ("build", "rebuild", "tune"):
        assert catvec("index", command, *db).complaint() == empty
    [report] = catvec("index", "status", "--json", *db).json()["indexes"]
    assert (report["state"], report["advice"]) == ("missing", None)


def kill_while_indexing(process: subprocess.Popen[str], url: str) -> None:
    wait_for_build(url)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert indexes(url) == {"emb_healthy_hnsw": False}
    execute(url, QUICK)


@pytest.fixture
def slow_index(healthy: Healthy) -> Healthy:
    """Many vectors whose index is gone, and takes 10 s to build."""
    execute(healthy.url, "DROP INDEX catvec_store.emb_healthy_hnsw")
    fill(healthy.url, "emb_healthy", rows=4000, dims=32)
    execute(healthy.url, SLOW)
    return healthy


def test_a_run_killed_while_indexing_ends_on_the_server_too_and_the_next_one_heals(
    catvec: Catvec, catvec_process: Starter, slow_index: Healthy
) -> None:
    url, run = slow_index.url, ("run", slow_index.folder / "catalog.csv", *slow_index.options)
    kill_while_indexing(catvec_process(*run), url)
    deadline = time.monotonic() + 6
    while execute(url, BUILDING):
        assert time.monotonic() < deadline, "the build of a client that is gone goes on"
        time.sleep(0.1)

    outcome = catvec(*run)

    assert outcome.code == 0, outcome.err
    assert indexes(url) == {"emb_healthy_hnsw": True}
    states = execute(url, "SELECT state FROM catvec.run_status ORDER BY run_id")
    assert states == [("finished",), ("lost",), ("finished",)]


def test_a_build_waits_for_what_is_left_of_a_killed_one_and_heals(
    catvec: Catvec, catvec_process: Starter, slow_index: Healthy, caplog: pytest.LogCaptureFixture
) -> None:
    build = ("index", "build", "--db", slow_index.url)
    kill_while_indexing(catvec_process(*build), slow_index.url)

    outcome = catvec(*build)

    assert outcome.code == 0, outcome.err
    assert "index emb_healthy_hnsw is being worked on by server process" in caplog.text
    assert indexes(slow_index.url) == {"emb_healthy_hnsw": True}


@contextmanager
def full_disk(server: EmbeddedServer, size_bytes: int) -> Iterator[None]:
    """The server, started anew, cannot make a file larger than this inside the block, as on a disk that is full."""
    server.stop()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))  # the server inherits it
    try:
        server.start(explicit=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    try:
        yield
    finally:
        server.stop()
        server.start(explicit=True)


@pytest.fixture
def own_server(embedded_home: Path) -> tuple[EmbeddedServer, str]:
    """A server of the test's own with an empty model `wide`, and its URL."""
    server = EmbeddedServer(home=embedded_home)
    url = server.start(explicit=True)
    migrate(url)
    return server, url


def register(url: str, dims: int) -> None:
    with Session(url) as session:
        Shop(session).activate(Shop(session).register(model_spec("wide", dims=dims)))
    execute(url, QUICK)


def test_a_full_disk_harms_nothing_and_the_same_command_heals(
    catvec: Catvec, own_server: tuple[EmbeddedServer, str]
) -> None:
    server, url = own_server
    register(url, 2000)
    fill(url, "emb_wide", rows=2600, dims=2000)  # one page of 8 kB each in the index: 21 MB
    before = execute(url, "SELECT count(*), sum(l2_norm(embedding)) FROM catvec_store.emb_wide")
    with full_disk(server, 20 * 2**20):
        code, message, hint = catvec("index", "build", "--db", url).complaint()

        assert code == 1
        assert message.startswith("the index does not fit on the database server's disk: could not extend file")
        assert hint == "free some space there, then run the same command again; vectors and searches are unharmed"
        assert indexes(url) == {}  # what was built is no longer on the disk

    assert catvec("index", "build", "--db", url).code == 0
    assert indexes(url) == {"emb_wide_hnsw": True}
    with full_disk(server, 20 * 2**20):
        code, message, _ = catvec("index", "rebuild", "--db", url).complaint()
        assert (code, message.partition(":")[0]) == (1, "the index does not fit on the database server's disk")
        assert indexes(url) == {"emb_wide_hnsw": True}  # the old one is untouched
    assert catvec("index", "rebuild", "--m", 5, "--ef-construction", 10, "--db", url).code == 0
    assert execute(url, "SELECT count(*), sum(l2_norm(embedding)) FROM catvec_store.emb_wide") == before


def test_too_little_shared_memory_costs_speed_and_not_the_index(
    catvec: Catvec, own_server: tuple[EmbeddedServer, str], caplog: pytest.LogCaptureFixture
) -> None:
    server, url = own_server
    register(url, 4)
    fill(url, "emb_wide", rows=10_000, dims=4)
    with full_disk(server, 32 * 2**20):  # a parallel build asks for 96 MB
        outcome = catvec("index", "build", "--json", "--db", url)

    assert outcome.json()["is_valid"] is True
    assert "too little shared memory for a parallel index build; building with one process" in caplog.text
