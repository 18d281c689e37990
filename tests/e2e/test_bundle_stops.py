"""Bundles whose run or load is killed, stopped, meets another, or comes to a full disk; the same command goes on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")
import pyarrow.parquet as pq

from tests.fixtures.bundles import Stand, counts, query
from tests.fixtures.catalogs import photo
from tests.fixtures.command import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.http import ImageServer


@pytest.mark.slow
def test_kills_at_any_moment_end_in_the_bundle_of_an_undisturbed_run(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    image_server: ImageServer,
    tiny_clip: Path,
    tmp_path: Path,
) -> None:
    catalog, bundle = shop_catalog(100, wait_s=0.1), tmp_path / "bundle"
    killed = (
        "run",
        catalog,
        "--to",
        bundle,
        "--model",
        tiny_clip,
        "--allow-private-hosts",
        "--per-host",
        2,
        "--json",
    )
    moments = random.Random(5)
    for parts in (0, 1):
        process = catvec_process(*killed)
        seen = image_server.requests.total()
        images = moments.randrange(10, 40)  # 20 a second, a part each second
        wait_until(lambda: image_server.requests.total() > seen + images, process)  # noqa: B023
        wait_until(lambda: len(list(bundle.glob("parts/part-*"))) >= parts, process)  # noqa: B023
        process.kill()
        process.communicate()

    last = catvec(*killed).json()

    assert last["unchanged"] > 0, "the kills came before anything was done: this test shows nothing"
    assert (last["finished"], last["unchanged"] + last["embedded"]) == (True, 100)
    rows = pq.read_table(bundle / "parts").to_pylist()
    assert sorted(row["product_id"] for row in rows) == [f"P{number:04}" for number in range(100)]
    assert {row["outcome"] for row in rows} == {"embedded"}
    assert not list(bundle.rglob(".catvec-*"))


@pytest.mark.slow
def test_a_terminated_run_drains_and_a_second_one_has_to_wait(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    image_server: ImageServer,
    tiny_clip: Path,
    tmp_path: Path,
) -> None:
    catalog, bundle = shop_catalog(60, wait_s=0.2), tmp_path / "bundle"
    command = ("run", catalog, "--to", bundle, "--model", tiny_clip, "--allow-private-hosts", "--per-host", 2)
    process = catvec_process(*command, "--json")
    wait_until(lambda: image_server.requests.total() > 10, process)

    second = catvec(*command)
    process.terminate()
    out, err = process.communicate(timeout=20)

    assert second.code == 75
    assert f"another run writes to bundle {str(bundle)!r}: process {process.pid} on " in second.err
    assert process.returncode == 143, err
    assert "stopped early (SIGTERM); to go on, run the same command again" in err
    assert '"stopped_by": "SIGTERM"' in out
    rows = pq.read_table(bundle / "parts").num_rows
    assert 0 < rows < 60
    last = catvec(*command, "--json").json()
    assert (last["unchanged"], last["embedded"]) == (rows, 60 - rows)


@pytest.mark.slow
def test_a_load_that_is_killed_goes_on(stand: Stand, catvec_process: Starter, database_url: str) -> None:
    stand.to_bundle()
    process = catvec_process("load", stand.bundle, "--db", database_url)
    time.sleep(0.8)
    process.kill()
    process.communicate()

    stand.load(database_url)

    assert query(database_url, "SELECT count(*) FROM catvec.image_embeddings") == [(14,)]


def test_a_server_that_is_down_stops_the_run_and_the_next_one_tries_again(stand: Stand) -> None:
    for number in range(30):
        with stand.catalog.open("a") as file:
            file.write(f"X{number},x,1,x{number}.jpg\n")

    outcome = stand.run("--to", stand.bundle, "--max-failure-rate", 0.5)

    summary = outcome.json()
    assert (outcome.code, summary["finished"], summary["stopped_by"]) == (4, False, "failure_rate")
    for number in range(30):
        (stand.folder / f"x{number}.jpg").write_bytes(photo(1000 + number))
    assert counts(stand.to_bundle()) == (14, 0, 30, 5, 0)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a small file system of its own needs root")
def test_a_full_disk_is_told_and_the_same_command_goes_on(
    stand: Stand, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.fill(photos=120)
    stand.bundle.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    made = subprocess.run([*mount, "size=96k", "tmpfs", stand.bundle], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small file system: {made.stderr.strip()}")
    monkeypatch.setattr("pipeline.bundle.parts.PART_ROWS", 10)
    try:
        outcome = stand.run("--to", stand.bundle)
        left = sorted(path.name for path in stand.bundle.rglob("*"))
        subprocess.run([*mount, "remount,size=10m", stand.bundle], check=True)
        summary = stand.to_bundle()
        loaded = stand.load(database_url)
    finally:
        subprocess.run(["umount", stand.bundle], check=True)

    code, error, hint = outcome.complaint()
    assert code == 1
    assert error.startswith(f"bundle {str(stand.bundle)!r} cannot be written: '{stand.bundle}/parts/part-")
    assert error.endswith("cannot be written: no space left on device")
    assert hint == "free some space, or mend what is said, and run the same command again: what is finished stays"
    assert not [name for name in left if name.endswith(".new")]
    parts = sum(name.startswith("part-") for name in left)
    assert parts > 0
    assert 5 < summary["unchanged"] < 122
    assert summary["unchanged"] + summary["embedded"] + summary["reused"] == 122
    assert counts(loaded) == (0, 2, 120, 5, 0)
