"""`catvec run --shard`: several boxes side by side on one database end where one run would."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest

from pipeline.shard import Shard, parse_shard
from pipeline.store.connect import Session
from pipeline.store.runs import take_lock
from tests.e2e.test_kill import read_rows
from tests.fixtures.catalogs import photo
from tests.fixtures.command import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.http import ImageServer
    from tests.fixtures.nights import NightShop

INDEXES = "SELECT count(*) FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE c.relname LIKE 'emb_%_hnsw'"
STATES = "SELECT shard, state FROM catvec.run_status ORDER BY run_id"
FAILURES = "SELECT product_id, url, code, catalog FROM catvec.failures ORDER BY url"
PRODUCTS = (
    "SELECT product_id, title, category, price, attrs::text, active FROM catvec_store.products ORDER BY product_id"
)


def assert_same_rows(url: str, expected_url: str) -> None:
    """Row by row; one image has no vector."""
    rows, expected = read_rows(url), read_rows(expected_url)
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if other[-1] is None:
            assert (row[0], row[-1]) == ("GONE", None)
        else:
            # a vector depends a little on the size of its batch
            assert np.abs(row[-1].to_numpy() - other[-1].to_numpy()).max() < 1e-3


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]


@pytest.mark.slow
def test_three_boxes_at_once_of_which_one_is_killed_end_in_the_rows_of_one_run(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    database_url: str,
    empty_database_url: str,
    image_server: ImageServer,
) -> None:
    catalog = shop_catalog(210, wait_s=0.6)
    for number in range(40):
        image_server.serve(f"/p/{number}.jpg", photo(number % 7))  # the same bytes in several shares
    with catalog.open("a", encoding="utf-8") as file:
        file.write(
            f"GONE,gone,odd,{image_server.url('/gone.jpg')},1,red\nNONE,none,odd,,1,red\n,no id,odd,x.jpg,1,red\n"
        )
    options = (catalog, "--model", tiny_clip, "--model-name", "tiny", "--precision", "fp32", "--allow-private-hosts")
    whole = catvec("run", *options, "--db", empty_database_url, "--per-host", 64, "--json").json()

    def start(shard: str) -> Any:
        return catvec_process("run", *options, "--db", database_url, "--shard", shard, "--json")

    boxes = {shard: start(shard) for shard in ("1/3", "2/3", "3/3")}
    counted = "SELECT coalesce(max(embedded), 0) FROM catvec.run_status WHERE shard = '2/3'"
    wait_until(lambda: query(database_url, counted)[0][0] > 0, boxes["2/3"])
    boxes["2/3"].send_signal(signal.SIGKILL)
    boxes["2/3"].communicate()
    boxes["2/3"] = start("2/3")
    ended = {shard: box.communicate(timeout=120) for shard, box in boxes.items()}

    assert [box.returncode for box in boxes.values()] == [0, 0, 0], [err for _, err in ended.values()]
    summaries = [catvec_summary(out) for out, _ in ended.values()]
    assert [summary["shard"] for summary in summaries] == ["1/3", "2/3", "3/3"]
    for summary in summaries:
        parts = ("unchanged", "reused", "embedded", "failed", "pending")
        assert summary["seen"] == sum(summary[part] for part in parts)
    for name in ("seen", "failed"):
        assert sum(summary[name] for summary in summaries) == whole[name]
    assert_same_rows(database_url, empty_database_url)
    for statement in (FAILURES, PRODUCTS, INDEXES, "SELECT name, state FROM catvec.models"):
        assert query(database_url, statement) == query(empty_database_url, statement), statement
    assert sorted(map(str, query(database_url, STATES))) == sorted(
        map(str, [("2/3", "lost"), *((shard, "finished") for shard in boxes)])
    )


def catvec_summary(out: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def test_the_last_share_builds_the_index_and_opens_the_model(night_shop: NightShop) -> None:
    night_shop.stock(*range(30))
    own = sum(Shard(number=1, count=2).holds(product_id) for product_id in night_shop.rows)

    first = night_shop.run("--shard", "1/2")

    assert (first.code, first.json()["embedded"], first.json()["shard"]) == (0, own, "1/2")
    assert len(night_shop.asked) == own
    assert first.err.splitlines()[-1] == (
        "shard 1/2 is done; the last of the 2 to end builds the index and lets apps read the model"
    )
    assert night_shop.query("SELECT state FROM catvec.models") == [("loading",)]
    assert night_shop.query(INDEXES) == [(0,)]
    plan = night_shop.plan("--shard", "2/2")
    assert (plan["products"]["new"], plan["to_fetch"]) == (30 - own, 30 - own)
    second = night_shop.run("--shard", "2/2")
    assert (second.json()["embedded"], night_shop.found()) == (30 - own, set(night_shop.rows))
    assert second.err.splitlines()[-1].startswith("next: catvec similar")
    assert night_shop.query("SELECT state FROM catvec.models") == [("active",)]
    assert night_shop.query(INDEXES) == [(1,)]

    # a night later, shard by shard, and at last as one
    night_shop.stock(30)
    del night_shop.rows["P0"]
    before = night_shop.vector_rows()
    did = [night_shop.did("--shard", shard) for shard in ("1/2", "2/2")]
    assert sum(part.get("embedded", 0) for part in did) == sum(part.get("removed", 0) for part in did) == 1
    assert night_shop.vector_rows() == (before[0] + 1, *before[1:])
    assert night_shop.did() == {"unchanged": 30}
    assert night_shop.found() == set(night_shop.rows)
    shown = night_shop.catvec("status", "--db", night_shop.url).out
    assert "default, shard 2/2" in shown


def test_two_shards_with_one_number_are_told_and_nothing_is_lost(night_shop: NightShop) -> None:
    night_shop.stock(*range(10))
    half = parse_shard("1/2")
    with Session(night_shop.url, on_connect=lambda connection: take_lock(connection, "tiny_clip", half)):
        outcome = night_shop.run("--shard", "1/2", "--model-name", "tiny_clip")
        overlapping = night_shop.run("--shard", "1/3", "--model-name", "tiny_clip")
        other = night_shop.did("--shard", "2/2", "--model-name", "tiny_clip")

    assert (outcome.code, outcome.out) == (75, "")
    assert "error: shard 1/2 with model 'tiny_clip' is going on already" in outcome.err
    assert (overlapping.code, "in 2 shards" in overlapping.err) == (75, True)
    assert other["embedded"] + night_shop.did("--shard", "1/2", "--model-name", "tiny_clip")["embedded"] == 10
    assert night_shop.found() == set(night_shop.rows)


@pytest.mark.parametrize("text", ["0/4", "5/4", "x"])
def test_what_is_no_shard_is_a_wrong_setting(night_shop: NightShop, text: str) -> None:
    night_shop.stock(0)

    outcome = night_shop.run("--shard", text)

    assert outcome.code == 2
    assert f"error: --shard is {text!r}, expected" in outcome.err
