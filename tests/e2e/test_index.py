"""catvec index, as a user types it; killed, out of disk, and refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from PIL import Image

from pipeline.indexing import IndexOptions, build
from pipeline.progress import Progress
from pipeline.store.connect import Session
from pipeline.store.embedded import EmbeddedServer
from tests.fixtures.roles import READER, WRITER, grant, login
from tests.fixtures.store import Shop, model_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.command import Catvec, Process, Starter
    from tests.fixtures.healthy import Healthy

SLOW = "UPDATE catvec_store.models SET index_m = 64, index_ef_construction = 1000"
QUICK = "UPDATE catvec_store.models SET index_m = 4, index_ef_construction = 8"
BUILDING = "SELECT tuples_done FROM pg_stat_progress_create_index WHERE datname = current_database()"


def fill(url: str, table: str, *, rows: int, dims: int) -> None:
    """Random vectors, each that of an image of a product of its own, F1 …, of another catalog."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT setseed(0.5)")
        connection.execute(
            f"INSERT INTO catvec_store.{table} (content_sha256, embedding, run_id)"
            f" SELECT sha256(i::text::bytea), l2_normalize((SELECT array_agg(random() - 0.5)"
            f" FROM generate_series(1, {dims}) WHERE i > 0)::real[]::halfvec), 0 FROM generate_series(1, {rows}) AS i"
        )
        connection.execute(
            "INSERT INTO catvec_store.products (product_id, catalog)"
            f" SELECT 'F' || i, 'filled' FROM generate_series(1, {rows}) AS i"
        )
        connection.execute(
            "INSERT INTO catvec_store.images (product_id, url, position, content_sha256)"
            f" SELECT 'F' || i, i || '.jpg', 0, sha256(i::text::bytea) FROM generate_series(1, {rows}) AS i"
        )
        connection.execute(f"ANALYZE catvec_store.{table}, catvec_store.products, catvec_store.images")


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
    fill(healthy.url, "emb_healthy", rows=3000, dims=32)

    built = catvec("index", "build", *db)
    assert (built.code, built.out) == (0, "")
    assert built.err.splitlines()[-1].startswith("index emb_healthy_hnsw is valid: hnsw, m 16, ef_construction 128, ")
    assert catvec("index", "build", "--json", *db).json()["is_valid"] is True

    assert catvec("index", "build", "--m", 12, "--json", *db).json()["m"] == 12
    again = catvec("index", "rebuild", "healthy", "--m", 8, "--binary-rerank", "--json", *db).json()
    assert (again["kind"], again["m"], again["ef_construction"]) == ("binary", 8, 128)

    table = catvec("index", "status", *db)
    assert "binary" in table.out
    assert table.err.splitlines()[-1] == "healthy: nothing to do"
    [report] = catvec("index", "status", "healthy", "--json", *db).json()["indexes"]
    assert (report["state"], report["kind"]) == ("valid", "binary")
    assert report["recall"] > 0.95  # None when searches do not read the index

    chart = tmp_path / "curve.svg"
    quick = ("index", "tune", "--sample", 10, "--target-recall", 0.9)
    tuned = catvec(*quick, "--chart", chart, "--m", "8,16", "--rows", 200, *db)
    assert tuned.code == 0, tuned.err
    assert "chosen" in tuned.out
    stored = "the functions search with ef_search 40 (before: 100) from now on"
    assert tuned.err.splitlines()[-2:] == [stored, f"the curve is in {chart}"]
    assert "<svg" in chart.read_text(encoding="utf-8")
    assert execute(healthy.url, "SELECT ef_search FROM catvec.models") == [(40,)]
    picture = tmp_path / "curve.png"
    dry = catvec(*quick, "--dry-run", "--json", "--chart", picture, *db).json()
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
        (("build", "nix"), 2, "no model 'nix' in this database, there are: healthy"),
        (
            ("rebuild", "--m", 64, "--ef-construction", 64),
            2,
            "--ef-construction is 64, expected at least twice --m 64",
        ),
        (("tune", "--m", "8,x"), 2, "--m is '8,x', expected numbers from 2 to 100 with commas between"),
        (
            ("tune", "--chart", tmp_path / "."),
            2,
            f"--chart is '{tmp_path}', expected a name that ends in .png or .svg",
        ),
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


def kill_while_indexing(process: Process, url: str) -> None:
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
def own_server(old_home: Path) -> tuple[EmbeddedServer, str]:
    """A server of the test's own with an empty model `wide`, and its URL."""
    server = EmbeddedServer(home=old_home)
    url = server.start(explicit=True)
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
    search = "SELECT product_id FROM catvec.similar_products('F7', 5)"
    with full_disk(server, 20 * 2**20):
        code, message, hint = catvec("index", "build", "--db", url).complaint()

        assert code == 1
        assert message.startswith("the index does not fit on the database server's disk: could not extend file")
        assert hint == "free some space there, then run the same command again; vectors and searches are unharmed"
        assert indexes(url) == {}  # what was built is no longer on the disk
        assert len(execute(url, search)) == 5

    assert catvec("index", "build", "--db", url).code == 0
    assert indexes(url) == {"emb_wide_hnsw": True}
    with full_disk(server, 20 * 2**20):
        code, message, _ = catvec("index", "rebuild", "--db", url).complaint()
        assert (code, message.partition(":")[0]) == (1, "the index does not fit on the database server's disk")
        assert indexes(url) == {"emb_wide_hnsw": True}  # the old one is untouched
        assert len(catvec("similar", "F7", "--db", url, "--json").json()["hits"]) == 10
        assert len(execute(url, search)) == 5
    assert catvec("index", "rebuild", "--m", 5, "--ef-construction", 10, "--db", url).code == 0
    assert len(catvec("similar", "F7", "--db", url, "--json").json()["hits"]) == 10
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


