"""Law 2: whatever is killed, and whenever, the same command again ends in the rows of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest
from pgvector.psycopg import register_vector

from pipeline.store.embedded import EmbeddedServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec, Process, Starter
    from tests.fixtures.http import ImageServer

ROWS = """
SELECT i.product_id, i.url, i.position, i.active, encode(i.content_sha256, 'hex'), i.width, i.height, e.embedding
  FROM catvec_store.images i
  LEFT JOIN catvec_store.emb_tiny e ON e.content_sha256 = i.content_sha256
 ORDER BY i.product_id, i.position
"""


def read_rows(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        register_vector(connection)
        return connection.execute(ROWS).fetchall()


def assert_same_rows(url: str, expected_url: str) -> None:
    rows, expected = read_rows(url), read_rows(expected_url)
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
    vectors = np.array([row[-1].to_numpy() for row in rows], dtype=np.float32)
    wanted = np.array([row[-1].to_numpy() for row in expected], dtype=np.float32)
    # stored in half precision (11 bits), and a vector depends a little on the size of its batch
    assert np.abs(vectors - wanted).max() < 1e-3


@pytest.mark.slow
def test_ten_kills_at_random_moments_end_in_the_rows_of_an_undisturbed_run(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    database_url: str,
    empty_database_url: str,
    image_server: ImageServer,
) -> None:
    catalog = shop_catalog(400, wait_s=0.1)
    options = ("--model", tiny_clip, "--model-name", "tiny", "--precision", "fp32", "--allow-private-hosts", "--json")
    killed = (*("run", catalog, "--db", database_url, "--per-host", 4), *options)
    moments = random.Random(11)
    for _ in range(10):
        process = catvec_process(*killed)
        seen = image_server.requests.total()
        # a few of the kills hit the start of the process, most its work: 40 images a second, a commit each second
        if moments.random() < 0.7:
            images = moments.randrange(1, 80)
            while image_server.requests.total() < seen + images and process.poll() is None:
                time.sleep(0.02)
        else:
            time.sleep(moments.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()

    last = catvec(*killed)
    undisturbed = catvec("run", catalog, "--db", empty_database_url, *options)

    assert last.json()["finished"] is True
    assert undisturbed.json()["embedded"] == 400
    assert last.json()["seen"] == last.json()["unchanged"] + last.json()["embedded"] == 400
    assert_same_rows(database_url, empty_database_url)
    with psycopg.connect(database_url) as connection:
        states = connection.execute("SELECT state, count(*) FROM catvec.run_status GROUP BY state").fetchall()
        assert dict(states)["finished"] == 1
        assert set(dict(states)) <= {"finished", "lost"}
        # every vector was counted by the transaction that wrote it
        assert connection.execute("SELECT sum(embedded) FROM catvec.run_status").fetchone() == (400,)
    assert last.json()["unchanged"] > 0, "the kills came before anything was done: this test shows nothing"


def start_run(catvec_process: Starter, image_server: ImageServer, catalog: Path, *options: object) -> Process:
    """A run that has fetched half of its 120 images."""
    process = catvec_process("run", catalog, "--per-host", 4, "--allow-private-hosts", *options)
    while image_server.requests.total() < 60:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_a_killed_server_that_comes_back_costs_nothing(
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    old_home: Path,
    image_server: ImageServer,
) -> None:
    server = EmbeddedServer(home=old_home)
    url = server.start(explicit=True)
    catalog = shop_catalog(120, wait_s=0.1)
    process = start_run(catvec_process, image_server, catalog, "--db", url, "--model", tiny_clip)
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    server.start(explicit=True)

    _, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert "trying again" in err
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT embedded, state FROM catvec.run_status").fetchall() == [(120, "finished")]
        assert connection.execute("SELECT count(*) FROM catvec.image_embeddings").fetchone() == (120,)


@pytest.mark.slow
def test_a_run_whose_server_is_away_ends_when_it_is_asked_to(
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    old_home: Path,
    image_server: ImageServer,
) -> None:
    server = EmbeddedServer(home=old_home)
    url = server.start(explicit=True)
    catalog = shop_catalog(120, wait_s=0.1)
    process = start_run(catvec_process, image_server, catalog, "--db", url, "--model", tiny_clip)
    server.stop()
    time.sleep(2)  # a commit comes at least every second, and now fails

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert process.returncode == 130, err
    assert 1 <= err.count("trying again") <= 3  # once for each connection of the run
    assert err.splitlines()[-1].endswith("to go on, run the same command again")
