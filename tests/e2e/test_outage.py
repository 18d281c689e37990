"""The database is stopped under a run: the device goes on, and nothing is lost or doubled."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pipeline.engine import backlog, local
from pipeline.engine.stop import Stop
from pipeline.ingest import Ended, ingest
from pipeline.models.encoder import Encoder
from pipeline.progress import Progress
from pipeline.settings import CatalogSettings, FetchSettings, ModelSettings, RunSettings
from pipeline.store.embedded import EmbeddedServer
from tests.e2e.test_kill import assert_same_rows, start_run
from tests.fixtures.database import FAST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.http import ImageServer

IMAGES = 600


@pytest.fixture
def server(old_home: Path) -> EmbeddedServer:
    """Not FAST: what is committed survives kill -9 of the server only with its WAL in order."""
    return EmbeddedServer(home=old_home, settings={"shared_buffers": FAST["shared_buffers"]})


def wait_until(condition: object, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not get there in time"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_stopped_database_does_not_stop_the_device(
    server: EmbeddedServer,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    image_server: ImageServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Memory for 50 vectors and channels for 40, so that most of them wait in the file."""
    for module, name, value in (
        (local, "WRITE_IMAGES", 20),
        (local, "OUTCOMES", 40),
        (backlog, "MEMORY_BYTES", 60_000),
    ):
        monkeypatch.setattr(module, name, value)
    encoded = count_encoded(monkeypatch)
    url = server.start(explicit=True)
    settings = RunSettings(
        catalog=CatalogSettings(uri=str(shop_catalog(IMAGES, wait_s=0.05))),
        fetch=FetchSettings(allow_private_hosts=True, per_host=8),
        model=ModelSettings(model=str(tiny_clip), precision="fp32", batch_size=8),
    )
    ended: list[Ended] = []
    progress = Progress()
    run = threading.Thread(
        target=lambda: ended.append(ingest(settings, url=url, progress=progress, stop=Stop())), daemon=True
    )
    run.start()
    wait_until(lambda: progress.snapshot().embedded >= 60)
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: sum(encoded) == IMAGES)  # the device has seen all of them
    assert progress.snapshot().embedded < IMAGES / 2
    assert (progress.snapshot().away_s or 0) > 0.1
    server.start(explicit=True)
    run.join(60)
    assert progress.snapshot().away_s is None

    [outcome] = ended
    assert outcome.summary.finished
    assert (outcome.summary.seen, outcome.summary.embedded, outcome.summary.failed) == (IMAGES, IMAGES, 0)
    assert sum(encoded) == IMAGES
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT embedded, state FROM catvec.run_status").fetchall() == [
            (IMAGES, "finished")
        ]
        assert connection.execute("SELECT count(*) FROM catvec.image_embeddings").fetchone() == (IMAGES,)
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum("wait for the database in 0 MB of memory; what follows waits in a file" in line for line in told) == 1
    assert sum(line.startswith("what waited for the database is written: ") for line in told) == 1
    server.stop()


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that the device has done."""
    sizes: list[int] = []
    encode = Encoder.encode_images

    def counted(self: Encoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors = encode(self, pixels)
        sizes.append(len(pixels))
        return vectors

    monkeypatch.setattr(Encoder, "encode_images", counted)
    return sizes


@pytest.mark.slow
def test_a_kill_while_the_database_is_away_costs_what_waited_and_nothing_else(
    server: EmbeddedServer,
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    image_server: ImageServer,
    database_url: str,
) -> None:
    url = server.start(explicit=True)
    catalog = shop_catalog(120, wait_s=0.1)
    options = ("--model", tiny_clip, "--model-name", "tiny", "--precision", "fp32", "--json")
    process = start_run(catvec_process, image_server, catalog, "--db", url, *options)
    server.stop()
    wait_until(lambda: image_server.requests.total() == 120)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.start(explicit=True)

    last = catvec("run", catalog, "--db", url, "--allow-private-hosts", *options)
    undisturbed = catvec("run", catalog, "--db", database_url, "--allow-private-hosts", *options)

    assert last.json()["finished"] is undisturbed.json()["finished"] is True
    assert last.json()["embedded"] + last.json()["unchanged"] == undisturbed.json()["embedded"] == 120
    assert_same_rows(url, database_url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT sum(embedded) FROM catvec.run_status").fetchone() == (120,)
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("table", ["images", "emb_tiny"])
def test_a_database_that_hangs_does_not_hold_up_a_stop(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    image_server: ImageServer,
    database_url: str,
    table: str,
) -> None:
    """Another session locks a table, as ALTER TABLE does: the server is there, and answers nothing."""
    catalog = shop_catalog(200, wait_s=0.1)
    options = ("--db", database_url, "--model", tiny_clip, "--model-name", "tiny", "--precision", "fp32", "--json")
    process = start_run(catvec_process, image_server, catalog, *options)
    with psycopg.connect(database_url) as other:
        wait_until(lambda: other.execute("SELECT count(*) FROM catvec_store.emb_tiny").fetchone() != (0,))
        other.commit()
        other.execute(f"LOCK TABLE catvec_store.{table} IN ACCESS EXCLUSIVE MODE")
        time.sleep(2)  # a commit comes at least every second, and now waits
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        _, err = process.communicate(timeout=30)
        took_s = time.monotonic() - sent

    last = catvec("run", catalog, "--allow-private-hosts", *options)

    assert process.returncode == 143, err
    assert took_s < 15
    assert "Traceback" not in err
    assert "stopped early (SIGTERM); to go on, run the same command again" in err
    assert last.json()["finished"] is True
    assert last.json()["embedded"] + last.json()["unchanged"] == 200
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT state FROM catvec.run_status ORDER BY run_id").fetchall() == [
            ("stopped",),
            ("finished",),
        ]
        assert connection.execute("SELECT sum(embedded) FROM catvec.run_status").fetchone() == (200,)


def processes_of(postmaster: int) -> list[int]:
    """The server's first process, and all that it has started."""
    parents = {
        int(path.name): int((path / "stat").read_text().rpartition(")")[2].split()[1])
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and (path / "stat").exists()
    }
    return [postmaster, *(pid for pid, parent in parents.items() if parent == postmaster)]


@pytest.mark.slow
def test_a_frozen_server_does_not_hold_up_a_stop(
    server: EmbeddedServer,
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    image_server: ImageServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel goes on taking what is sent to it, so that no network timeout ends the waiting."""
    monkeypatch.setenv("CATVEC_LOG_FORMAT", "json")
    url = server.start(explicit=True)
    catalog = shop_catalog(120, wait_s=0.1)
    options = ("--db", url, "--model", tiny_clip, "--model-name", "tiny", "--precision", "fp32", "--json")
    process = start_run(catvec_process, image_server, catalog, *options)
    postmaster = server.status().pid
    assert postmaster is not None
    frozen = processes_of(postmaster)
    try:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2)  # a commit comes at least every second, and now waits
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=40)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

    last = catvec("run", catalog, "--allow-private-hosts", *options, "--wait", "30s")

    assert (process.returncode, "Traceback" in err) == (143, False), err
    said = {line["message"]: datetime.fromisoformat(line["time"]) for line in map(json.loads, err.splitlines())}
    asked = said["SIGTERM: finishing what is in flight …"]
    drained = said["the database did not answer in time, and the run was to stop"]
    assert (drained - asked).total_seconds() < 11  # 10, and something for a machine that does much else
    assert "interrupted while encoding images; to go on, run the same command again" in said
    assert last.json()["finished"] is True
    assert last.json()["embedded"] + last.json()["unchanged"] == 120
    server.stop()