LONG = ("--m", 90, "--ef-construction", 1000)


@pytest.fixture
def quick_index(healthy: Healthy) -> Healthy:
    """Enough vectors for an index to be read, and one that was built in no time."""
    execute(healthy.url, "DROP INDEX catvec_store.emb_healthy_hnsw")
    fill(healthy.url, "emb_healthy", rows=4000, dims=32)
    execute(healthy.url, QUICK)
    build(healthy.url, None, IndexOptions(), Progress())
    return healthy


def test_a_killed_tuning_ends_on_the_server_too(
    catvec: Catvec, catvec_process: Starter, quick_index: Healthy
) -> None:
    process = catvec_process("index", "tune", "--sample", 10, "--rows", 4000, *LONG, "--db", quick_index.url)
    wait_for_build(quick_index.url)
    process.kill()
    process.wait()

    deadline = time.monotonic() + 5  # the build would take 20 s
    while execute(quick_index.url, BUILDING):
        assert time.monotonic() < deadline, "a copy is indexed for a client that is gone"
        time.sleep(0.1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_build_leaves_nothing_and_says_how_to_go_on(
    catvec_process: Starter, slow_index: Healthy, number: signal.Signals, code: int
) -> None:
    process = catvec_process("index", "build", "--db", slow_index.url)
    wait_for_build(slow_index.url)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)

    assert process.returncode == code
    said = "interrupted while building the index; to go on, run the same command again"
    assert err.splitlines()[-1] == said
    assert indexes(slow_index.url) == {}


def test_a_chart_that_fails_at_last_costs_no_measurement(
    catvec: Catvec, quick_index: Healthy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tune = ("index", "tune", "--sample", 10, "--rows", 200, "--db", quick_index.url)
    (tmp_path / "c.png").mkdir()
    refused = catvec(*tune, "--chart", "c.png").complaint()
    assert refused == (2, "--chart is 'c.png', which is a folder, expected a file to write", None)

    (tmp_path / "full.png").symlink_to("/dev/full")
    failed = catvec(*tune, "--chart", "full.png")

    assert failed.code == 2
    assert "error: the chart cannot be written to 'full.png': No space left on device" in failed.err
    assert "recall@10" in failed.out
    assert "the functions search with ef_search " in failed.err


def test_readers_are_told_whose_business_an_index_is(catvec: Catvec, healthy: Healthy, roles: None) -> None:
    grant(healthy.url)
    [(owner,)] = execute(healthy.url, "SELECT current_user")
    db = ("--db", login(healthy.url, READER))
    for command, what in (
        ("status", "look into the indexes"),
        ("build", "change the index of model 'healthy'"),
        ("tune", "change the index of model 'healthy'"),
        ("drop", "change the index of model 'healthy'"),
    ):
        assert catvec("index", command, *db).complaint() == (
            1,
            f"user '{READER}' may not {what}: catvec's tables belong to '{owner}'",
            f"run the same command once as '{owner}', with --db",
        )
    assert catvec("index", "status", "--no-recall", "--db", login(healthy.url, WRITER)).code == 0


def test_options_are_refused_that_the_server_would_refuse_later(catvec: Catvec, healthy: Healthy) -> None:
    outcome = catvec("index", "rebuild", "--memory", 99_999_999, "--db", healthy.url)

    assert outcome.code == 2
    assert "Input should be less than or equal to 2097151" in outcome.err


def test_few_dimensions_are_no_case_for_a_binary_index(
    catvec: Catvec, healthy: Healthy, caplog: pytest.LogCaptureFixture
) -> None:
    assert catvec("index", "rebuild", "--binary-rerank", "--db", healthy.url).code == 0

    assert "one bit a dimension is little to tell vectors of 32 dimensions apart" in caplog.text


def test_on_a_terminal_each_phase_counts_what_it_does(quick_index: Healthy) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    command = (
        "index",
        "tune",
        "--sample",
        "20",
        "--rows",
        "3000",
        "--dry-run",
        "--m",
        "60",
        "--ef-construction",
        "400",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *command, "--db", quick_index.url], stdout=subprocess.DEVNULL, stderr=child
    )
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the process is
        while data := os.read(parent, 65536):
            shown += data
    os.close(parent)

    assert process.wait() == 0, shown
    text = shown.decode()
    assert "images" not in text
    assert re.search(r"building index 1 of 1 \(m 60, ef_construction 400\): +[1-9]\d*%.* [1-9]\d*/3000 vectors", text)
    assert re.search(r"\d+/3000 vectors \[[\d:]+, about \d+ s left\]", text)
